"""A log that is only read: entries as they are given, for consumers in the test's own process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from shared.clock import SystemClock
from shared.db import Database
from shared.events.catalog import TOPICS
from shared.events.consumer import Apply, Consumer
from shared.events.envelope import Event
from shared.ids import SystemIds
from shared.log import Entry, Log


class Given:
    """A source of these entries, in their order."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self._next = self._polled = 0

    def poll(self, limit: int) -> list[Entry]:
        found = list(self.entries[self._next : self._next + limit])
        self._polled = self._next + len(found)
        return found

    def commit(self) -> None:
        self._next = self._polled

    def release(self) -> None:
        self._polled = self._next

    def close(self) -> None:
        """Nothing is held."""


def entries(events: Iterable[Event]) -> list[Entry]:
    """The events as they would stand on a log with one partition, a millisecond apart."""
    return [
        Entry(
            event.topic,
            event.key,
            event.value(),
            event.headers(),
            partition=0,
            offset=offset,
            at=event.occurred_at + timedelta(milliseconds=offset),
        )
        for offset, event in enumerate(events)
    ]


def from_zero(log: Log, topics: Sequence[str]) -> list[Entry]:
    """All that a new group would read of these topics."""
    return [entry for topic in topics for entry in log.tail(topic, 1_000_000)]


def compacted(found: Iterable[Entry]) -> list[Entry]:
    """What a compaction leaves of them: of each compacted topic the last record of every key."""
    last: dict[tuple[str, str], Entry] = {}
    kept = []
    for entry in found:
        if TOPICS[entry.topic].compacted:
            last[entry.topic, entry.key] = entry
        else:
            kept.append(entry)
    return [*last.values(), *kept]


def consume(db: Database, group: str, apply: Apply, found: Sequence[Entry], batch: int = 500) -> None:
    """Applies the entries as the service's own consumer does. Nothing may be parked."""
    consumer = Consumer(group, db, Given(found), apply, batch=batch)
    while consumer.run_once():
        pass
    with db.transaction() as tx:
        parked = tx.all("SELECT topic, reason FROM parked")
    assert not parked, parked


def replica(url: str, name: str) -> Database:
    """A database of a service that nobody has filled yet."""
    return Database(url, SystemClock(), SystemIds(), name=f"test-{name}")
