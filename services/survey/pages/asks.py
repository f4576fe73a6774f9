"""Asking from the browser: whom, how many that will be and why not the others, and how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, make_response, redirect, render_template, request

from services.survey.commands import ask
from services.survey.queries import programs as queries
from shared.db import Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.ids import is_id
from shared.web import actor, allow, flash, service

bp = Blueprint("asks", __name__)

_LEADS = ("lead", "admin")
WHO = ("all", "account", "touchpoint", "property", "customers")


@bp.get("/survey/programs/<program_id>/ask")
@allow(*_LEADS)
def preview(program_id: str) -> Any:
    """Whom this ask would reach, and why not the others; asks nobody."""
    with service().db.transaction() as tx:
        return _page(tx, program_id, request.args, {})


@bp.post("/survey/programs/<program_id>/ask")
@allow(*_LEADS)
def start(program_id: str) -> Any:
    """Begins the ask and leads to its progress."""
    form = request.form
    try:
        with service().db.transaction() as tx:
            row = ask.start(
                tx,
                _known(program_id),
                audience_of(form),
                actor().name,
                touchpoint=form.get("at", "").strip() or None,
                channel=form.get("channel") or None,
            )
    except (Conflict, Invalid) as error:
        with service().db.transaction() as tx:
            wrong = error.fields or {"who": error.message}
            return make_response(_page(tx, program_id, form, wrong), error.status)
    run_small(str(row["id"]))
    return redirect(f"/survey/asks/{row['id']}", 303)


def run_small(run_id: str, batches: int = 2) -> None:
    """Does the first batches at once: a small ask is done when its page opens; the clock does the rest."""
    for _ in range(batches):
        with service().db.transaction() as tx:
            if ask.step(tx, run_id)["state"] != "running":
                return


@bp.get("/survey/asks/<run_id>")
@allow(*_LEADS)
def show(run_id: str) -> str:
    """How far an ask is, and what became of its messages."""
    with service().db.transaction() as tx:
        row = queries.run(tx, run_id)
        skipped = queries.skipped(tx, run_id)
    return render_template(
        "survey/ask_run.html",
        run=row,
        skipped=skipped,
        reasons=queries.REASONS,
        mailbox=service().settings.uses_mailbox,
    )


@bp.post("/survey/asks/<run_id>/stop")
@allow(*_LEADS)
def stop(run_id: str) -> Any:
    """Ends the ask after the batch it is at."""
    if not is_id(run_id):
        raise NotFound("There is no such ask.")
    with service().db.transaction() as tx:
        ask.stop(tx, run_id)
    flash("Stopped. Who had been asked by then stays asked.")
    return redirect(f"/survey/asks/{run_id}", 303)


def audience_of(form: Mapping[str, str]) -> dict[str, Any]:
    """The audience that a form or a query says."""
    who = form.get("who", "all")
    if who == "account":
        return {"account": form.get("account", "").strip()}
    if who == "touchpoint":
        return {"touchpoint": form.get("touchpoint", "").strip()}
    if who == "property":
        return {"property": {"name": form.get("name", "").strip(), "value": form.get("value", "").strip()}}
    if who == "customers":
        return {"customers": form.get("customers", "").replace(",", " ").split()}
    return {"all": True}


def _known(program_id: str) -> str:
    if not is_id(program_id):
        raise NotFound("There is no such program.")
    return program_id


def _page(tx: Tx, program_id: str, form: Mapping[str, str], wrong: Mapping[str, str]) -> str:
    row = queries.program(tx, _known(program_id))
    found, problem = None, dict(wrong)
    if not wrong:
        try:
            found = queries.reach(
                tx,
                row,
                audience_of(form),
                touchpoint=form.get("at") or None,
                channel=form.get("channel") or None,
            )
        except Invalid:
            problem = {"who": "Say which: the field for your choice is empty."} if form.get("look") else {}
    return render_template(
        "survey/ask.html",
        program=row,
        form=form,
        who=form.get("who", "all") if form.get("who") in WHO else "all",
        wrong=problem,
        reach=found,
        reasons=queries.REASONS,
        touchpoints=[
            found["touchpoint"]
            for found in tx.all(
                "SELECT touchpoint, count(*) FROM customer WHERE touchpoint IS NOT NULL"
                " GROUP BY touchpoint ORDER BY count(*) DESC LIMIT 20"
            )
        ],
    )
