"""The mailbox for programs: handing messages over, reading them, answering as the customer would."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, jsonify, request
from marshmallow import EXCLUDE, Schema, fields
from marshmallow.validate import Length, OneOf, Regexp

from shared.db import Row
from shared.errors import Invalid, Unauthenticated
from shared.mailbox import store
from shared.mailbox.gate import only_here_or_with_login, poster
from shared.web import Cursor, PageArgs, public, service

bp = Blueprint("mailbox_api", __name__, url_prefix="/mailbox/api")
PHONE = r"\+[1-9][0-9]{6,14}"


class MessageSchema(Schema):
    """A message as `shared.channels.Message` has it; what is new there is not refused here."""

    class Meta:
        unknown = EXCLUDE

    delivery_id = fields.String(required=True, validate=Length(1, 100))
    channel = fields.String(required=True, validate=OneOf(["email", "sms"]))
    to = fields.String(required=True, validate=Length(3, 320))
    to_name = fields.String(load_default="", validate=Length(max=500))
    subject = fields.String(load_default="", validate=Length(max=1000))
    text = fields.String(required=True, validate=Length(1, 500_000))
    html = fields.String(load_default="", validate=Length(max=500_000))
    headers = fields.Dict(keys=fields.String(), values=fields.String(), load_default=dict)
    sender_name = fields.String(load_default="", validate=Length(max=500))
    sender_email = fields.String(load_default="", validate=Length(max=320))
    reply_to = fields.String(load_default="", validate=Length(max=320))


class ReplySchema(Schema):
    """An SMS from a customer's phone."""

    from_ = fields.String(required=True, data_key="from", validate=Regexp(PHONE + r"\Z"))
    text = fields.String(required=True, validate=Length(1, 1600))


class ListArgs(PageArgs):
    """Which messages."""

    to = fields.String(load_default=None, validate=Length(max=320))
    channel = fields.String(load_default=None, validate=OneOf(["email", "sms"]))
    since = fields.AwareDateTime(load_default=None, default_timezone=UTC)


@bp.post("/send")
@public(csrf=False)
def send() -> tuple[Response, int]:
    """Accepts a message; what became of it is told by webhook."""
    given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip().encode()
    keys = [key.hex().encode() for key in service().settings.keys("mailbox-send")]
    if not any(hmac.compare_digest(key, given) for key in keys):
        raise Unauthenticated("The mailbox does not know this key.")
    message = MessageSchema().load(_json())
    if message["channel"] == "sms" and not Regexp(PHONE + r"\Z").regex.match(message["to"]):
        raise Invalid("An SMS goes to a number like +14155550100.", fields={"to": "not a phone number"})
    if message["channel"] == "email" and message["to"].count("@") != 1:
        raise Invalid("A mail goes to an address like ann@example.org.", fields={"to": "not an address"})
    with service().db.transaction() as tx:
        id = store.accept(
            tx,
            {
                **message,
                "recipient": message["to"],
                "recipient_name": message["to_name"],
                "sender": message["sender_email"] or message["sender_name"] or "Hearback",
            },
        )
    poster().wake()
    return jsonify(id=id), 202


@bp.get("/messages")
@public
@only_here_or_with_login
def messages() -> Response:
    """Messages in the order they came. `last` is a cursor behind the last one, to go on from later."""
    args = ListArgs().load(request.args.to_dict())
    after = Cursor.decode(args["cursor"], 1) or [0]
    if not isinstance(after[0], int):
        raise Invalid("This page's cursor belongs to another list.", fields={"cursor": "of another list"})
    with service().db.transaction() as tx:
        rows = store.messages(
            tx,
            to=args["to"],
            channel=args["channel"],
            since=args["since"],
            after=after[0],
            limit=args["limit"] + 1,
        )
    page = rows[: args["limit"]]
    last = Cursor.encode(page[-1]["seq"]) if page else args["cursor"]
    return jsonify(
        messages=[_shown(row) for row in page], next=last if len(rows) > len(page) else None, last=last
    )


@bp.post("/reply")
@public(csrf=False)
@only_here_or_with_login
def reply() -> tuple[Response, int]:
    """Answers by SMS as the customer would. Only JSON is read: no other site's form can send that."""
    given = ReplySchema().load(_json())
    with service().db.transaction() as tx:
        id = store.reply(tx, given["from_"], given["text"])
    poster().wake()
    return jsonify(id=id), 201


def _json() -> Any:
    if not request.is_json:
        raise Invalid("Send JSON (Content-Type: application/json).")
    return request.get_json()


def _shown(row: Row) -> dict[str, Any]:
    at: datetime = row["at"]
    return {
        "id": str(row["id"]),
        "delivery_id": row["delivery_id"],
        "channel": row["channel"],
        "direction": row["direction"],
        "to": row["recipient"],
        "from": row["sender"],
        "subject": row["subject"],
        "text": row["text"],
        "html": row["html"],
        "headers": row["headers"],
        "at": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "status": row["status"],
    }
