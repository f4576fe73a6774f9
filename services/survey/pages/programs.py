"""Programs: how each does, its words and what is sent, pause and start, a test to oneself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, make_response, redirect, render_template, request

from services.survey import addresses, messages
from services.survey.commands import ask, programs
from services.survey.domain.values import BadValue
from services.survey.edge import opt_out_fingerprints
from services.survey.queries import programs as queries
from services.survey.queries.company import company
from services.survey.words import LANGUAGES, WORDING_FIELDS, language_of, words
from shared.channels.gsm import segments
from shared.db import Row, Tx
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.web import actor, allow, csp_allow, csp_replace, flash, rate_limit, service

bp = Blueprint("programs", __name__)

_LEADS = ("lead", "admin")
LABELS = {
    "subject": "Subject of the mail",
    "question": "The question",
    "intro": "Words before the question",
    "thanks": "Words after the answer",
    "sms": "The text message",
}


@bp.get("/survey/programs")
@allow(*_LEADS)
def index() -> str:
    """Each program: is it sending, answer rate, NPS."""
    with service().db.transaction() as tx:
        return render_template(
            "survey/programs.html", programs=queries.programs(tx), uncertain=queries.uncertain_count(tx)
        )


@bp.post("/survey/programs")
@allow(*_LEADS)
def create() -> Any:
    """A new program, with the default wording."""
    try:
        with service().db.transaction() as tx:
            row = programs.create(
                tx,
                request.form.get("name", ""),
                request.form.get("touchpoint") or programs.DEFAULT_TOUCHPOINT,
            )
    except Invalid as error:
        with service().db.transaction() as tx:
            page = render_template(
                "survey/programs.html",
                programs=queries.programs(tx),
                uncertain=queries.uncertain_count(tx),
                wrong=error.fields,
                typed=request.form,
            )
        return make_response(page, error.status)
    flash("The program is there. Look at its words, then ask.")
    return redirect(f"/survey/programs/{row['id']}", 303)


@bp.get("/survey/programs/<program_id>")
@allow(*_LEADS)
def show(program_id: str) -> str:
    """What will happen next, to how many, and a preview."""
    with service().db.transaction() as tx:
        return _page(tx, _program(tx, program_id), {}, {})


@bp.post("/survey/programs/<program_id>")
@allow(*_LEADS)
def save(program_id: str) -> Any:
    """Saves one language's wording and the program's settings, or shows them with what is wrong."""
    form = request.form
    language = language_of(form.get("language"))
    try:
        with service().db.transaction() as tx:
            programs.change(tx, _known(program_id), _changes(form, language))
    except Invalid as error:
        with service().db.transaction() as tx:
            page = _page(tx, _program(tx, program_id), form, error.fields)
        return make_response(page, error.status)
    flash("Saved. Messages that leave from now on have these words.")
    return redirect(f"/survey/programs/{program_id}?language={language}", 303)


@bp.post("/survey/programs/<program_id>/state")
@allow(*_LEADS)
def state(program_id: str) -> Any:
    """Pauses or starts the program."""
    wanted = "paused" if request.form.get("state") == "paused" else "active"
    with service().db.transaction() as tx:
        row = programs.change(tx, _known(program_id), {"state": wanted})
    if wanted == "paused":
        flash(f"{row['name']} is paused: nobody new is asked. Answers are still taken.")
    else:
        flash(f"{row['name']} is on: you can ask.")
    return redirect(f"/survey/programs/{program_id}", 303)


@bp.post("/survey/programs/<program_id>/test")
@allow(*_LEADS)
def test(program_id: str) -> Any:
    """Sends the message to oneself, or to an address or number one gives."""
    who = actor()
    rate_limit(f"test:{who.id}", 20, 3600)
    to = request.form.get("to", "").strip() or who.email
    try:
        email, phone = (addresses.email(to), None) if "@" in to else (None, addresses.phone(to))
        with service().db.transaction() as tx:
            ask.send_test(tx, _known(program_id), who.name, email, phone, opt_out_fingerprints())
    except (BadValue, Invalid) as error:
        reason = error.message if isinstance(error, Invalid) else f"{to} {error}."
        flash(f"The test was not sent: {reason}", "problem")
    else:
        flash(f"A test is on its way to {to}. Its answer will not be counted.")
    return redirect(f"/survey/programs/{program_id}", 303)


@bp.get("/survey/programs/<program_id>/preview/<language>")
@allow(*_LEADS)
def preview(program_id: str, language: str) -> Response:
    """The mail as it is sent, for a frame of our own page."""
    here = service()
    with here.db.transaction() as tx:
        row = _program(tx, program_id)
        message = messages.preview(row, company(tx), language, "email", here.settings.public_url)
    csp_replace("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox")
    return make_response(message.html)


def _known(program_id: str) -> str:
    if not is_id(program_id):
        raise NotFound("There is no such program.")
    return program_id


def _program(tx: Tx, program_id: str) -> Row:
    return queries.program(tx, _known(program_id))


def _changes(form: Mapping[str, str], language: str) -> dict[str, Any]:
    texts = {name: form[name] for name in WORDING_FIELDS if name in form}
    changes: dict[str, Any] = {"wording": {language: texts}} if texts else {}
    for name in ("name", "touchpoint"):
        if name in form:
            changes[name] = form[name]
    if "answer_days" in form:
        days = form["answer_days"].strip()
        changes["answer_days"] = int(days) if days.isascii() and days.isdigit() and len(days) < 6 else 0
    if "channels" in form:
        changes["channels"] = [channel for channel in form["channels"].split(",") if channel]
    return changes


def _page(tx: Tx, row: Row, typed: Mapping[str, str], wrong: Mapping[str, str]) -> str:
    here = company(tx)
    language = language_of(typed.get("language") or request.args.get("language"), here["language"])
    csp_allow("frame-src", "'self'")
    text = messages.preview(row, here, language, "sms", service().settings.public_url).text
    wording = messages.wording_of(row, language)
    return render_template(
        "survey/program.html",
        program=row,
        company=here,
        language=language,
        languages=[(code, words(code)["meta"]["name"]) for code in LANGUAGES],
        tabs=[(words(code)["meta"]["name"], f"?language={code}", code == language) for code in LANGUAGES],
        labels=LABELS,
        wording={name: typed.get(name, wording[name]) for name in WORDING_FIELDS},
        typed=typed,
        wrong={name.removeprefix(f"wording.{language}."): text for name, text in wrong.items()},
        subject=messages.preview(row, here, language, "email", service().settings.public_url).subject,
        sms=text,
        segments=segments(text),
        reach=queries.reach(tx, row, {"all": True}, limit=5000),
        reasons=queries.REASONS,
        runs=queries.runs(tx, str(row["id"])),
    )
