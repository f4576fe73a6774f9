"""Taking an answer out of every count, with a reason, and putting it back."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, make_response, redirect, render_template, request

from services.survey.commands import exclude as commands
from services.survey.queries import answers as queries
from shared.errors import Conflict, Invalid, NotFound
from shared.ids import is_id
from shared.web import actor, allow, flash, safe_next, service

bp = Blueprint("responses", __name__)

_LEADS = ("lead", "admin")


@bp.get("/survey/responses/<response_id>/exclude")
@allow(*_LEADS)
def form(response_id: str) -> str:
    """The answer with its versions, and the form for the reason."""
    return _page(response_id, "", {})


@bp.post("/survey/responses/<response_id>/exclude")
@allow(*_LEADS)
def exclude(response_id: str) -> Any:
    """Excludes the answer, or with `undo` counts it again."""
    if not is_id(response_id):
        raise NotFound("There is no such answer.")
    reason = request.form.get("reason", "")
    try:
        with service().db.transaction() as tx:
            if request.form.get("undo"):
                row = commands.include(tx, response_id, actor().name)
                flash("The answer counts again.")
            else:
                row = commands.exclude(tx, response_id, reason, actor().name)
                flash("The answer does not count any more. You can put it back at any time.")
    except (Invalid, Conflict) as error:
        return make_response(
            _page(response_id, reason, error.fields or {"reason": error.message}), error.status
        )
    return redirect(safe_next(request.form.get("next"), f"/survey/customers/{row['customer_id']}"), 303)


def _page(response_id: str, reason: str, wrong: dict[str, str]) -> str:
    with service().db.transaction() as tx:
        row = queries.of_response(tx, response_id)
        who = tx.one("SELECT name, email, phone FROM customer WHERE id = %s", (row["customer_id"],)) or {}
    return render_template(
        "survey/exclude.html",
        row=row,
        who=who.get("name") or who.get("email") or who.get("phone") or "this customer",
        reason=reason,
        wrong=wrong,
        next=safe_next(request.values.get("next"), ""),
    )
