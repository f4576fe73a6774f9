"""Applies events exactly once: inbox and effects in one transaction, then the offset; poison is set aside."""

from __future__ import annotations

import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg2.errors import QueryCanceled, UndefinedColumn, UndefinedTable

from shared.db import Database, Tx, is_transient, storable
from shared.errors import HearbackError
from shared.events import inbox, parking
from shared.events.envelope import Event
from shared.events.parking import Apply, Undecodable
from shared.faults import crash_at
from shared.log import Entry, Source

__all__ = ["Apply", "Consumer", "Handler", "MassParking", "by_type"]

Handler = Callable[[Tx, Event], None]

BATCH = 500
# More new parked keys than this within the window are a bug of ours, not poison.
PARK_LIMIT = 20
PARK_WINDOW = timedelta(minutes=1)
# A statement that ran out of time is tried again: the machine may be busy. The third time it is the event.
TIMEOUTS = 3

# The tables are those of another version, amid an upgrade perhaps: no event is to blame.
_OTHER_TABLES = (UndefinedColumn, UndefinedTable)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class MassParking(HearbackError):
    """Too many keys would be parked at once: the consumer has to stop and somebody has to look."""

    slug = "mass-parking"


def by_type(handlers: Mapping[str, Handler]) -> Apply:
    """Applies each event by the handler of its type; other types are none of this service's business."""

    def apply(tx: Tx, events: Sequence[Event]) -> None:
        for event in events:
            handler = handlers.get(event.type)
            if handler is not None:
                handler(tx, event)

    return apply


@dataclass(frozen=True, slots=True)
class _Item:
    entry: Entry
    event: Event


class Consumer:
    """One consumer of `group`; for one thread, like its source.

    `apply` handles one batch within one transaction; whatever it raises is permanent unless
    `shared.db.is_transient` says otherwise.
    """

    def __init__(
        self,
        group: str,
        db: Database,
        source: Source,
        apply: Apply,
        *,
        batch: int = BATCH,
        park_limit: int = PARK_LIMIT,
    ) -> None:
        self.group = group
        self.db = db
        self.source = source
        self.apply = apply
        self.batch = batch
        self.park_limit = park_limit
        self._timeouts: Counter[tuple[str, int, int]] = Counter()

    def run_once(self) -> bool:
        """Applies the next batch; returns whether there was one.

        Raises transient errors (nothing was lost, call again later) and `MassParking`.
        """
        entries = self.source.poll(self.batch)
        if not entries:
            return False
        try:
            self._process(entries)
            crash_at("consumer.after_commit")
            self.source.commit()
            # Only these: what another partition got done says nothing of an event that is stuck in its own.
            for entry in entries:
                self._timeouts.pop(_place(entry), None)
        except BaseException:
            self.source.release()
            raise
        return True

    def run(self, stop: threading.Event, pause: float = 0.05) -> None:
        """Applies batches until `stop` is set; raises what `run_once` raises."""
        while not stop.is_set():
            if not self.run_once():
                stop.wait(pause)

    def _process(self, entries: Sequence[Entry]) -> None:
        try:
            items = [self._item(entry) for entry in entries]
            with self.db.transaction() as tx:
                self._apply(tx, items)
                crash_at("consumer.before_commit")
        except Exception as error:
            if is_transient(error) or isinstance(error, _OTHER_TABLES):
                raise
            for entry in entries:
                self._one(entry)

    def _one(self, entry: Entry) -> None:
        try:
            item = self._item(entry)
            with self.db.transaction() as tx:
                self._apply(tx, [item])
        except Exception as error:
            if is_transient(error) or isinstance(error, _OTHER_TABLES) or self._may_be_load(entry, error):
                raise
            self._park(entry, error)

    def _may_be_load(self, entry: Entry, error: Exception) -> bool:
        """Whether a statement ran out of time, and not yet so often that the event must be the reason."""
        if not isinstance(error, QueryCanceled):
            return False
        self._timeouts[_place(entry)] += 1
        return self._timeouts[_place(entry)] < TIMEOUTS

    def _apply(self, tx: Tx, items: Sequence[_Item]) -> None:
        """Notes, parks and applies what is new, in its order."""
        fresh = inbox.insert(tx, self.group, [item.event for item in items])
        new = []
        for item in items:
            if item.event.id in fresh:
                fresh.discard(item.event.id)
                new.append(item)
        waiting = parking.lock(tx, self.group, {(item.event.topic, storable(item.event.key)) for item in new})
        todo: list[Event] = []
        behind: list[Entry] = []
        for item in new:
            event = item.event
            if event.data is None and event.topic == "customers":
                # An erasure passes whatever its customer's key waits with, and takes it away.
                parking.forget(tx, event.key)
                waiting = {(topic, key) for topic, key in waiting if key != event.key}
                behind = [entry for entry in behind if entry.key != event.key]
                todo.append(event)
            elif (event.topic, event.key) in waiting:
                behind.append(item.entry)
            else:
                todo.append(event)
        parking.park(tx, self.group, behind, "waits behind an earlier event of its key", attempts=0)
        if todo:
            self.apply(tx, todo)

    def _park(self, entry: Entry, error: Exception) -> None:
        event = self._event(entry)
        with self.db.transaction() as tx:
            if not inbox.insert(tx, self.group, [event]):
                return
            if not parking.lock(tx, self.group, {(entry.topic, storable(entry.key))}):
                parked = parking.new_keys_since(tx, self.group, tx.now - PARK_WINDOW)
                # What a newer version says is no fault; it waits for that version.
                if parked >= self.park_limit and not isinstance(error, parking.UnknownType):
                    raise MassParking(
                        f"{parked} keys were parked within a minute, the last for {type(error).__name__}; "
                        "that is a fault of the program or its surroundings, not of the events. "
                        "Mend it, then resume or restart this consumer, and replay what is parked."
                    ) from error
            parking.park(tx, self.group, [entry], parking.reason_of(error), attempts=1)

    def _item(self, entry: Entry) -> _Item:
        event = self._decoded(entry)
        parking.check_type(event)
        return _Item(entry, event)

    def _decoded(self, entry: Entry) -> Event:
        event = parking.decode(entry.topic, entry.key, entry.value, entry.headers)
        if not _UUID.fullmatch(event.id):
            raise Undecodable("not an event (its id is no UUID)")
        return event

    def _event(self, entry: Entry) -> Event:
        """The event to note in the inbox; one that cannot be decoded is known by its place on the log."""
        try:
            return self._decoded(entry)
        except Undecodable:
            # With its time, for a topic that was made again has the same places again.
            place = f"{entry.topic}/{entry.partition}/{entry.offset}/{entry.at.isoformat()}"
            return Event(
                id=str(uuid.uuid5(uuid.NAMESPACE_OID, place)),
                type="",
                topic=entry.topic,
                key=entry.key,
                version=0,
                occurred_at=entry.at,
                data=None,
            )


def _place(entry: Entry) -> tuple[str, int, int]:
    return entry.topic, entry.partition, entry.offset
