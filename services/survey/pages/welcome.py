"""The first login: company, import, a test message to oneself, ask; each step can be left and resumed."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, make_response, redirect, render_template, request

from services.survey import addresses
from services.survey.commands import ask, company, customers, programs
from services.survey.domain.values import BadValue
from services.survey.edge import opt_out_fingerprints
from services.survey.pages import imports as import_pages
from services.survey.pages.forms import Wrong
from services.survey.pages.settings import choices, save_form, shown
from services.survey.queries import company as settings
from services.survey.queries.audience import TEST_PROPERTY
from shared.db import Row, Tx
from shared.errors import Invalid
from shared.web import actor, allow, flash, service

bp = Blueprint("welcome", __name__)

STEPS = (("company", "Company"), ("import", "Import"), ("test", "Test message"), ("ask", "Ask"))
_NAMES = tuple(name for name, _ in STEPS)


@bp.get("/survey/welcome")
@allow("admin")
def welcome_page() -> Any:
    """The step that is named, else the first that is not done."""
    with service().db.transaction() as tx:
        return _page(tx, request.args.get("step", ""), Wrong())


@bp.post("/survey/welcome/company")
@allow("admin")
def save_company() -> Any:
    """Saves the company and goes on to the import."""
    wrong = save_form(request.form)
    if not wrong:
        return redirect("/survey/welcome?step=import", 303)
    with service().db.transaction() as tx:
        return make_response(_page(tx, "company", Wrong(wrong), shown(tx, request.form)), 422)


@bp.post("/survey/welcome/test")
@allow("admin")
def send_test() -> Any:
    """Sends the question to oneself."""
    who = actor()
    email, phone = request.form.get("email", "").strip(), request.form.get("phone", "").strip()
    wrong = Wrong()
    try:
        email = addresses.email(email) if email or not phone else ""
    except BadValue as error:
        wrong["email"] = f"This {error}."
    try:
        phone = addresses.phone(phone) if phone else ""
    except BadValue as error:
        wrong["phone"] = f"This {error}."
    if not wrong:
        fingerprints = opt_out_fingerprints()

        def send(tx: Tx, to_mail: str | None, to_phone: str | None) -> None:
            program = programs.ensure_default(tx)
            ask.send_test(tx, str(program["id"]), who.name, to_mail, to_phone, fingerprints)

        try:
            if email:
                customers.retrying(service().db, lambda tx: send(tx, email, None))
            if phone:
                customers.retrying(service().db, lambda tx: send(tx, None, phone))
        except Invalid as error:
            wrong.update(error.fields)
    if wrong:
        with service().db.transaction() as tx:
            return make_response(_page(tx, "test", wrong), 422)
    flash(f"The test message to {' and '.join(filter(None, (email, phone)))} is on its way.")
    return redirect("/survey/welcome?step=test", 303)


@bp.post("/survey/welcome/done")
@allow("admin")
def done() -> Any:
    """Puts the steps away: they are not offered again by themselves."""
    with service().db.transaction() as tx:
        company.set_up(tx)
    return redirect("/survey/customers", 303)


def _page(tx: Tx, step: str, wrong: Wrong, form: Row | None = None) -> str:
    row = settings.company(tx)
    finished = _finished(tx, row)
    if step not in _NAMES:
        step = next((name for name in _NAMES if name not in finished), "ask")
    following = dict(zip(_NAMES, (*_NAMES[1:], None), strict=True))[step]
    return render_template(
        "survey/welcome.html",
        step=step,
        number=_NAMES.index(step) + 1,
        steps=STEPS,
        finished=finished,
        following=following,
        company=form or (_blank(row) if row["version"] <= 1 else row),
        wrong=wrong,
        regions=import_pages.region_choices() if step == "import" else [],
        tests=_tests(tx) if step == "test" else [],
        mailbox=service().settings.uses_mailbox,
        email=request.form.get("email", actor().email),
        phone=request.form.get("phone", ""),
        program=programs.ensure_default(tx) if step == "ask" else None,
        count=tx.value("SELECT count(*) FROM customer WHERE NOT properties ? %s", (TEST_PROPERTY,)),
        runs=tx.all("SELECT * FROM import_run ORDER BY started_at DESC LIMIT 3") if step == "import" else [],
        **(choices(tx) if step == "company" else {}),
    )


def _blank(row: Row) -> Row:
    """Nobody's company is called "Your company": what only they know is left to be said."""
    mine = actor().email
    own = {"name": "", "sender_name": "", "sender_email": mine, "reply_to": mine, "fallback_owner": mine}
    return {**row, **own}


def _finished(tx: Tx, row: Row) -> set[str]:
    found = (
        tx.one(
            "SELECT EXISTS (SELECT 1 FROM customer WHERE NOT properties ? %s) AS import,"
            " EXISTS (SELECT 1 FROM invitation WHERE test) AS test, EXISTS (SELECT 1 FROM ask_run) AS ask",
            (TEST_PROPERTY,),
        )
        or {}
    )
    done = {name for name, is_done in found.items() if is_done}
    return done | {"company"} if row["version"] > 1 else done


def _tests(tx: Tx) -> list[Row]:
    return tx.all(
        "SELECT i.id, i.channel, i.created_at, c.email, c.phone, d.state, d.reason,"
        " r.score, r.comment FROM invitation i JOIN customer c ON c.id = i.customer_id"
        " LEFT JOIN LATERAL (SELECT state, reason FROM delivery WHERE ref_id = i.id"
        "  ORDER BY created_at DESC LIMIT 1) d ON true"
        " LEFT JOIN response r ON r.invitation_id = i.id"
        " WHERE i.test ORDER BY i.created_at DESC LIMIT 5"
    )
