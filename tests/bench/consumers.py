"""Each consumer beside the least a consumer does: read, parse, note in an inbox, a batch at a time."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from datetime import date

from shared.db import Database
from shared.events import inbox
from shared.events.consumer import BATCH, Consumer
from shared.events.envelope import Event
from shared.log import Log, Pass
from shared.settings import SERVICES
from tests.bench.events import campaign, records
from tests.bench.ground import Ground
from tests.bench.table import Row
from tests.support.running import Running

_CUSTOMERS = 2_500


def embedded(ground: Ground, repeats: int) -> list[Row]:
    """Events/s of each service's consumer ÷ the bare consumer's, on the topics that the service reads."""
    ours: dict[str, list[float]] = {name: [] for name in SERVICES}
    base: dict[str, list[float]] = {name: [] for name in SERVICES}
    wrong: dict[str, tuple[int, int]] = {}
    for _ in range(repeats):
        with ground.installation() as running:
            log = running.log()
            try:
                events = campaign(_CUSTOMERS)
                fill(log, events)
                for name in SERVICES:
                    rate, bare_rate, wrong[name] = one(running, log, name, events)
                    ours[name].append(rate)
                    base[name].append(bare_rate)
            finally:
                log.close()
    return [
        Row(
            f"consumer of {name}, embedded log", "events/s", ours[name], base[name], 0.5,
            missing=wrong[name][0], doubled=wrong[name][1],
        )
        for name in SERVICES
    ]  # fmt: skip


def fill(log: Log, events: Sequence[Event]) -> None:
    """Puts the events on the log in their order."""
    sink = log.sink()
    made = records(events)
    for start in range(0, len(made), BATCH):
        assert all(sink.send(made[start : start + BATCH], Pass("bench", 1)))
    sink.close()


def one(
    running: Running, log: Log, service: str, events: Sequence[Event]
) -> tuple[float, float, tuple[int, int]]:
    """Events/s of a service's consumer and of the bare one, and (missing, doubled) of what it noted."""
    handlers = importlib.import_module(f"services.{service}.handlers")
    db = running.db(service)
    inbox.maintain(db)
    topics = tuple(handlers.TOPICS)
    mine = [event for event in events if event.topic in topics]
    base = _bare(log, db, f"bare-{service}", topics, len(mine))
    source = log.source(handlers.GROUP, topics)
    consumer = Consumer(handlers.GROUP, db, source, handlers.apply)
    try:
        began = time.perf_counter()
        until = began + 120
        while _behind(log, handlers.GROUP) and time.perf_counter() < until:
            while consumer.run_once():
                pass
        took = time.perf_counter() - began
    finally:
        source.close()
    return len(mine) / took, base, _counted(db, handlers.GROUP, mine)


def _behind(log: Log, group: str) -> bool:
    return any(lag.unread for lag in log.lag(group))


def _bare(log: Log, db: Database, group: str, topics: Sequence[str], count: int) -> float:
    """Events/s of the least consumer, in a group of its own."""
    source = log.source(group, topics)
    seen = 0
    try:
        began = time.perf_counter()
        until = began + 120
        while seen < count and time.perf_counter() < until:
            entries = source.poll(BATCH)
            rows = []
            for entry in entries:
                json.loads(entry.value or b"null")
                rows.append((group, entry.headers["id"], date.fromisoformat(entry.headers["day"])))
            with db.transaction() as tx:
                tx.values("INSERT INTO inbox (consumer, event_id, day) VALUES %s", rows, "(%s, %s::uuid, %s)")
            source.commit()
            seen += len(entries)
        took = time.perf_counter() - began
    finally:
        source.close()
    assert seen == count, f"the bare consumer read {seen} of {count} events"
    return count / took


def _counted(db: Database, group: str, events: Sequence[Event]) -> tuple[int, int]:
    """How many events were not applied or are parked; a primary key allows none twice."""
    with db.transaction() as tx:
        noted = tx.value("SELECT count(*) FROM inbox WHERE consumer = %s", (group,))
        parked = tx.value("SELECT count(*) FROM parked")
    return len(events) - int(noted) + int(parked), 0
