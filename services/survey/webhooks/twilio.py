"""Twilio's webhooks: what customers write back, and what became of our texts."""

from __future__ import annotations

from typing import NamedTuple

from flask import Blueprint, Response, request
from werkzeug.datastructures import MultiDict

from services.survey.commands.settle import Report
from services.survey.webhooks import effects
from shared.channels import twilio_signature
from shared.errors import Forbidden, Invalid
from shared.settings import Twilio
from shared.web import body_limit, public, service

bp = Blueprint("twilio_webhooks", __name__)

STATES: dict[str, Report] = {"delivered": "delivered", "undelivered": "failed", "failed": "failed"}
# The number does not exist, or cannot get texts: https://www.twilio.com/docs/api/errors
_DEAD = frozenset({"30005", "30006"})
# An answer without words: what we have to say goes out as a message of our own, through the ledger.
_NOTHING = '<?xml version="1.0" encoding="UTF-8"?><Response/>'


class _Signed(NamedTuple):
    account: Twilio
    form: MultiDict[str, str]


def _signed() -> _Signed:
    """The form, once it is known to come from Twilio, and about our account.

    The URL is the public one, whatever a proxy has made of it: that is what Twilio signed.
    """
    effects.only_when_chosen("twilio")
    settings = service().settings
    account = settings.twilio
    assert account is not None  # noqa: S101 (it is chosen)
    query = request.query_string.decode("ascii", "replace")
    url = f"{settings.public_url}{request.path}{'?' if query else ''}{query}"
    form = request.form
    twilio_signature.verify(account, url, form, request.headers.get(twilio_signature.HEADER))
    if form.get("AccountSid") != account.account_sid:
        raise Forbidden("This webhook is about another account.", slug="foreign-account")
    return _Signed(account, form)


@bp.post("/webhooks/twilio/message")
@public(csrf=False)
@body_limit(65_536)
def message() -> Response:
    """Takes in a customer's text, once. One to a number that is not ours has no effect."""
    account, form = _signed()
    sid, sender = form.get("MessageSid", ""), form.get("From", "")
    if not sid or not sender:
        raise Invalid("This message cannot be read.", slug="bad-event")
    if _to_us(account, form):
        # With its own opt-out words Twilio has already acted, and says what the customer meant.
        words = form.get("OptOutType") or form.get("Body", "")
        effects.text("twilio", sid, sender, words, service().clock.now())
    return Response(_NOTHING, content_type="text/xml; charset=utf-8")


@bp.post("/webhooks/twilio/status")
@public(csrf=False)
@body_limit(65_536)
def status() -> Response:
    """Takes in what became of a text. Only last words count: their order does not matter."""
    _, form = _signed()
    sid, said = form.get("MessageSid", ""), form.get("MessageStatus", "")
    if not sid or not said:
        raise Invalid("This status cannot be read.", slug="bad-event")
    state = STATES.get(said)
    if state is not None:
        code = form.get("ErrorCode", "")
        if state == "failed" and code in _DEAD:
            state = "bounced"
        reason = f"{said} ({code})" if code else None
        delivery = request.args.get("delivery", "")
        effects.fate("twilio", f"{sid}:{said}", delivery, state, reason, service().clock.now())
    return Response(status=204)


def _to_us(account: Twilio, form: MultiDict[str, str]) -> bool:
    if account.service_sid:
        return form.get("MessagingServiceSid", account.service_sid) == account.service_sid
    return form.get("To") == account.sender
