"""Where customers say what may be sent to them; also their mail program's one-click opt-out (RFC 8058)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, redirect, request

from services.survey.commands import preferences
from services.survey.edge import opt_out_fingerprints
from services.survey.messages import readable_on
from services.survey.pages import standalone
from services.survey.queries.company import company
from services.survey.words import fill, language_of, words
from shared.web import body_limit, public, service

bp = Blueprint("preferences", __name__)
standalone.patient(bp)

_ACTIONS = ("stop_email", "stop_sms", "stop_all", "start_email", "start_sms")


@bp.get("/u/<token>")
@public
@standalone.friendly
def show(token: str) -> Response:
    """Shows what may be sent; changes nothing (scanners open every link)."""
    with service().db.transaction() as tx:
        customer_id, _ = preferences.owner(tx, token)
        row = tx.one("SELECT * FROM customer WHERE id = %s", (customer_id,))
        here = company(tx)
    assert row is not None  # noqa: S101 - the token's foreign key holds it
    language = language_of(row["language"], here["language"])
    said = words(language)
    return standalone.page(
        "customer/preferences.html",
        {
            "language": language,
            "colour": here["colour"],
            "on_colour": readable_on(here["colour"]),
            "company": here["name"],
            "text": {key: fill(value, company=here["name"]) for key, value in said["preferences"].items()},
            "channels": [
                (channel, row[f"{channel}_opt_out_at"] is None, row[f"{channel}_bounced_at"] is not None)
                for channel, column in (("email", "email"), ("sms", "phone"))
                if row[column]
            ],
            "notice": standalone.notice_of(request.args.get("w")),
            "late": request.args.get("late") == "1",
        },
    )


@bp.post("/u/<token>")
@public(csrf=False)
# Half of an action is none, and no opt-out is refused for how a mail program sends it.
@body_limit(65_536, needs_length=False)
@standalone.friendly
def change(token: str) -> Any:
    """Stops or starts a channel; at once, and says when one message was already on its way.

    A mail program's one click gets that sentence as plain text, or an empty text.
    """
    one_click = request.form.get("List-Unsubscribe") == "One-Click"
    action = "one_click" if one_click else request.form.get("action", "")
    if not one_click and action not in _ACTIONS:
        return redirect(f"/u/{token}", 303)
    db = service().db
    with db.transaction() as tx:
        source = "one-click" if one_click else "link"
        customer_id, stopped = preferences.change(tx, token, action, source, opt_out_fingerprints())
    # Committed: from here on no permit is given. What is out already is waited for, a moment.
    late = preferences.wait(db, customer_id, stopped) if stopped else False
    if one_click:
        return Response(
            _on_its_way(customer_id) if late else "", 200, content_type="text/plain; charset=utf-8"
        )
    said = "stop_all" if action == "stop_all" else action.split("_")[0]
    return redirect(f"/u/{token}?w={said}" + ("&late=1" if late else ""), 303)


def _on_its_way(customer_id: str) -> str:
    with service().db.transaction() as tx:
        language = tx.value("SELECT language FROM customer WHERE id = %s", (customer_id,))
        here = company(tx)
    text: str = words(language_of(language, here["language"]))["preferences"]["on_its_way"]
    return text
