"""The inbox's days come and go, whether or not somebody made them in time."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

from shared.db import Database, Tx
from shared.events import inbox
from shared.events.envelope import Event

TODAY = date(2026, 3, 3)


def _event(day: date | None, at: datetime | None = None) -> Event:
    return Event(
        str(uuid.uuid4()),
        "task.opened",
        "tasks",
        "k",
        1,
        at or datetime(2026, 3, 3, tzinfo=UTC),
        {},
        day=day,
    )


def _partitions(tx: Tx) -> list[str]:
    rows = tx.all(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'inbox'::regclass"
    )
    return sorted(row["name"] for row in rows)


def test_the_coming_week_has_its_partitions_and_old_ones_go(database: Callable[[str], Database]) -> None:
    db = database("reporting")
    inbox.maintain(db, TODAY)
    with db.transaction() as tx:
        names = _partitions(tx)
    assert names[0] == "inbox_20260302" and names[-2] == "inbox_20260310" and names[-1] == "inbox_other"
    inbox.maintain(db, TODAY + timedelta(days=21))
    with db.transaction() as tx:
        assert "inbox_20260303" in _partitions(tx)
    inbox.maintain(db, TODAY + timedelta(days=22))
    with db.transaction() as tx:
        assert "inbox_20260303" not in _partitions(tx)


def test_an_event_of_a_day_without_partition_is_noted_and_moves_when_it_comes(
    database: Callable[[str], Database],
) -> None:
    db = database("reporting")
    early, late = _event(TODAY), _event(TODAY - timedelta(days=400))
    with db.transaction() as tx:
        assert inbox.insert(tx, "reporting", [early, late, early]) == {early.id, late.id}
    inbox.maintain(db, TODAY)
    with db.transaction() as tx:
        assert (
            tx.value("SELECT tableoid::regclass::text FROM inbox WHERE event_id = %s", (early.id,))
            == "inbox_20260303"
        )
        assert inbox.insert(tx, "reporting", [early]) == set()
        assert inbox.insert(tx, "survey", [early]) == {early.id}


def test_an_event_without_a_day_is_noted_under_the_day_it_happened(
    database: Callable[[str], Database],
) -> None:
    db = database("reporting")
    event = _event(None)
    with db.transaction() as tx:
        inbox.insert(tx, "reporting", [event])
        assert tx.value("SELECT day FROM inbox") == TODAY


def test_maintenance_twice_changes_nothing(database: Callable[[str], Database]) -> None:
    db = database("reporting")
    inbox.maintain(db)
    with db.transaction() as tx:
        before = _partitions(tx)
    inbox.maintain(db)
    with db.transaction() as tx:
        assert _partitions(tx) == before
