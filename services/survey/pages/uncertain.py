"""Messages of which nobody knows whether they left: what is known, and a person's decision."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, redirect, render_template

from services.survey.commands import settle
from services.survey.queries import programs as queries
from shared.web import actor, allow, flash, service

bp = Blueprint("uncertain", __name__)

_LEADS = ("lead", "admin")


@bp.get("/survey/uncertain")
@allow(*_LEADS)
def index() -> str:
    """The uncertain messages about which nobody has decided, oldest first."""
    with service().db.transaction() as tx:
        return render_template(
            "survey/uncertain.html", rows=queries.uncertain(tx), count=queries.uncertain_count(tx)
        )


@bp.post("/survey/uncertain/<delivery_id>/again")
@allow(*_LEADS)
def again(delivery_id: str) -> Any:
    """Sends the message once more, by a person's decision."""
    with service().db.transaction() as tx:
        settle.send_again(tx, delivery_id, actor().name)
    flash("It is sent once more. If the first one had left, the customer gets it twice.")
    return redirect("/survey/uncertain", 303)


@bp.post("/survey/uncertain/<delivery_id>/leave")
@allow(*_LEADS)
def leave(delivery_id: str) -> Any:
    """Leaves it as it is."""
    with service().db.transaction() as tx:
        settle.leave(tx, delivery_id)
    flash("Left as it is. It counts as sent against the customer's limit.")
    return redirect("/survey/uncertain", 303)
