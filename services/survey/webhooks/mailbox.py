"""The mailbox's webhooks: one event each, signed over timestamp and raw body."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, jsonify, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate, validates_schema

from services.survey.webhooks import effects
from shared.channels import mailbox
from shared.errors import Invalid
from shared.web import body_limit, public, service

bp = Blueprint("mailbox_webhooks", __name__)


class MailboxEvent(Schema):
    """One event of the mailbox; a report is about `delivery_id`, an inbound text is `from` somebody."""

    class Meta:
        unknown = EXCLUDE

    id = fields.String(required=True, validate=validate.Length(1, 200))
    type = fields.String(required=True)
    delivery_id = fields.String(load_default="", allow_none=True)
    sender = fields.String(data_key="from", load_default="", allow_none=True)
    text = fields.String(load_default="", allow_none=True)
    reason = fields.String(load_default=None, allow_none=True)
    at = fields.AwareDateTime(required=True, default_timezone=UTC)

    @validates_schema
    def complete(self, data: dict[str, Any], **_: Any) -> None:
        """An inbound text has a sender."""
        if data.get("type") == "inbound" and not data.get("sender"):
            raise ValidationError("who sent it?", "from")


_EVENT = MailboxEvent()
REPORTS = ("delivered", "bounced", "failed", "complained")


@bp.post("/webhooks/mailbox")
@public(csrf=False)
@body_limit(65_536)
def mailbox_event() -> Response:
    """Takes in one event; a repetition is answered like the first and does nothing.

    A forged, stale or truncated one is refused and changes nothing. The reply is empty (204), or says of a
    STOP that one message was already on its way: `{"on_its_way": true}`.
    """
    here = service()
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
    except (ValidationError, ValueError) as error:
        raise Invalid("This event cannot be read.", slug="bad-event") from error
    at: datetime = min(event["at"].astimezone(UTC), here.clock.now())
    if event["type"] == "inbound":
        if effects.text("mailbox", event["id"], event["sender"], event["text"] or "", at):
            return jsonify(on_its_way=True)
    elif event["type"] in REPORTS:
        effects.fate("mailbox", event["id"], event["delivery_id"] or "", event["type"], event["reason"], at)
    return Response(status=204)
