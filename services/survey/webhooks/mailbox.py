"""The mailbox's webhook: what became of a message, and what a customer wrote back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, jsonify, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema

from services.survey.commands import settle
from services.survey.edge import opt_out_fingerprints
from services.survey.webhooks.fields import Remark, Text
from services.survey.webhooks.once import fresh, text
from shared.channels import mailbox
from shared.errors import Invalid, NotFound
from shared.web import body_limit, public, service


class MailboxEvent(Schema):
    """One event of the mailbox; a report is about `delivery_id`, an inbound text is `from` somebody."""

    class Meta:
        unknown = EXCLUDE

    id = Text(required=True, validate=validate.Length(1, 200))
    type = fields.String(required=True)
    delivery_id = fields.String(load_default="", allow_none=True)
    sender = Text(data_key="from", load_default="", allow_none=True)
    text = Text(load_default="", allow_none=True)
    reason = Remark(load_default=None, allow_none=True)
    at = fields.AwareDateTime(required=True, default_timezone=UTC)

    @validates_schema
    def complete(self, data: dict[str, Any], **_: Any) -> None:
        """An inbound text has a sender."""
        if data.get("type") == "inbound" and not data.get("sender"):
            raise ValidationError("who sent it?", "from")


_EVENT = MailboxEvent()
REPORTS = ("delivered", "bounced", "failed", "complained")


def register(bp: Blueprint) -> None:
    """Adds the route."""
    bp.add_url_rule("/webhooks/mailbox", view_func=mailbox_event, methods=["POST"])


@public(csrf=False)
@body_limit(65_536)
def mailbox_event() -> Response:
    """Takes in one event; a repetition is answered like the first and does nothing.

    A forged, stale or truncated one is refused and changes nothing. The reply is empty (204), or says of a
    STOP that one message was already on its way: `{"on_its_way": true}`.
    """
    here = service()
    if not here.settings.uses_mailbox:
        raise NotFound("There is no such page.")
    body = request.get_data(cache=False)
    headers = request.headers
    mailbox.verify(
        here.settings,
        headers.get(mailbox.TIMESTAMP_HEADER),
        headers.get(mailbox.SIGNATURE_HEADER),
        body,
        here.clock.now(),
    )
    try:
        event = _EVENT.loads(body.decode())
    except (ValidationError, ValueError, RecursionError) as error:
        raise Invalid("This event cannot be read.", slug="bad-event") from error
    at: datetime = min(event["at"].astimezone(UTC), here.clock.now())
    if event["type"] == "inbound":
        if text("mailbox", event["id"], event["sender"], event["text"] or "", at):
            return jsonify(on_its_way=True)
    elif event["type"] in REPORTS:
        with here.db.transaction() as tx:
            if fresh(tx, "mailbox", event["id"]):
                report = (event["delivery_id"] or "", event["type"], event["reason"], at)
                settle.report(tx, *report, opt_out_fingerprints())
    return Response(status=204)
