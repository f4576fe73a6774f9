"""SendGrid's event webhook: a batch of events in JSON, signed as a whole."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, request
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from services.survey.commands.settle import Report
from services.survey.webhooks import effects
from shared.channels import sendgrid
from shared.errors import Invalid
from shared.web import body_limit, public, service

bp = Blueprint("sendgrid_webhooks", __name__)

# What its events mean here; the others (processed, deferred, open, click, …) say nothing final.
STATES: dict[str, Report] = {
    "delivered": "delivered",
    "bounce": "bounced",
    "dropped": "failed",
    "spamreport": "complained",
}


class SendGridEvent(Schema):
    """One event; `delivery_id` is our custom argument, which other applications' mails do not have."""

    class Meta:
        unknown = EXCLUDE

    event = fields.String(required=True)
    sg_event_id = fields.String(required=True, validate=validate.Length(1, 200))
    delivery_id = fields.String(load_default="", allow_none=True)
    timestamp = fields.Integer(required=True, validate=validate.Range(0, 2**33))
    # 'blocked': the server turned it away this time; only 'bounce' says that the address is dead.
    type = fields.String(load_default="", allow_none=True)


_EVENTS = SendGridEvent(many=True)


@bp.post("/webhooks/sendgrid")
@public(csrf=False)
@body_limit(5_242_880)
def events() -> Response:
    """Takes in a batch; each event has its effect once, however often it comes.

    An unsigned, forged, stale or truncated batch is refused and changes nothing.
    """
    effects.only_when_chosen("sendgrid")
    here = service()
    key = here.settings.sendgrid
    assert key is not None  # noqa: S101 (it is chosen)
    body = request.get_data(cache=False)
    headers = request.headers
    sendgrid.verify(
        key,
        headers.get(sendgrid.TIMESTAMP_HEADER),
        headers.get(sendgrid.SIGNATURE_HEADER),
        body,
        here.clock.now(),
    )
    try:
        batch: list[dict[str, Any]] = _EVENTS.loads(body.decode())
    except (ValidationError, ValueError, TypeError) as error:
        raise Invalid("These events cannot be read.", slug="bad-event") from error
    now = here.clock.now()
    for event in batch:
        state = STATES.get(event["event"])
        if state is None or not event["delivery_id"]:
            continue
        if state == "bounced" and event["type"] == "blocked":
            state = "failed"
        at = min(datetime.fromtimestamp(event["timestamp"], UTC), now)
        # Its own words about the reason may repeat the address.
        effects.fate("sendgrid", event["sg_event_id"], event["delivery_id"], state, event["event"], at)
    return Response(status=204)
