"""Which events a consumer has applied, in partitions by day, kept a week longer than the log keeps events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from shared.db import Database, Tx
from shared.events.envelope import Event

KEPT = timedelta(days=14 + 7)
AHEAD = timedelta(days=7)
_LOCK = 0x4842_0002


def insert(tx: Tx, consumer: str, events: Sequence[Event]) -> set[str]:
    """Notes the events as applied by this transaction; returns the ids of those that were not yet.

    Waits for another transaction that is applying one of them right now.
    """
    rows = sorted({(consumer, event.id, event.day or event.occurred_at.date()) for event in events})
    found = tx.values(
        "INSERT INTO inbox (consumer, event_id, day) VALUES %s ON CONFLICT DO NOTHING RETURNING event_id",
        rows,
        template="(%s, %s::uuid, %s)",
        fetch=True,
    )
    return {str(row["event_id"]) for row in found}


def clear(tx: Tx, consumer: str) -> None:
    """Forgets all a consumer has applied: for a rebuild, which applies everything again."""
    tx.execute("DELETE FROM inbox WHERE consumer = %s", (consumer,))


def maintain(db: Database, today: date | None = None) -> None:
    """Makes the partitions of the coming week and drops those past their time; several may call it at once.

    `today` is by default the database's date, as the outbox's `day` is.
    """
    with db.transaction() as tx:
        if not tx.value("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)):
            return
        today = today or tx.value("SELECT current_date")
        there = {
            row["name"]
            for row in tx.all(
                "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'inbox'::regclass"
            )
        }
        wanted = [today + timedelta(days=n) for n in range(-1, AHEAD.days + 1)]
        for day in wanted:
            if _name(day) not in there:
                _make(tx, day)
        oldest = _name(today - KEPT)
        for name in sorted(there - {"inbox_other"}):
            if name < oldest:
                tx.execute(f"DROP TABLE {name}")
        tx.execute("DELETE FROM inbox_other WHERE day < %s", (today - KEPT,))


def _name(day: date) -> str:
    return f"inbox_{day:%Y%m%d}"


def _make(tx: Tx, day: date) -> None:
    # Rows of that day may wait in the rest's partition (nobody made the day's in time): they move along.
    # The lock keeps consumers from adding to them until the new partition is attached.
    name = _name(day)
    tx.execute("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")
    tx.execute(f"CREATE TABLE {name} (LIKE inbox INCLUDING ALL)")
    tx.execute(
        "WITH moved AS (DELETE FROM inbox_other WHERE day = %s RETURNING *)"  # noqa: S608 (made of a date)
        f" INSERT INTO {name} SELECT * FROM moved",
        (day,),
    )
    tx.execute(
        f"ALTER TABLE inbox ATTACH PARTITION {name} FOR VALUES FROM (%s) TO (%s)",
        (day, day + timedelta(days=1)),
    )
