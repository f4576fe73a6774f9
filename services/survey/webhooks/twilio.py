"""Twilio's webhooks: texts from customers, and what became of ours, in any order and perhaps repeated."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flask import Blueprint, Response, request

from services.survey.commands import settle
from services.survey.domain.sms import Keyword
from services.survey.edge import opt_out_fingerprints
from services.survey.webhooks.once import fresh, text
from shared.channels import OPTED_OUT, twilio
from shared.db import Tx
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.web import body_limit, public, service

# No reply in it: ours go through the ledger, under a permit, like every message.
_NOTHING = '<?xml version="1.0" encoding="UTF-8"?><Response/>'
_SID = re.compile(r"[A-Z]{2}[0-9a-zA-Z]{8,40}")
_KEYWORDS: Mapping[str, Keyword] = {"STOP": "stop", "START": "start", "HELP": "help"}


def register(bp: Blueprint) -> None:
    """Adds the routes."""
    bp.add_url_rule(twilio.MESSAGE_PATH, view_func=twilio_message, methods=["POST"])
    bp.add_url_rule(twilio.STATUS_PATH, view_func=twilio_status, methods=["POST"])


@public(csrf=False)
@body_limit(65_536, needs_length=False)
def twilio_message() -> Response:
    """A customer's text. With Advanced Opt-Out, `OptOutType` says what Twilio took it for and answered."""
    here = service()
    given = _verified()
    sid, sender = given.get("MessageSid", ""), given.get("From", "")
    if not _SID.fullmatch(sid) or not re.fullmatch(r"[ -~]{3,100}", sender):
        raise Invalid("This text cannot be read.", slug="bad-event")
    keyword = _KEYWORDS.get(given.get("OptOutType", "").upper())
    text("twilio", sid, sender, given.get("Body", ""), here.clock.now(), keyword)
    return _nothing()


@public(csrf=False)
@body_limit(65_536, needs_length=False)
def twilio_status() -> Response:
    """What became of a text of ours; the delivery's id is in the address that we gave Twilio."""
    here = service()
    given = _verified()
    sid, status = given.get("MessageSid", ""), given.get("MessageStatus", "").lower()
    delivery_id = request.args.get(twilio.ARGUMENT, "")
    if not _SID.fullmatch(sid) or not re.fullmatch(r"[a-z_]{1,40}", status):
        raise Invalid("This report cannot be read.", slug="bad-event")
    meaning = _meaning(status, given.get("ErrorCode", ""))
    if not is_id(delivery_id):
        return _nothing()
    with here.db.transaction() as tx:
        if _ours(tx, delivery_id):
            if meaning is None:  # some carriers never say more than "sent"
                settle.taken(tx, delivery_id, sid)
            elif fresh(tx, "twilio", f"{sid}:{status}"):
                settle.report(tx, delivery_id, *meaning, here.clock.now(), opt_out_fingerprints())
    return _nothing()


def _verified() -> Mapping[str, str]:
    settings = service().settings
    if settings.twilio is None:
        raise NotFound("There is no such page.")
    body = request.get_data()
    return twilio.verify(
        settings,
        request.path,
        request.query_string.decode("latin-1"),
        request.form,
        body,
        request.headers.get(twilio.SIGNATURE_HEADER),
    )


def _ours(tx: Tx, delivery_id: str) -> bool:
    return tx.one("SELECT 1 FROM delivery WHERE id = %s AND channel = 'sms'", (delivery_id,)) is not None


def _meaning(status: str, error: str) -> tuple[settle.Report, str | None] | None:
    """The state a status reports, and why; None while the text is on its way."""
    code = int(error) if error.isascii() and error.isdigit() and len(error) <= 6 else 0
    if status in ("delivered", "read"):
        return "delivered", None
    if status not in ("failed", "undelivered", "canceled"):
        return None
    if code == twilio.STOPPED:
        return "failed", OPTED_OUT
    why = f"It could not be delivered{f' (Twilio error {code})' if code else ''}."
    return ("bounced" if code in twilio.DEAD else "failed"), why


def _nothing() -> Response:
    return Response(_NOTHING, content_type="text/xml; charset=utf-8")
