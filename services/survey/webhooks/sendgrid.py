"""SendGrid's event webhook: batches of what became of mails, in any order and often more than once."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import Any

import structlog
from flask import Blueprint, Response, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields
from marshmallow.validate import Range, Regexp

from services.survey.commands import preferences, settle
from services.survey.edge import opt_out_fingerprints
from services.survey.webhooks.fields import Remark
from services.survey.webhooks.once import fresh
from shared.channels import OPTED_OUT, sendgrid
from shared.db import Tx
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.web import body_limit, public, service

log = structlog.get_logger("hearback.webhooks")

# SendGrid posts what a second brought, or 768 kB.
_MOST_BYTES = 2 * 1_048_576
_NEWS = ("delivered", "bounce", "dropped", "spamreport", "unsubscribe", "group_unsubscribe")
# Nothing new, except of a mail of which we do not know whether SendGrid has it.
_AT_IT = ("processed", "deferred")
# SendGrid would not even try; by the reason it gives.
_DEAD = frozenset({"bounced address", "invalid"})
_STOPPED = frozenset({"unsubscribed address", "spam reporting address"})


class Event(Schema):
    """One event, as far as we read it; there are many more fields, and custom ones."""

    class Meta:
        unknown = EXCLUDE

    id = fields.String(required=True, data_key="sg_event_id", validate=Regexp(r"[!-~]{1,200}\Z"))
    message_id = Remark(data_key="sg_message_id", load_default="", allow_none=True)
    event = fields.String(required=True)
    delivery_id = fields.String(required=True, data_key=sendgrid.ARGUMENT)
    type = fields.String(load_default="", allow_none=True)
    reason = Remark(load_default="", allow_none=True)
    status = Remark(load_default="", allow_none=True)
    timestamp = fields.Integer(required=True, strict=False, validate=Range(0, 10**11))


_EVENT = Event()


def register(bp: Blueprint) -> None:
    """Adds the route."""
    bp.add_url_rule("/webhooks/sendgrid", view_func=sendgrid_events, methods=["POST"])


@public(csrf=False)
@body_limit(_MOST_BYTES, needs_length=False)
def sendgrid_events() -> Response:
    """Takes in a batch. What is not of our mails, and what we cannot read, is passed over: the account may
    send for others too, and a refusal would bring the whole batch again and again for a day.
    """
    here = service()
    if here.settings.sendgrid is None:
        raise NotFound("There is no such page.")
    body = request.get_data(cache=False)
    headers = request.headers
    sendgrid.verify(
        here.settings,
        headers.get(sendgrid.TIMESTAMP_HEADER),
        headers.get(sendgrid.SIGNATURE_HEADER),
        body,
        here.clock.now(),
    )
    try:
        # It quotes all sorts of servers: a byte that is no UTF-8, or 5,000 digits, spoil only their field.
        batch = json.loads(body.decode("utf-8", "replace"), parse_int=float)
    except (ValueError, RecursionError) as error:
        raise Invalid("This batch cannot be read.", slug="bad-event") from error
    if not isinstance(batch, list):
        raise Invalid("A batch is a list of events.", slug="bad-event")
    stopped = set()
    for event in _ours(batch):
        # One transaction each: two batches that name the same customers in another order do not block
        # each other, and what is done stays done when a later one fails and the batch comes again.
        with here.db.transaction() as tx:
            if event["event"] in _AT_IT:
                settle.taken(tx, event["delivery_id"], (event["message_id"] or "").split(".")[0] or None)
            elif fresh(tx, "sendgrid", event["id"]):
                stopped.add(_apply(tx, event, here.clock.now()))
    give_up = time.monotonic() + preferences.WAIT  # for all of them together
    for customer_id, channel in filter(None, stopped):
        preferences.wait(here.db, customer_id, (channel,), give_up - time.monotonic())
    return Response(status=204)


def _ours(batch: list[Any]) -> list[dict[str, Any]]:
    """The events that tell something new of our mails."""
    events, unreadable = [], 0
    for one in batch:
        id = one.get(sendgrid.ARGUMENT) if isinstance(one, dict) else None
        if not isinstance(id, str) or not is_id(id) or one.get("event") not in (*_NEWS, *_AT_IT):
            continue
        try:
            events.append(_EVENT.load(one))
        except ValidationError:
            unreadable += 1
    if unreadable:
        log.warning("sendgrid.unreadable", events=unreadable)
    with service().db.transaction() as tx:
        states = {
            str(row["id"]): row["state"]
            for row in tx.all(
                "SELECT id, state FROM delivery WHERE id = ANY(%s::uuid[])",
                ([event["delivery_id"] for event in events],),
            )
        }
        done = {
            row["event_id"]
            for row in tx.all(
                "SELECT event_id FROM webhook_event WHERE provider = 'sendgrid' AND event_id = ANY(%s)",
                ([event["id"] for event in events],),
            )
        }
    return [
        event
        for event in events
        if (state := states.get(event["delivery_id"].lower()))
        and event["id"] not in done
        and (event["event"] in _NEWS or state in ("claimed", "uncertain"))
    ]


def _apply(tx: Tx, event: dict[str, Any], now: datetime) -> tuple[str, str] | None:
    """Does what the event says; returns whose permits on which channel an opt-out has to wait for."""
    known = opt_out_fingerprints()
    if event["event"] in ("unsubscribe", "group_unsubscribe"):
        return settle.unsubscribed(tx, event["delivery_id"], known)
    at = min(datetime.fromtimestamp(event["timestamp"], UTC), now)
    state, reason = _meaning(event)
    settle.report(tx, event["delivery_id"], state, reason, at, known)
    return None


def _meaning(event: dict[str, Any]) -> tuple[settle.Report, str | None]:
    """The state it reports, and why. The servers' own sentences are left out: they quote addresses."""
    status = event["status"] or ""
    status = status if re.fullmatch(r"[0-9.]{1,12}", status) else ""
    why = f"The recipient's mail server refused it{f' ({status})' if status else ''}."
    dropped = (event["reason"] or "").strip().casefold()
    match event["event"]:
        case "delivered":
            return "delivered", None
        case "spamreport":
            return "complained", None
        case "bounce" if (event["type"] or "bounce") == "bounce":
            return "bounced", why
        case "bounce":  # "blocked": the server did not want this mail; the address is fine
            return "failed", why
        case _ if dropped in _DEAD:
            return "bounced", "SendGrid did not try: mails to this address came back before."
        case _ if dropped in _STOPPED:
            return "failed", OPTED_OUT
        case _:
            return "failed", "SendGrid dropped it."
