"""What the mailbox keeps: messages in the order they came, and webhooks still to be posted."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from psycopg2.extras import Json

from shared.db import Row, Tx
from shared.ids import first_at

# Any number of the mailbox's own: whoever appends holds this lock, so that a reader who follows by
# number never sees a later message before an earlier one.
_LOCK = 0x6D61_696C
# As long as the log keeps events: of somebody who was erased no word is left here either, then.
KEPT = timedelta(days=14)


def accept(tx: Tx, message: Mapping[str, Any]) -> str:
    """Keeps a message to a customer and decides what is reported of it; returns its id.

    An address whose local part contains "bounce" bounces, one with "complain" complains after delivery.
    """
    id = _append(tx, {**message, "direction": "out"})
    local = str(message["recipient"]).partition("@")[0].casefold() if message["channel"] == "email" else ""
    if "bounce" in local:
        report(tx, id, "bounced", "550 5.1.1 There is no such mailbox.")
        return id
    report(tx, id, "delivered")
    if "complain" in local:
        report(tx, id, "complained", "Marked as spam by the recipient.", after=timedelta(seconds=1))
    return id


def reply(tx: Tx, phone: str, text: str) -> str:
    """Keeps an SMS from a customer's phone, to whoever wrote to it last; returns its id."""
    sender = tx.value(
        "SELECT sender FROM mailbox.message WHERE channel = 'sms' AND direction = 'out' AND recipient = %s"
        " ORDER BY seq DESC LIMIT 1",
        (phone,),
    )
    id = _append(
        tx,
        {
            "channel": "sms",
            "direction": "in",
            "recipient": sender or "Hearback",
            "sender": phone,
            "text": text,
        },
    )
    post_later(
        tx,
        {
            "type": "inbound",
            "channel": "sms",
            "message_id": id,
            "from": phone,
            "to": sender or "Hearback",
            "text": text,
        },
        tx.now,
    )
    return id


def report(tx: Tx, id: str, status: str, reason: str | None = None, after: timedelta = timedelta()) -> None:
    """Notes what became of a message, and has it told to its sender."""
    row = tx.one(
        "UPDATE mailbox.message SET status = %s WHERE id = %s AND direction = 'out'"
        " RETURNING delivery_id, channel, recipient",
        (status, id),
    )
    if row is None or not row["delivery_id"]:
        return
    body = {
        "type": status,
        "channel": row["channel"],
        "message_id": id,
        "delivery_id": row["delivery_id"],
        "to": row["recipient"],
    }
    post_later(tx, body | ({"reason": reason} if reason else {}), tx.now + after)


def post_later(tx: Tx, body: Mapping[str, Any], due_at: datetime) -> None:
    """Queues a webhook; its id is its own, and stays the same however often it is posted."""
    id = tx.ids.new()
    at = due_at.isoformat().replace("+00:00", "Z")
    tx.execute(
        "INSERT INTO mailbox.webhook (id, body, due_at) VALUES (%s, %s, %s)",
        (id, Json({"id": id, **body, "at": at}), due_at),
    )


def messages(
    tx: Tx,
    *,
    to: str | None = None,
    channel: str | None = None,
    since: datetime | None = None,
    after: int = 0,
    limit: int = 50,
) -> list[Row]:
    """Messages in the order they came, those after number `after`; `to` also finds what came *from* there."""
    return tx.all(
        "SELECT * FROM mailbox.message WHERE seq > %(after)s"
        " AND (%(to)s::text IS NULL OR lower(recipient) = lower(%(to)s)"
        "  OR (direction = 'in' AND sender = %(to)s))"
        " AND (%(channel)s::text IS NULL OR channel = %(channel)s)"
        " AND (%(since)s::timestamptz IS NULL OR at >= %(since)s)"
        " ORDER BY seq LIMIT %(limit)s",
        {"to": to, "channel": channel, "since": since, "after": after, "limit": limit},
    )


def mails(tx: Tx, *, address: str | None, before: int | None, limit: int) -> list[Row]:
    """Mails newest first, with the beginning of their text; `address` is a part of the recipient's."""
    return tx.all(
        "SELECT seq, id, recipient, sender, sender_name, subject, left(text, 600) AS preview,"
        "  at, read_at, status"
        " FROM mailbox.message WHERE channel = 'email'"
        " AND (%(address)s::text IS NULL OR strpos(lower(recipient), lower(%(address)s)) > 0)"
        " AND (%(before)s::bigint IS NULL OR seq < %(before)s)"
        " ORDER BY seq DESC LIMIT %(limit)s",
        {"address": address, "before": before, "limit": limit},
    )


def threads(tx: Tx, *, address: str | None, limit: int = 100) -> list[Row]:
    """SMS conversations, the one with the newest message first, out of the last few thousand messages."""
    return tx.all(
        "WITH recent AS (SELECT *, CASE direction WHEN 'in' THEN sender ELSE recipient END AS phone"
        "  FROM mailbox.message WHERE channel = 'sms' ORDER BY seq DESC LIMIT 5000),"
        " newest AS (SELECT DISTINCT ON (phone) * FROM recent"
        "  WHERE %(address)s::text IS NULL OR strpos(phone, %(address)s) > 0 ORDER BY phone, seq DESC)"
        " SELECT *, left(text, 600) AS preview FROM newest ORDER BY seq DESC LIMIT %(limit)s",
        {"address": address, "limit": limit},
    )


def thread(tx: Tx, phone: str, limit: int = 200) -> list[Row]:
    """One phone's SMS, oldest first; they count as read."""
    tx.execute(
        "UPDATE mailbox.message SET read_at = %s"
        " WHERE channel = 'sms' AND recipient = %s AND read_at IS NULL",
        (tx.now, phone),
    )
    rows = tx.all(
        "SELECT * FROM mailbox.message WHERE channel = 'sms' AND"
        " ((direction = 'out' AND recipient = %s) OR (direction = 'in' AND sender = %s))"
        " ORDER BY seq DESC LIMIT %s",
        (phone, phone, limit),
    )
    return rows[::-1]


def message(tx: Tx, id: str) -> Row | None:
    """One message, or None."""
    return tx.one("SELECT * FROM mailbox.message WHERE id = %s", (id,))


def mark_read(tx: Tx, id: str) -> None:
    """The mail was opened."""
    tx.execute("UPDATE mailbox.message SET read_at = %s WHERE id = %s AND read_at IS NULL", (tx.now, id))


def counts(tx: Tx) -> Row:
    """How much there is, unread, and how many webhooks did not get through yet."""
    row = tx.one(
        "SELECT (SELECT count(*) FROM mailbox.message WHERE channel = 'email' AND direction = 'out'"
        "  AND read_at IS NULL) AS mails,"
        " (SELECT count(*) FROM mailbox.message"
        "  WHERE channel = 'sms' AND direction = 'out' AND read_at IS NULL) AS texts,"
        " (SELECT count(*) FROM mailbox.webhook WHERE attempts > 1) AS late"
    )
    return row or {}


def due_webhooks(tx: Tx, limit: int, lease: timedelta) -> list[Row]:
    """Takes webhooks that are due, for as long as `lease`; whoever dies with one leaves it to others."""
    return tx.all(
        "UPDATE mailbox.webhook SET due_at = %s, attempts = attempts + 1 WHERE id IN"
        " (SELECT id FROM mailbox.webhook WHERE due_at <= %s ORDER BY due_at, id LIMIT %s"
        "  FOR UPDATE SKIP LOCKED)"
        " RETURNING id, body, attempts",
        (tx.now + lease, tx.now, limit),
    )


def webhook_done(tx: Tx, id: str) -> None:
    """It was taken."""
    tx.execute("DELETE FROM mailbox.webhook WHERE id = %s", (id,))


def webhook_failed(tx: Tx, id: str, due_at: datetime | None, error: str) -> None:
    """It was not taken; tried again at `due_at`, or never when that is None."""
    tx.execute(
        "UPDATE mailbox.webhook SET due_at = coalesce(%s, 'infinity'), last_error = %s WHERE id = %s",
        (due_at, error, id),
    )


def forget(tx: Tx, limit: int) -> int:
    """Drops up to `limit` messages that were taken more than `KEPT` ago, and webhooks given up since.

    The ids tell the age: `at` may be a played history's. Returns how many messages went.
    """
    before = first_at(tx.now - KEPT)
    tx.execute("DELETE FROM mailbox.webhook WHERE id < %s", (before,))
    return tx.execute(
        "DELETE FROM mailbox.message WHERE id IN"
        " (SELECT id FROM mailbox.message WHERE id < %s ORDER BY id LIMIT %s)",
        (before, limit),
    )


def _append(tx: Tx, message: Mapping[str, Any]) -> str:
    id = tx.ids.new()
    tx.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    tx.execute(
        "INSERT INTO mailbox.message (id, delivery_id, channel, direction, recipient, recipient_name, sender,"
        " sender_name, reply_to, subject, text, html, headers, at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            id,
            message.get("delivery_id"),
            message["channel"],
            message["direction"],
            message["recipient"],
            message.get("recipient_name"),
            message["sender"],
            message.get("sender_name"),
            message.get("reply_to"),
            message.get("subject"),
            message["text"],
            message.get("html"),
            Json(dict(message.get("headers") or {})),
            tx.now,
        ),
    )
    return id
