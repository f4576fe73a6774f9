"""Each consumer beside the least a consumer does: read, parse, note in an inbox, a batch at a time."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Sequence
from datetime import date

from shared.db import Database, Tx
from shared.events import inbox
from shared.events.consumer import BATCH, Consumer
from shared.events.envelope import Event
from shared.log import Log, Pass, Source
from shared.settings import SERVICES
from tests.bench.events import campaign, records
from tests.bench.ground import Ground
from tests.bench.table import Row
from tests.support.running import Running

_CUSTOMERS = 2_500
_PATIENCE = 60.0


def of_each_log(ground: Ground, repeats: int) -> list[Row]:
    """Events/s of each service's consumer ÷ the bare consumer's, on the topics that the service reads."""
    return [row for name in ground.logs() for row in _of(ground, name, repeats)]


def _of(ground: Ground, log_name: str, repeats: int) -> list[Row]:
    ours: dict[str, list[float]] = {name: [] for name in SERVICES}
    base: dict[str, list[float]] = {name: [] for name in SERVICES}
    wrong: dict[str, tuple[int, int]] = {}
    for _ in range(repeats):
        with ground.installation(log_name) as running:
            log = running.log()
            try:
                events = campaign(_CUSTOMERS)
                fill(log, events)
                for name in ("followup", "reporting", "survey"):
                    if name == "survey":  # it reads little else, and needs more of them for a figure
                        tasks = [one for one in campaign(2 * _CUSTOMERS, (3,)) if one.topic == "tasks"]
                        fill(log, tasks)
                        events += tasks
                    rate, bare_rate, wrong[name] = one(running, log, name, events)
                    ours[name].append(rate)
                    base[name].append(bare_rate)
            finally:
                log.close()
    return [
        Row(
            f"consumer of {name}, {log_name} log", "events/s", ours[name], base[name], 0.5,
            missing=wrong[name][0], doubled=wrong[name][1],
        )
        for name in SERVICES
    ]  # fmt: skip


def fill(log: Log, events: Sequence[Event]) -> None:
    """Puts the events on the log in their order."""
    sink = log.sink()
    made = records(events)
    for start in range(0, len(made), BATCH):
        assert not any(sink.send(made[start : start + BATCH], Pass("bench", 1)))
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
    applied = 0

    def apply(tx: Tx, batch: Sequence[Event]) -> None:
        nonlocal applied
        handlers.apply(tx, batch)
        applied += len(batch)

    consumer = Consumer(handlers.GROUP, db, source, apply)
    try:
        _join(source)
        began = time.perf_counter()
        while applied < len(mine) and time.perf_counter() < began + _PATIENCE:
            consumer.run_once()
        took = time.perf_counter() - began
    finally:
        source.close()
    return len(mine) / took, base, _counted(db, handlers.GROUP, mine)


def _join(source: Source) -> None:
    """Becomes a member of the group; that takes its time on Kafka, and is no part of the work."""
    until = time.monotonic() + _PATIENCE
    while not source.poll(1) and time.monotonic() < until:
        pass
    source.release()


def _bare(log: Log, db: Database, group: str, topics: Sequence[str], count: int) -> float:
    """Events/s of the least consumer, in a group of its own."""
    source = log.source(group, topics)
    seen = 0
    try:
        _join(source)
        began = time.perf_counter()
        while seen < count and time.perf_counter() < began + _PATIENCE:
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
