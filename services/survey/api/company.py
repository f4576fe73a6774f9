"""API of the company's settings."""

from __future__ import annotations

from typing import Any

from flask_smorest import Blueprint

from services.survey import schemas
from services.survey.commands import company as commands
from services.survey.queries.company import company
from shared.web import allow, idempotent, service

bp = Blueprint(
    "company-api", __name__, url_prefix="/survey/api/company", description="The company's settings."
)


@bp.get("")
@allow("lead", "admin")
@bp.response(200, schemas.CompanyState)
def company_get() -> Any:
    """The settings as they stand."""
    with service().db.transaction() as tx:
        return company(tx)


@bp.patch("")
@allow("admin")
@idempotent
@bp.arguments(schemas.Company(partial=True))
@bp.response(200, schemas.CompanyState)
def company_change(data: dict[str, Any]) -> Any:
    """Changes the settings that are given."""
    with service().db.transaction() as tx:
        return commands.change(tx, data)
