"""Events a consumer could not apply, set aside with the later ones of their key: shown, replayed, dropped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.db import Database, Tx, is_transient, storable
from shared.events.catalog import TYPES
from shared.events.envelope import Event
from shared.log import Entry

Apply = Callable[[Tx, Sequence[Event]], None]


class Undecodable(Exception):
    """A record that is no event."""


class UnknownType(Exception):
    """An event of a type that only a newer version of the program knows."""


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """A key that waits: how many events, since when, and why the first could not be applied."""

    consumer: str
    topic: str
    key: str
    since: datetime
    events: int
    reason: str


@dataclass(frozen=True, slots=True)
class ParkedEvent:
    """One parked record as it was read; `attempts` is 0 when it only waits behind an earlier one."""

    id: int
    partition: int
    offset: int
    value: bytes | None
    headers: Mapping[str, str]
    reason: str
    parked_at: datetime
    attempts: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did: events applied, events still parked, and why it stopped, if it did."""

    applied: int
    left: int
    reason: str | None = None


def keys(db: Database, *, limit: int | None = 1000) -> list[ParkedKey]:
    """The parked keys, oldest first."""
    with db.transaction() as tx:
        rows = tx.all(
            """SELECT k.consumer, k.topic, k.key, k.parked_at AS since, c.events, c.reason
            FROM parked_key k CROSS JOIN LATERAL (
                SELECT count(*) AS events, (array_agg(p.reason ORDER BY p.id))[1] AS reason FROM parked p
                WHERE p.consumer = k.consumer AND p.topic = k.topic AND p.key = k.key
            ) c ORDER BY k.parked_at, k.topic, k.key LIMIT %s""",
            (limit,),
        )
    return [ParkedKey(**row) for row in rows]


def count(tx: Tx) -> int:
    """How many keys are parked in this service."""
    return int(tx.value("SELECT count(*) FROM parked_key"))


def show(db: Database, consumer: str, topic: str, key: str) -> list[ParkedEvent]:
    """The parked events of one key in their order."""
    with db.transaction() as tx:
        rows = tx.all(
            """SELECT id, "partition", "offset", value, headers, reason, parked_at, attempts FROM parked
            WHERE consumer = %s AND topic = %s AND key = %s ORDER BY id""",
            (consumer, topic, key),
        )
    return [_parked(row) for row in rows]


def replay(db: Database, consumer: str, topic: str, key: str, apply: Apply) -> Replayed:
    """Applies a key's parked events in their order, each in its own transaction; the consumer may be running.

    Stops at the first that cannot be applied, which stays parked with its new reason. The key is free in
    the transaction that applies its last event. Raises transient errors; what was applied stays applied.
    """
    applied = 0
    while True:
        event_row: dict[str, Any] | None = None
        try:
            with db.transaction() as tx:
                if not lock(tx, consumer, {(topic, key)}):
                    return Replayed(applied, 0)
                rows = tx.all(
                    """SELECT id, value, headers FROM parked WHERE consumer = %s AND topic = %s AND key = %s
                    ORDER BY id LIMIT 2""",
                    (consumer, topic, key),
                )
                if rows:
                    event_row = rows[0]
                    event = decode(topic, key, _bytes(rows[0]["value"]), json.loads(rows[0]["headers"]))
                    check_type(event)
                    apply(tx, [event])
                    tx.execute("DELETE FROM parked WHERE id = %s", (rows[0]["id"],))
                if len(rows) < 2:
                    _free(tx, consumer, topic, key)
            applied += event_row is not None
            if len(rows) < 2:
                return Replayed(applied, 0)
        except Exception as error:
            if is_transient(error) or event_row is None:
                raise
            return Replayed(
                applied, _failed(db, consumer, topic, key, event_row["id"], error), reason_of(error)
            )


def replay_newer(db: Database, consumer: str, apply: Apply) -> None:
    """Replays the keys that wait because an older version did not know the type of an event, and we do."""
    with db.transaction() as tx:
        rows = tx.all(
            """SELECT k.topic, k.key, first.headers FROM parked_key k CROSS JOIN LATERAL (
                SELECT reason, headers FROM parked p
                WHERE p.consumer = k.consumer AND p.topic = k.topic AND p.key = k.key ORDER BY id LIMIT 1
            ) first WHERE k.consumer = %s AND first.reason LIKE %s ORDER BY k.parked_at, k.topic, k.key""",
            (consumer, f"{UnknownType.__name__}:%"),
        )
    for row in rows:
        if json.loads(row["headers"])["type"] in TYPES:
            replay(db, consumer, row["topic"], row["key"], apply)


def discard(db: Database, consumer: str, topic: str, key: str) -> int:
    """Drops a key's parked events unapplied; returns how many. For records that can never be applied."""
    with db.transaction() as tx:
        lock(tx, consumer, {(topic, key)})
        events = tx.execute(
            "DELETE FROM parked WHERE consumer = %s AND topic = %s AND key = %s", (consumer, topic, key)
        )
        _free(tx, consumer, topic, key)
    return events


def lock(tx: Tx, consumer: str, wanted: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Locks those of the given (topic, key) that are parked, in sorted order, and returns them.

    Who applies events of a key holds this lock when it is parked: the consumer, a replay.
    """
    if not wanted:
        return set()
    topics, names = zip(*sorted(wanted), strict=True)
    rows = tx.all(
        """SELECT topic, key FROM parked_key WHERE consumer = %s AND key = ANY(%s)
        AND (topic, key) IN (SELECT * FROM unnest(%s::text[], %s::text[])) ORDER BY topic, key FOR UPDATE""",
        (consumer, list(names), list(topics), list(names)),
    )
    return {(row["topic"], row["key"]) for row in rows}


def new_keys_since(tx: Tx, consumer: str, since: datetime) -> int:
    """How many keys this consumer parked after `since`."""
    return int(
        tx.value("SELECT count(*) FROM parked_key WHERE consumer = %s AND parked_at > %s", (consumer, since))
    )


def park(tx: Tx, consumer: str, entries: Sequence[Entry], reason: str, *, attempts: int) -> None:
    """Sets records aside in their order, and their keys with them."""
    tx.values(
        "INSERT INTO parked_key (consumer, topic, key, parked_at) VALUES %s ON CONFLICT DO NOTHING",
        sorted({(consumer, entry.topic, storable(entry.key), tx.now) for entry in entries}),
    )
    tx.values(
        """INSERT INTO parked (consumer, topic, key, "partition", "offset", value, headers, reason,
            parked_at, attempts) VALUES %s""",
        [
            (
                consumer,
                entry.topic,
                storable(entry.key),
                entry.partition,
                entry.offset,
                entry.value,
                json.dumps(dict(entry.headers)),
                reason,
                tx.now,
                attempts,
            )
            for entry in entries
        ],
    )


def forget(tx: Tx, key: str) -> None:
    """Deletes whatever is parked for an erased customer, in every topic that is keyed by customer."""
    tx.execute("DELETE FROM parked_key WHERE key = %s", (key,))


def reason_of(error: BaseException) -> str:
    """One line on what went wrong, for the person who looks at the parked event; never for a log line."""
    lines = str(error).strip().splitlines()
    return storable(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)[:500]


def check_type(event: Event) -> None:
    """Raises `UnknownType` for an event that this version cannot even tell whether it concerns it."""
    if event.type not in TYPES:
        raise UnknownType(f"this version knows no {event.type!r}; one that does will apply it by itself")


def decode(topic: str, key: str, value: bytes | None, headers: Mapping[str, str]) -> Event:
    """The event in a record. Raises `Undecodable`, whatever is wrong with it."""
    try:
        event = Event.from_record(topic, key, value, headers)
        if event.data is not None and not isinstance(event.data, dict):
            raise ValueError("the value is no object")
        if not -(2**63) <= event.version < 2**63:
            raise ValueError("the version is no 64-bit number")
        if event.occurred_at.tzinfo is None:
            raise ValueError("occurred_at has no time zone")
        return event
    except Exception as error:
        raise Undecodable(f"not an event ({type(error).__name__})") from error


def _free(tx: Tx, consumer: str, topic: str, key: str) -> None:
    tx.execute(
        "DELETE FROM parked_key WHERE consumer = %s AND topic = %s AND key = %s", (consumer, topic, key)
    )


def _failed(db: Database, consumer: str, topic: str, key: str, row: int, error: BaseException) -> int:
    with db.transaction() as tx:
        tx.execute(
            "UPDATE parked SET reason = %s, attempts = attempts + 1 WHERE id = %s", (reason_of(error), row)
        )
        return int(
            tx.value(
                "SELECT count(*) FROM parked WHERE consumer = %s AND topic = %s AND key = %s",
                (consumer, topic, key),
            )
        )


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _parked(row: Mapping[str, Any]) -> ParkedEvent:
    return ParkedEvent(**{**row, "value": _bytes(row["value"]), "headers": json.loads(row["headers"])})
