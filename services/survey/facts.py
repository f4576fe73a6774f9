"""Events of what survey owns, made from its rows: the same at first and whenever published again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.survey import store
from services.survey.domain.bands import band
from shared.db import Row, Tx
from shared.events import outbox
from shared.events.outbox import New

# Everything an event about an answer says, but for the answer itself.
ABOUT = f"""i.id AS invitation_id, i.customer_id, i.program_id, p.name AS program_name,
    i.touchpoint, i.channel,
    i.test, {store.ACCOUNT_BLOCK} AS account, c.language, c.time_zone"""
ABOUT_JOINS = """JOIN program p ON p.id = i.program_id JOIN customer c ON c.id = i.customer_id
    LEFT JOIN account a ON a.id = c.account_id"""

RESPONSES = f"""SELECT r.id AS response_id, r.version, r.score, r.comment, r.callback,
    r.answered_at, r.revised_at,
    r.source, r.state, r.state_reason, r.state_by, {ABOUT}
    FROM response r JOIN invitation i ON i.id = r.invitation_id {ABOUT_JOINS}"""  # noqa: S608

_RESPONSE_FIELDS = (
    "response_id", "invitation_id", "customer_id", "program_id", "program_name", "touchpoint", "channel",
    "score", "comment", "callback", "account", "language", "time_zone", "answered_at", "revised_at",
    "source", "state", "test",
)  # fmt: skip


def response(row: Mapping[str, Any]) -> dict[str, Any]:
    """What `response.recorded` and `.revised` say; `row` as `RESPONSES` selects it."""
    return {name: row[name] for name in _RESPONSE_FIELDS} | {"band": band(row["score"])}


def response_event(row: Mapping[str, Any], *, replay: bool = False) -> New:
    """The event of an answer's present version: recorded at first, revised later."""
    kind = "response.recorded" if row["version"] == 1 else "response.revised"
    return New(
        kind, str(row["customer_id"]), row["version"], response(row), replay, occurred_at=row["revised_at"]
    )


def excluded_event(row: Mapping[str, Any], at: datetime, *, replay: bool = False) -> New:
    """The event of an answer taken out of every count, or put back."""
    data = response(row) | {
        "excluded": row["state"] == "excluded",
        "reason": row["state_reason"],
        "by": row["state_by"],
        "at": at,
    }
    return New("response.excluded", str(row["customer_id"]), row["version"], data, replay, occurred_at=at)


# Versions of what happens to an invitation, a delivery: fixed, so that publishing again needs no memory.
SENT, EXPIRED = 1, 2
DELIVERED, NOT_DELIVERED, COMPLAINED = 1, 2, 3


def invitation_sent(row: Mapping[str, Any], *, replay: bool = False) -> New:
    """`row` as `INVITATIONS` selects it."""
    names = (
        "invitation_id", "customer_id", "program_id", "program_name", "touchpoint", "channel", "account_id",
        "delivery_id", "created_at", "sent_at", "expires_at", "test",
    )  # fmt: skip
    data = {name: row[name] for name in names}
    return New("invitation.sent", str(row["customer_id"]), SENT, data, replay, occurred_at=row["sent_at"])


INVITATIONS = """SELECT i.id AS invitation_id, i.customer_id, i.program_id, p.name AS program_name,
    i.touchpoint,
    i.channel, c.account_id, d.id AS delivery_id, i.created_at, i.sent_at, i.expires_at, i.test, i.state
    FROM invitation i JOIN program p ON p.id = i.program_id JOIN customer c ON c.id = i.customer_id
    JOIN LATERAL (SELECT id FROM delivery WHERE ref_id = i.id AND kind = 'invitation'
                  ORDER BY handed_at DESC NULLS LAST LIMIT 1) d ON true"""


def invitation_expired(row: Mapping[str, Any], *, replay: bool = False) -> New:
    """`row` has invitation_id, customer_id, expires_at."""
    data = {"invitation_id": row["invitation_id"], "customer_id": row["customer_id"], "at": row["expires_at"]}
    return New(
        "invitation.expired", str(row["customer_id"]), EXPIRED, data, replay, occurred_at=row["expires_at"]
    )


SKIPS = """SELECT s.id AS skip_id, s.invitation_id, s.customer_id, s.program_id, p.name AS program_name,
    s.touchpoint, c.account_id, s.reason, s.at
    FROM skip s JOIN program p ON p.id = s.program_id JOIN customer c ON c.id = s.customer_id"""


def skipped(row: Mapping[str, Any], *, replay: bool = False) -> New:
    """`row` as `SKIPS` selects it."""
    names = (
        "skip_id", "invitation_id", "customer_id", "program_id", "program_name", "touchpoint",
        "account_id", "reason", "at",
    )  # fmt: skip
    data = {name: row[name] for name in names}
    return New("invitation.skipped", str(row["customer_id"]), 1, data, replay, occurred_at=row["at"])


def delivery_reported(
    delivery: Mapping[str, Any], state: str, reason: str | None, at: datetime, *, replay: bool = False
) -> New:
    """`delivery` has id, kind, ref_id, customer_id, channel; `state` is what became of it."""
    version = {"delivered": DELIVERED, "complained": COMPLAINED}.get(state, NOT_DELIVERED)
    data = {name: delivery[name] for name in ("kind", "ref_id", "customer_id", "channel")} | {
        "delivery_id": delivery["id"],
        "state": state,
        "reason": reason,
        "at": at,
    }
    return New("delivery.reported", str(delivery["customer_id"]), version, data, replay, occurred_at=at)


def message_received(row: Mapping[str, Any], *, replay: bool = False) -> New:
    """`row` is one of `inbound`, with the customer's account_id."""
    data = {name: row[name] for name in ("customer_id", "account_id", "channel", "text", "at")} | {
        "message_id": row["id"]
    }
    return New("message.received", str(row["customer_id"]), 1, data, replay, occurred_at=row["at"])


def program_changed(row: Mapping[str, Any], *, replay: bool = False) -> New:
    """`row` is one of `program`."""
    names = ("id", "name", "touchpoint", "channels", "wording", "answer_days", "state")
    return New("program.changed", str(row["id"]), row["version"], {name: row[name] for name in names}, replay)


UNCONFIRMED = f"""SELECT k.score, k.at AS clicked_at, {ABOUT}
    FROM click k JOIN invitation i ON i.id = k.invitation_id {ABOUT_JOINS}"""  # noqa: S608


def unconfirmed(row: Mapping[str, Any], *, replay: bool = False) -> New:
    """`row` as `UNCONFIRMED` selects it."""
    names = (
        "invitation_id", "customer_id", "program_id", "program_name", "touchpoint", "channel", "account",
        "score",
        "clicked_at",
    )  # fmt: skip
    data = {name: row[name] for name in names} | {"band": band(row["score"])}
    return New("response.unconfirmed", str(row["customer_id"]), 1, data, replay)


def publish(tx: Tx, events: Sequence[New]) -> None:
    """Appends `events`; the caller holds the locks of their keys' rows."""
    if events:
        outbox.append_many(tx, events)


def lock_customers(tx: Tx, ids: Sequence[str]) -> list[Row]:
    """Locks customers in sorted order, for publishing under their keys; returns those that exist."""
    return tx.all(
        "SELECT id FROM customer WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE",
        (sorted(set(ids)),),
    )
