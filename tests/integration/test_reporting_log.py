"""Reporting on the real log: it consumes, says how far it is behind, and a poison stops only its own key."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from services.reporting.freshness import LagWatch
from services.reporting.handlers import GROUP, TOPICS, apply
from services.reporting.queries.recount import recount
from services.reporting.roles import ROLES
from shared.clock import ManualClock
from shared.db import Database
from shared.events import parking
from shared.events.consumer import Consumer
from shared.events.envelope import Event
from shared.log import Log, Pass, Record, open_log
from shared.settings import Settings
from tests.support.reporting import History
from tests.support.reporting_play import random_history

Databases = Callable[[str], Database]


@pytest.fixture
def log(settings: Settings, clock: ManualClock) -> Log:
    log = open_log(settings, clock)
    log.ensure_topics()
    return log


def send(log: Log, events: list[Event]) -> None:
    records = [Record(event.topic, event.key, event.value(), event.headers()) for event in events]
    assert not any(log.sink().send(records, Pass("test", 1)))


def consume(log: Log, db: Database) -> None:
    source = log.source(GROUP, TOPICS)
    consumer = Consumer(GROUP, db, source, apply)
    while consumer.run_once():
        pass
    source.close()


def test_it_listens_to_every_topic_there_is() -> None:
    from shared.events.catalog import TOPICS as ALL

    assert set(TOPICS) == set(ALL)
    assert set(ROLES) == {"consumer"}


def test_a_history_on_the_log_becomes_figures_once(log: Log, database: Databases) -> None:
    db = database("reporting")
    events = random_history(11, customers=60)
    send(log, events)
    send(log, events)  # duplicates are routine
    consume(log, db)
    with db.transaction() as tx:
        found = recount(tx)
        assert found.equal
        assert found.responses > 10
        assert tx.value("SELECT count(*) FROM parked") == 0


def test_it_says_how_far_it_is_behind(log: Log, database: Databases, clock: ManualClock) -> None:
    db = database("reporting")
    h = History()
    h.company()
    h.ask(h.customer())
    consume(log, db)
    send(log, h.events)
    clock.advance(timedelta(seconds=40))
    watch = LagWatch(log, clock)
    behind = watch.freshness()
    assert behind.known and behind.unread == len(h.events)
    assert behind.behind == timedelta(seconds=40)
    assert behind.at == clock.now() - timedelta(seconds=40)
    consume(log, db)
    clock.advance(timedelta(seconds=5))
    caught_up = watch.freshness()
    assert caught_up.unread == 0
    assert caught_up.at == clock.now()


def test_a_log_that_does_not_answer_delays_nobody_and_is_said(clock: ManualClock, settings: Settings) -> None:
    class Gone:
        def lag(self, group: str | None = None) -> list[object]:
            raise ConnectionError("gone")

    watch = LagWatch(Gone(), clock)  # type: ignore[arg-type]
    found = watch.freshness()
    assert not found.known and found.at is None


def test_a_poison_stops_only_its_own_key(log: Log, database: Databases) -> None:
    db = database("reporting")
    h = History()
    h.company()
    h.programs()
    good, bad = (h.answer(h.ask(h.customer()), 2) for _ in range(2))
    h.task(good)
    poison = h.task(bad)
    opened = h.events.pop()
    due_soon = dict(opened.data or {}) | {"due_at": "soon"}
    broken = Event(opened.id, opened.type, opened.topic, poison, 1, opened.occurred_at, due_soon)
    send(log, [*h.events, broken])
    consume(log, db)
    h.resolve(poison)
    send(log, h.events[-1:])
    consume(log, db)
    assert [(key.topic, key.key, key.events) for key in parking.keys(db)] == [("tasks", poison, 2)]
    with db.transaction() as tx:
        assert tx.value("SELECT sum(tasked) FROM funnel_day") == 1
        assert tx.value("SELECT sum(detractors) FROM nps_day") == 2
        # The cause is mended (here: the record), and what waited is applied in its order.
        tx.execute("UPDATE parked SET value = %s WHERE attempts > 0", (opened.value(),))
    assert parking.replay(db, GROUP, "tasks", poison, apply).applied == 2
    with db.transaction() as tx:
        assert tx.value("SELECT sum(tasked) FROM funnel_day") == 2
        assert tx.value("SELECT sum(resolved) FROM funnel_day") == 1
        assert recount(tx).equal
