"""One customer's page: their whole story, whether they may be asked, changing and erasing them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import Blueprint, make_response, redirect, render_template, request

from services.survey import schemas
from services.survey.commands import customers as commands
from services.survey.commands import erase, opt_out, preferences
from services.survey.edge import opt_out_fingerprints
from services.survey.pages.customers import FIELDS, REASONS, as_form, checked
from services.survey.pages.forms import Wrong
from services.survey.queries import customers as queries
from services.survey.queries import story as stories
from services.survey.queries.company import company
from shared.db import Row
from shared.errors import Conflict, Invalid
from shared.web import Cursor, actor, allow, flash, service

bp = Blueprint("customer", __name__)


@bp.get("/survey/customers/<customer_id>")
@allow("agent", "lead", "admin")
def customer_page(customer_id: str) -> Any:
    """Everything that passed between us and this customer, newest first."""
    cursor = Cursor.decode(request.args.get("before"), 1)
    try:
        before = datetime.fromisoformat(str(cursor[0])) if cursor else None
    except ValueError:
        before = None
    who = actor()
    with service().db.transaction() as tx:
        row = queries.get(tx, who, customer_id)
        entries, older = stories.story(tx, row, before)
        channel, reason = queries.why_not(tx, [row["id"]]).get(row["id"], (None, "no_address"))
        programs = tx.all("SELECT id, name FROM program WHERE state = 'active' ORDER BY name LIMIT 20")
        return render_template(
            "survey/customer.html",
            customer=row,
            entries=entries,
            first=before is None,
            older_url=f"/survey/customers/{row['id']}?before={Cursor.encode(older.isoformat())}"
            if older
            else None,
            ask_channel=channel,
            ask_reason=reason,
            reasons=REASONS,
            programs=programs,
            task=stories.open_task(tx, row),
            gap_days=company(tx)["ask_gap_days"],
            may_change=who.role in ("lead", "admin"),
        )


@bp.get("/survey/customers/<customer_id>/edit")
@allow("lead", "admin")
def edit_page(customer_id: str) -> Any:
    """A form with what is known."""
    with service().db.transaction() as tx:
        row = queries.get(tx, actor(), customer_id)
    return render_template("survey/customer_form.html", customer=row, form=_form(row), wrong=Wrong())


@bp.post("/survey/customers/<customer_id>/edit")
@allow("lead", "admin")
def edit(customer_id: str) -> Any:
    """Saves what was changed; an emptied field is cleared."""
    with service().db.transaction() as tx:
        row = queries.get(tx, actor(), customer_id)
    before = _form(row)
    form = {name: request.form.get(name, before[name]) for name in FIELDS}
    found, wrong = checked({name: text for name, text in form.items() if text.strip() != before[name]})
    if not wrong:
        values, properties = schemas.split(found)
        try:
            commands.save(service().db, values, properties, opt_out_fingerprints(), customer_id)
        except (Invalid, Conflict) as error:
            wrong = as_form(error.fields)
        else:
            flash("Saved.")
            return redirect(f"/survey/customers/{customer_id}", 303)
    page = render_template("survey/customer_form.html", customer=row, form=form, wrong=Wrong(wrong))
    return make_response(page, 422)


def _form(row: Row) -> dict[str, str]:
    account = row["account"] or {}
    form = {name: row.get(name) or "" for name in FIELDS}
    return form | {
        "account": account.get("name") or "",
        "account_manager": account.get("manager_email") or "",
        "tier": account.get("tier") or "",
        "annual_value": account.get("annual_value") or "",
    }


@bp.post("/survey/customers/<customer_id>/messages")
@allow("agent", "lead", "admin")
def messages(customer_id: str) -> Any:
    """Stops messages on a channel because the customer said so, or starts them again for the same reason."""
    channel, verb = request.form.get("channel", ""), request.form.get("do", "")
    if channel not in opt_out.CHANNELS or verb not in ("stop", "start"):
        raise Invalid("Choose what to stop or to start.")
    here = service()
    with here.db.transaction() as tx:
        row = queries.get(tx, actor(), customer_id)
        if verb == "stop":
            opt_out.opt_out(tx, row["id"], channel, "staff", opt_out_fingerprints())
        else:
            opt_out.opt_in(tx, row["id"], channel, opt_out_fingerprints())
    word = "mail" if channel == "email" else "text message"
    if verb == "start":
        flash(f"They get {word}s again.")
    elif preferences.wait(here.db, row["id"], [channel]):
        flash(f"They get no more {word}s. One was already on its way.", "note")
    else:
        flash(f"They get no more {word}s, from this moment on.")
    return redirect(f"/survey/customers/{row['id']}", 303)


@bp.get("/survey/customers/<customer_id>/delete")
@allow("lead", "admin")
def delete_page(customer_id: str) -> Any:
    """Asks once, and says what goes."""
    with service().db.transaction() as tx:
        row = queries.get(tx, actor(), customer_id)
        counts = tx.one(
            "SELECT (SELECT count(*) FROM response WHERE customer_id = %(id)s) AS answers,"
            " (SELECT count(*) FROM invitation WHERE customer_id = %(id)s) AS invitations,"
            " (SELECT count(*) FROM inbound WHERE customer_id = %(id)s) AS texts",
            {"id": row["id"]},
        )
    return render_template("survey/customer_delete.html", customer=row, counts=counts)


@bp.post("/survey/customers/<customer_id>/delete")
@allow("lead", "admin")
def delete(customer_id: str) -> Any:
    """Erases the customer everywhere."""
    with service().db.transaction() as tx:
        row = queries.get(tx, actor(), customer_id)
        erase.erase(tx, row["id"], opt_out_fingerprints())
    flash("The customer is deleted here, and within moments everywhere else.")
    return redirect("/survey/customers", 303)
