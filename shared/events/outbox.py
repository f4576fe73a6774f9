"""Appends events to the outbox, in the transaction that changes the state they report.

How a command must lock. Events of one key travel in the order of their outbox ids, and ids are drawn
when the row is inserted. So a command first locks the row *of the event's key* (the customer's for an
answer, not the invitation's) with a statement of its own, an UPDATE or `SELECT … FOR NO KEY UPDATE`,
and only then calls `append`: whoever waits for the lock draws a later id, and the version comes from
that statement's RETURNING. Never put both into one statement with independent CTEs: the insert's would
draw its id before the other waits for the lock. Several keys are locked in sorted order.
"""

from __future__ import annotations

import hashlib
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.db import Statement, Tx
from shared.events import catalog, parking
from shared.events.catalog import BadEvent
from shared.events.envelope import encode
from shared.events.fields import plain
from shared.ids import as_uuid

NAMESPACE = uuid.UUID("8f6c1d0e-6f0b-5f4e-9f3a-7c1d5b2a9e10")
SHARDS = 4
_COLUMNS = {
    "shard": "smallint", "topic": "text", "key": "text", "event_id": "uuid", "type": "text",
    "version": "bigint", "occurred_at": "timestamptz", "data": "text", "replay": "boolean", "trace": "text",
}  # fmt: skip
_VALUES = ", ".join(f"%({name})s" for name in _COLUMNS)
_INSERT = Statement(f"INSERT INTO outbox ({', '.join(_COLUMNS)}) VALUES ({_VALUES})")  # noqa: S608 (names from above)


@dataclass(frozen=True, slots=True)
class New:
    """An event to append; what the fields mean is said at `append`."""

    type: str
    key: str
    version: int
    data: Mapping[str, Any] | None
    replay: bool = False
    event_id: str | None = None
    occurred_at: datetime | None = None
    aggregate: str | None = None
    trace: str = ""


def append(
    tx: Tx,
    type: str,
    key: str,
    version: int,
    data: Mapping[str, Any] | None,
    *,
    replay: bool = False,
    event_id: str | None = None,
    occurred_at: datetime | None = None,
    aggregate: str | None = None,
    trace: str = "",
) -> str:
    """Appends one event and returns its id; the caller holds the lock of the key's row (see above).

    The id follows from topic, aggregate and version, so the same state published again has the same.
    `aggregate` is what `version` counts: by default what the catalog says, else the key. `occurred_at`
    is by default the transaction's instant. Instants, ids and decimals in `data` become text.
    Raises `BadEvent` for an unknown type, for data its schema refuses, and above 256 kB.
    """
    new = New(type, key, version, data, replay, event_id, occurred_at, aggregate, trace)
    return append_many(tx, [new])[0]


def append_many(tx: Tx, events: Sequence[New | tuple[Any, ...]]) -> list[str]:
    """Appends events in their order; a tuple is `(type, key, version, data, …)` as in `New`."""
    rows = [_row(tx, event if isinstance(event, New) else New(*event)) for event in events]
    if not rows:
        return []
    if len(rows) == 1:
        tx.later(_INSERT, dict(zip(_COLUMNS, rows[0], strict=True)))
    else:
        tx.add("outbox", _COLUMNS, rows)
    return [row[3] for row in rows]


def erase(tx: Tx, key: str, version: int) -> str:
    """Publishes a customer's erasure: `customer.changed` without a value; forgets what is parked for them.

    The caller holds the lock of the customer's row and puts the id into `erased`.
    """
    parking.forget(tx, key)
    return append(tx, "customer.changed", key, version, None)


def event_id(topic: str, aggregate: str, version: int) -> str:
    """The id of the event that reports `version` of `aggregate`."""
    # A UUID version 5 (RFC 9562, 5.5), as `uuid.uuid5` makes it in three times the time.
    raw = bytearray(
        hashlib.sha1(
            NAMESPACE.bytes + f"{topic}|{aggregate}|{version}".encode(), usedforsecurity=False
        ).digest()[:16]
    )
    raw[6], raw[8] = raw[6] & 0x0F | 0x50, raw[8] & 0x3F | 0x80
    return as_uuid(bytes(raw))


def shard_of(key: str) -> int:
    """The outbox shard of a key: CRC-32 of its UTF-8 bytes, modulo the number of shards."""
    return zlib.crc32(key.encode()) % SHARDS


def _aggregate(new: New) -> str:
    if new.aggregate is not None:
        return new.aggregate
    kind = catalog.event_type(new.type)
    return new.key if kind.aggregate is None or new.data is None else kind.aggregate(new.data)


def _row(tx: Tx, new: New) -> tuple[Any, ...]:
    kind = catalog.event_type(new.type)
    topic = kind.topic.name
    if not new.key:
        raise BadEvent(f"{new.type} needs a key.")
    text: str | None = None
    if new.data is None:
        if topic != "customers":
            raise BadEvent(f"{new.type} needs data: only a customer is erased.")
    else:
        data = plain(new.data)
        catalog.check(kind, data)
        value = encode(data)
        if len(value) > catalog.MAX_BYTES:
            raise BadEvent(
                f"{new.type} has {len(value):,} bytes; an event has at most {catalog.MAX_BYTES:,}."
            )
        text = value.decode()
    return (
        shard_of(new.key),
        topic,
        new.key,
        new.event_id or event_id(topic, _aggregate(new), new.version),
        new.type,
        new.version,
        new.occurred_at or tx.now,
        text,
        new.replay,
        new.trace,
    )
