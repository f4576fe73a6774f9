"""The customer's page: one click answers (rule 6), and from then on it is the answer's trail."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg2
import structlog
from flask import Blueprint, Response, jsonify, make_response, redirect, render_template, request

from services.survey.commands import answers
from services.survey.commands.answers import Form
from services.survey.domain.answer import CALLBACKS, COMMENT_LIMIT, parse_score
from services.survey.domain.bands import band
from services.survey.messages import readable_on, wording_of
from services.survey.pages import standalone
from services.survey.queries import answers as queries
from services.survey.queries.company import DEFAULTS
from services.survey.queries.trail import Trail, trail
from services.survey.words import (
    day,
    day_and_time,
    fill,
    language_of,
    score_labels,
    section,
    words,
    zone_of,
)
from shared.db import Row, Tx
from shared.errors import Gone, HearbackError, Invalid
from shared.ids import is_id
from shared.web import capability, public, service

bp = Blueprint("answer", __name__)
standalone.patient(bp)
log = structlog.get_logger("hearback.answer")

_GESTURES = frozenset({"pointerdown", "touchstart", "keydown", "wheel", "pointermove", "click", "button"})


@bp.get("/a/<token>")
@public
@standalone.friendly
def show(token: str) -> Response:
    """Shows the question with the chosen score, or the answer and its trail. Writes no answer."""
    here = service()
    score = parse_score(request.args.get("s"))
    with here.db.transaction() as tx:
        row = queries.page(tx, token)
        view = _view(tx, row, score)
    if request.method == "GET" and not _prefetched():
        _note_click(token, score)
    return standalone.page("customer/answer.html", view)


@bp.get("/a/<token>/trail")
@public
@standalone.friendly
def follow(token: str) -> Response:
    """The trail alone, for the page that waits for followup's promise."""
    with service().db.transaction() as tx:
        view = _view(tx, queries.page(tx, token), None)
    return make_response(render_template("customer/trail.html", **view))


@bp.post("/a/<token>")
@public(csrf=False)
@standalone.friendly
def answer(token: str) -> Any:
    """Records what a person confirmed, chose or wrote; replies at once."""
    form = _form()
    try:
        with service().db.transaction() as tx:
            outcome = answers.record_by_token(tx, token, form)
    except Gone:
        if standalone.wants_page():
            return redirect(f"/a/{token}", 303)
        raise
    except Invalid:
        if standalone.wants_page():
            return _again(token, form, "choose", 422)
        raise
    if standalone.wants_page():
        return (
            _again(token, form, "stale", 409)
            if outcome.effect == "stale"
            else redirect(f"/a/{token}?w=saved", 303)
        )
    recorded = outcome.recorded
    # What the script needs to bring the page up to date; the same again for a repeated nonce.
    return jsonify(
        effect="stale" if outcome.effect == "stale" else "saved",
        version=recorded.version,
        nonce=service().ids.token(),
        score=recorded.score,
        band=None if recorded.score is None else band(recorded.score),
        comment=recorded.comment,
        callback=recorded.callback,
        follow=_expects_promise(recorded.score, recorded.callback, outcome.state),
    )


def _again(token: str, form: Form, notice: str, status: int) -> Response:
    """The page shown at once rather than redirected to, so that what they wrote is still in the box."""
    with service().db.transaction() as tx:
        view = _view(tx, queries.page(tx, token), None)
    typed = form.comment if form.comment and form.comment.strip() else None
    return standalone.page("customer/answer.html", view | {"notice": notice, "typed": typed}, status)


@bp.post("/a/<token>/more")
@public(csrf=False)
@standalone.friendly
def decoy(token: str) -> Any:
    """The form that no person sees: whoever sends it is a machine."""
    with service().db.transaction() as tx:
        answers.decoy(tx, token, _evidence(request.form))
    return redirect(f"/a/{token}", 303)


def _form() -> Form:
    given = request.form.to_dict()  # asking werkzeug's own for what is not there makes an exception each time
    nonce = given.get("nonce", "")
    seen = given.get("seen", "")
    if not 8 <= len(nonce) <= 64 or not (seen.isascii() and seen.isdigit() and len(seen) < 10):
        raise Invalid("This form is damaged. Please open the link in your message again.")
    chosen = parse_score(given.get("score"))
    callback = given.get("callback")
    return Form(
        nonce=nonce,
        seen=int(seen),
        score=parse_score(given.get("pending")) if chosen is None else chosen,
        comment=given.get("comment", "")[: COMMENT_LIMIT * 2],
        set_comment="comment" in given,
        callback=callback if callback in CALLBACKS else None,
        set_callback=callback in (*CALLBACKS, "none"),
        from_mail=chosen is None and parse_score(given.get("pending")) is not None,
        evidence=_evidence(given),
    )


def _evidence(given: Mapping[str, str]) -> dict[str, Any]:
    """What is recorded and not judged: how it was confirmed, how long after opening, by a driven browser?"""
    found: dict[str, Any] = {}
    if given.get("gesture") in _GESTURES:
        found["gesture"] = given["gesture"]
    milliseconds = given.get("ms", "")
    if milliseconds.isascii() and milliseconds.isdigit() and len(milliseconds) < 12:
        found["milliseconds"] = int(milliseconds)
    if given.get("webdriver") in ("0", "1"):
        found["webdriver"] = given["webdriver"] == "1"
    return found


def _prefetched() -> bool:
    return "prefetch" in (request.headers.get("Sec-Purpose") or request.headers.get("Purpose") or "")


def _note_click(token: str, score: int | None) -> None:
    """Evidence, best effort: in a transaction of its own, and the page is shown whatever becomes of it."""
    try:
        with service().db.separate() as tx:
            answers.add_evidence(tx, token, score, {})
    except (HearbackError, psycopg2.Error) as error:
        log.warning("answer.click_not_noted", error=type(error).__name__)


def _expects_promise(score: int | None, callback: str | None, state: str) -> bool:
    return state == "counted" and score is not None and (score <= 6 or callback == "please")


def _view(tx: Tx, row: Row, asked: int | None) -> dict[str, Any]:
    """Everything the page shows, in the customer's language and zone."""
    company = DEFAULTS | (row["company"] or {})
    language = language_of(row["language"], company["language"])
    zone = zone_of(row["time_zone"], company["time_zone"])

    def when(at: datetime) -> str:
        return day_and_time(at, language, zone)

    expired = row["expires_at"] <= tx.now
    pending = asked if not expired and asked is not None and asked != row["score"] else None
    found = trail(tx, str(row["response_id"]), language, when) if row["response_id"] else Trail(False)
    shown = row["score"] if pending is None else pending
    return {
        "language": language,
        "colour": company["colour"],
        "on_colour": readable_on(company["colour"]),
        "company": company["name"],
        "text": section(language, "answer", company=company["name"], score=shown),
        "gave": words(language)["answer"]["gave"],
        "labels": score_labels(language),
        "told": section(language, "trail", score=row["score"]),
        "wording": {
            key: fill(value, company=company["name"]) for key, value in wording_of(row, language).items()
        },
        "row": row,
        "pending": pending,
        "shown": shown,
        "expired": expired,
        "until": day(row["expires_at"], language, zone),
        "answered": when(row["revised_at"]) if row["revised_at"] else "",
        "follow": _expects_promise(row["score"], row["callback"], row["state"] or "") and not found.promised,
        "trail": found,
        "nonce": service().ids.token(),
        "notice": standalone.notice_of(request.args.get("w")),
        "typed": None,
        "help": _help(found),
    }


def _help(found: Trail) -> dict[str, Any]:
    """ "Did it help?": a capability for each unanswered change, and what a mail's link has chosen."""
    chosen = request.args.get("n", "")
    helped = request.args.get("helped", "")
    return {
        "capabilities": {
            told.notice_id: capability.make("notice-answer", {"notice": told.notice_id})
            for told in found.changes
            if told.helped is None
        },
        "notice": chosen if is_id(chosen) and helped in ("yes", "no") else "",
        "chosen": helped if helped in ("yes", "no") else "",
    }
