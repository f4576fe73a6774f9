"""API of customers: list, read, create or change, delete."""

from __future__ import annotations

from typing import Any

from flask_smorest import Blueprint

from services.survey import schemas
from services.survey.commands import customers, erase
from services.survey.edge import opt_out_fingerprints
from services.survey.queries import customers as queries
from shared.errors import NotFound
from shared.ids import is_id
from shared.web import actor, allow, idempotent, service

bp = Blueprint("customers-api", __name__, url_prefix="/survey/api/customers", description="Customers.")

READ, WRITE = "customers:read", "customers:write"


@bp.get("")
@allow("agent", "lead", "admin", scope=READ)
@bp.arguments(schemas.CustomerQuery, location="query")
@bp.response(200, schemas.CustomerPage)
def customers_list(args: dict[str, Any]) -> Any:
    """Customers by name; filters together. An agent sees those of their accounts and tasks."""
    account = args.pop("account_id")
    with service().db.transaction() as tx:
        rows, following = queries.find(tx, actor(), account_id=str(account) if account else None, **args)
    return {"customers": rows, "next": following}


@bp.post("")
@allow("lead", "admin", scope=WRITE)
@idempotent
@bp.arguments(schemas.CustomerInput)
@bp.response(201, schemas.Customer)
@bp.alt_response(200, schema=schemas.Customer, description="The customer was known already.")
@bp.alt_response(409, description="The data belong to two customers.")
def customers_create(data: dict[str, Any]) -> Any:
    """Creates a customer, or changes the one with this external id, else e-mail, else phone."""
    found, properties = schemas.split(data)
    given = {name: value for name, value in found.items() if value is not None}
    outcome = customers.save(service().db, given, properties, opt_out_fingerprints())
    body = _read(str(outcome.customer_id))
    created = outcome.effect == "created"
    return body, 201 if created else 200, {"Location": f"/survey/api/customers/{outcome.customer_id}"}


@bp.get("/<customer_id>")
@allow("agent", "lead", "admin", scope=READ)
@bp.response(200, schemas.Customer)
def customers_get(customer_id: str) -> Any:
    """One customer."""
    return _read(customer_id)


@bp.patch("/<customer_id>")
@allow("lead", "admin", scope=WRITE)
@idempotent
@bp.arguments(schemas.CustomerInput)
@bp.response(200, schemas.Customer)
def customers_change(data: dict[str, Any], customer_id: str) -> Any:
    """Changes the fields that are given; null clears one."""
    if not is_id(customer_id):
        raise NotFound("There is no such customer.")
    found, properties = schemas.split(data)
    customers.save(service().db, found, properties, opt_out_fingerprints(), customer_id)
    return _read(customer_id)


@bp.delete("/<customer_id>")
@allow("lead", "admin", scope=WRITE)
@bp.response(204)
def customers_delete(customer_id: str) -> Any:
    """Erases the customer with all they said. Their opt-out stays, as a fingerprint of the address."""
    with service().db.transaction() as tx:
        if not is_id(customer_id) or not erase.erase(tx, customer_id, opt_out_fingerprints()):
            raise NotFound("There is no such customer.")


def _read(customer_id: str) -> Any:
    with service().db.transaction() as tx:
        return queries.get(tx, actor(), customer_id)
