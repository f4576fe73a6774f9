"""API keys: which programs may do what."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, make_response, redirect, render_template, request

from services.followup.commands import keys
from services.followup.domain.roles import SCOPES
from services.followup.queries import staff as people
from shared.errors import Invalid
from shared.web import actor, allow, flash, service

bp = Blueprint("keys", __name__)


@bp.get("/followup/keys")
@allow("admin")
def keys_page() -> Any:
    """All keys, and a form to make one."""
    return _page()


@bp.post("/followup/keys")
@allow("admin")
def create() -> Any:
    """Makes a key and shows it on this very reply, and never again."""
    name, scopes = request.form.get("name", ""), request.form.getlist("scopes")
    try:
        with service().db.transaction() as tx:
            _, secret = keys.create(tx, name=name, scopes=scopes, created_by=actor().id)
    except Invalid as error:
        return _page(name=name, scopes=scopes, wrong=error.fields)
    return _page(secret=secret, made=name)


@bp.post("/followup/keys/<uuid:key_id>/disable")
@allow("admin")
def disable(key_id: Any) -> Any:
    """Ends a key for good."""
    with service().db.transaction() as tx:
        keys.disable(tx, str(key_id))
    flash("The key is disabled: whatever used it is refused from now on.")
    return redirect("/followup/keys", 303)


def _page(
    *,
    name: str = "",
    scopes: list[str] | None = None,
    wrong: dict[str, str] | None = None,
    secret: str | None = None,
    made: str = "",
) -> Any:
    with service().db.transaction() as tx:
        rows = people.keys(tx)
    page = render_template(
        "followup/keys.html",
        keys=rows,
        active=sum(1 for row in rows if not row["disabled"]),
        scopes=list(SCOPES.items()),
        name=name,
        chosen=scopes or [],
        wrong=wrong or {},
        secret=secret,
        made=made,
    )
    return make_response(page, 422 if wrong else 200)
