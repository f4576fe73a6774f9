"""Faults 4 to 6: order per key when relays stand still, transactions commit late, and others last long."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import psutil
import psycopg2
import pytest

from services.followup import handlers as followup
from services.reporting import handlers as reporting
from services.survey import rebuild
from services.survey.commands import answers, customers, erase
from services.survey.commands.answers import Form
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
from shared.clock import ManualClock
from shared.db import Database
from shared.events import outbox
from shared.events.relay import _LOCK, SWEEP_SECONDS, TRAIL_SECONDS, Relay
from shared.ids import SystemIds
from shared.log import Entry, Pass, Record
from shared.log.postgres import EmbeddedLog
from shared.settings import LOGS
from tests.faults.conftest import SEEDS, history_on, settings_for
from tests.support.checker import check
from tests.support.given import compacted, consume, from_zero, replica
from tests.support.history import Ack, History, Person, Traffic
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.running import Process

REPLICAS = {"followup": followup, "reporting": reporting}


# Long as these are, only `make faults` has them on Kafka; `make test` has its crashes and its contract there.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param((log, seed), marks=[pytest.mark.slow_fault] if log == "kafka" else [])
        for log in LOGS
        for seed in SEEDS
    ],
    ids=lambda param: f"{param[0]}-seed{param[1]}",
)
def history(request: pytest.FixtureRequest, postgres: TestPostgres) -> Iterator[History]:
    """An installation on either log. The tests go on from each other."""
    log, seed = request.param
    kafka = settings_for(request.getfixturevalue("broker")) if log == "kafka" else None
    with history_on(postgres, seed, log, kafka) as made:
        yield made


def _rename(history: History, name: str, *people: Person) -> None:
    """They get another name, all in one transaction: each a new version of the customer."""
    prints = opt_out_fingerprints(history.running.settings)
    with history.running.db("survey").transaction() as tx:
        rows = [Row({"email": one.email, "name": name, "account": one.account}, {}) for one in people]
        assert {outcome.effect for outcome in customers.upsert(tx, rows, prints)} == {"updated"}


def _erase(history: History, person: Person) -> None:
    with history.running.db("survey").transaction() as tx:
        assert erase.erase(tx, person.id, opt_out_fingerprints(history.running.settings))
    history.forget(person)


def _on_log(history: History, key: str) -> list[tuple[int, bool]]:
    """The versions of a customer as they stand on the log, and whether each is the erasure."""
    log = history.running.log()
    try:
        found = [entry for entry in log.tail("customers", 1_000_000) if entry.key == key]
    finally:
        log.close()
    return [
        (int(entry.headers["version"]), entry.value is None)
        for entry in found
        if "replay" not in entry.headers
    ]


def _says(db: Database, customer: str) -> str | None:
    """The name a replica has of a customer; None when it does not know them."""
    with db.transaction() as tx:
        name: str | None = tx.value("SELECT name FROM customer WHERE id = %s", (customer,))
        return name


def _two_of_a_shard(history: History) -> tuple[Person, Person]:
    one, *others = history.people
    return one, next(p for p in others if outbox.shard_of(p.id) == outbox.shard_of(one.id))


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("relay.let_through", id="past_every_check"),
        pytest.param("relay.before_send", id="before_the_log_checks", marks=pytest.mark.slow_fault),
    ],
)
def test_fault_04_a_relay_that_froze_with_an_old_state_in_its_hands_never_beats_what_came_since(
    history: History, postgres: TestPostgres, point: str
) -> None:
    installation = history.running
    history.cast.relay.stop()
    frozen = history.cast.relay = installation.role("survey", "relay", freeze_at=point)
    history.answer_all()
    installation.settle()
    renamed, erased = _two_of_a_shard(history)
    before = max(version for version, _ in _on_log(history, renamed.id))
    installation.arm(frozen)
    _rename(history, f"Old {point}", renamed, erased)
    installation.wait(lambda: frozen.frozen, frozen, "the relay to stand still")

    second = installation.role("survey", "relay")
    _rename(history, f"New {point}", renamed)
    _erase(history, erased)
    history.answer_all()
    installation.settle()
    versions = [(before + 1, False), (before + 2, False)]
    assert _on_log(history, renamed.id)[-2:] == versions
    assert _on_log(history, erased.id)[-1][1]
    frozen.thaw()
    _wait_until_it_has_given_up(history, frozen)
    history.answer_all()
    installation.settle()
    check(history)

    if installation.settings.log == "embedded":  # it takes nothing from a relay that was overtaken
        assert _on_log(history, renamed.id)[-2:] == versions
        assert _on_log(history, erased.id)[-1][1]
    else:
        _oversleep(history, renamed)
        _oversleep(history, erased)
        installation.settle()
    _check_newest(history, point, renamed, erased)
    for service in REPLICAS:
        installation.command("rebuild", service)
    installation.settle()
    _check_newest(history, point, renamed, erased)
    check(history)
    _check_from_zero(history, postgres, point, renamed, erased)
    second.stop()


@pytest.mark.slow_fault
def test_fault_04_of_two_relays_one_freezes_wherever_it_is_with_a_shard_and_goes_on_later(
    history: History,
) -> None:
    first, second = history.cast.relay, history.running.role("survey", "relay")
    with Traffic(history) as traffic:
        for one in (first, second, first):
            traffic.wait_for_more()
            _freeze_with_a_shard(history, one)
            for _ in history.people:
                traffic.wait_for_more()
            for last in history.final().values():  # the other one gets all shards
                _wait_until_known(history, last)
            one.thaw()
        traffic.wait_for_more()
    history.running.settle()
    assert first.alive and second.alive
    check(history)
    second.stop()


def _freeze_with_a_shard(history: History, relay: Process) -> None:
    """Freezes it; whenever it has no shard in its hands then, lets it go on and tries again."""
    process = psutil.Process(relay.popen.pid)

    def holds() -> bool:
        relay.freeze()
        history.running.wait(lambda: relay.frozen, relay, "it to stand still")
        with history.running.db("survey").transaction() as tx:
            held = tx.value(
                "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
                " WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s AND a.client_port = ANY(%s)",
                (_LOCK, [one.laddr.port for one in process.net_connections()]),
            )
        if not held:
            relay.thaw()
        return bool(held)

    history.running.wait(holds, relay, f"{relay.name} to have a shard")


def _wait_until_it_has_given_up(history: History, relay: Process) -> None:
    history.running.wait(lambda: "trying again" in relay.said(), relay, "the relay to see that it overslept")


def _oversleep(history: History, person: Person) -> None:
    """Whatever a producer that overslept had on its way may still get to Kafka: here it does."""
    log = history.running.log()
    try:
        found = [entry for entry in log.tail("customers", 1_000_000) if entry.key == person.id]
        old = [entry for entry in found if _is_old(entry)][-1]
        if not _is_old(found[-1]):
            record = Record(old.topic, old.key, old.value, old.headers)
            assert log.sink().send([record], Pass("overslept", 1)) == [None]
    finally:
        log.close()


def _is_old(entry: Entry) -> bool:
    return b'"Old ' in (entry.value or b"")


def _check_newest(history: History, point: str, renamed: Person, erased: Person) -> None:
    for service in REPLICAS:
        db = history.running.db(service)
        assert _says(db, renamed.id) == f"New {point}", service
        assert _says(db, erased.id) is None, f"{service} knows an erased customer again"


def _check_from_zero(
    history: History, postgres: TestPostgres, point: str, renamed: Person, erased: Person
) -> None:
    """Who reads everything from the beginning, before or after a compaction, ends with the same."""
    rebuild.republish(history.running.db("survey"), ("customers",))  # as every night, before it is compacted
    history.running.settle()
    log = history.running.log()
    try:
        for name, service in REPLICAS.items():
            everything = from_zero(log, service.TOPICS)
            for found in (everything, compacted(everything)):
                urls = FreshDatabases(postgres)
                db = replica(urls[name], name)
                consume(db, service.GROUP, service.apply, found)
                assert _says(db, renamed.id) == f"New {point}", name
                assert _says(db, erased.id) is None, f"a new {name} knows an erased customer"
                with db.transaction() as tx:
                    answers = tx.value("SELECT count(*) FROM response WHERE version > 0")
                    assert answers == len(history.people)
                    assert not tx.one("SELECT 1 FROM response WHERE customer_id = %s", (erased.id,))
                db.close()
                urls.drop()
    finally:
        log.close()


@contextmanager
def _open_answer(history: History, person: Person, score: int, comment: str) -> Iterator[None]:
    """Within, their answer is written and not committed; it is acknowledged afterwards."""
    form = Form(f"late {comment}", person.version, score, comment, set_comment=True)
    with history.running.db("survey").transaction() as tx:
        outcome = answers.record_by_token(tx, person.token, form)
        tx.execute("SELECT")  # what may wait for the next statement waits no longer: the event has its id
        assert tx.value("SELECT count(*) FROM outbox WHERE key = %s", (person.id,)) == 1
        yield
    person.version = outcome.recorded.version
    history.nonces[person.id].add(form.nonce)
    history.acks.append(Ack(person, score, comment, person.version))


def _wait_until_known(history: History, ack: Ack) -> None:
    def known() -> bool:
        with history.running.db("reporting").transaction() as tx:
            row = tx.one("SELECT version FROM response WHERE customer_id = %s", (ack.person.id,))
        return row is not None and row["version"] >= ack.version

    history.running.wait(known, None, f"version {ack.version} of {ack.person.email} to be reported")


def test_fault_05_an_event_whose_transaction_commits_last_is_delivered_though_its_id_is_low(
    history: History,
) -> None:
    late, *others = history.people
    with _open_answer(history, late, 2, "I took my time"):
        # The relay's floor has long passed the open transaction's id by then, and swept below it in vain.
        until = time.monotonic() + SWEEP_SECONDS + 2 * TRAIL_SECONDS
        while time.monotonic() < until:
            _wait_until_known(history, history.answer(others[history.random.randrange(len(others))]))
    _wait_until_known(history, history.acks[-1])
    history.answer(late)
    history.running.settle()
    check(history)


def test_fault_05_a_later_event_of_its_key_does_not_overtake_a_late_commit(history: History) -> None:
    late, *others = history.people
    with _open_answer(history, late, 3, "and once more"):
        until = time.monotonic() + 2 * TRAIL_SECONDS
        while time.monotonic() < until:
            _wait_until_known(history, history.answer(others[history.random.randrange(len(others))]))
        # Waits for the open one, and follows it at once.
        again = replace(late, version=late.version + 1)
        behind = threading.Thread(target=history.answer, args=(again,))
        behind.start()
        history.running.wait(lambda: _waits_for_a_lock(history), None, "the later answer to wait")
    behind.join()
    late.version = again.version
    history.acks.sort(key=lambda ack: ack.version)
    history.running.settle()
    check(history)  # and with it the order on the log


def _waits_for_a_lock(history: History) -> bool:
    with history.running.db("survey").transaction() as tx:
        return bool(
            tx.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )


def test_fault_06_a_long_write_transaction_in_another_database_of_the_cluster_holds_nothing_up(
    history: History, postgres: TestPostgres
) -> None:
    url = postgres.empty()
    other = psycopg2.connect(url)
    try:
        other.cursor().execute("CREATE TABLE slow_work (id bigint)")
        with Traffic(history) as traffic:
            for _ in range(3):
                traffic.wait_for_more()
            _wait_until_known(history, history.acks[-1])
        history.answer_all()
        history.running.settle()
        check(history)
    finally:
        other.close()
        postgres.drop(url)


@dataclass
class Polled:
    """A relay in this process over an outbox and an embedded log, and what its polls cost."""

    db: Database
    log: EmbeddedLog
    clock: ManualClock

    def __post_init__(self) -> None:
        self.log.ensure_topics()
        self.relay = Relay("survey", self.db, self.log.sink())
        self.told = 0

    def tell(self, count: int) -> None:
        """So many events wait in the outbox, five of each customer."""
        numbers = range(self.told, self.told + count)
        keys = [str(uuid.UUID(int=number // 5)) for number in numbers]
        with self.db.transaction() as tx:
            at = tx.now
            tx.add(
                "outbox",
                {
                    "shard": "smallint",
                    "topic": "text",
                    "key": "text",
                    "event_id": "uuid",
                    "type": "text",
                    "version": "bigint",
                    "occurred_at": "timestamptz",
                    "data": "text",
                },
                [
                    (
                        outbox.shard_of(key),
                        "deliveries",
                        key,
                        str(uuid.UUID(int=n)),
                        "message.received",
                        n,
                        at,
                        "{}",
                    )
                    for n, key in zip(numbers, keys, strict=True)
                ],
            )
        self.told += count

    def cost(self) -> int:
        """How many blocks of the outbox a poll touches that sends twenty events, its floor being up."""
        # The least of some: autovacuum may read the outbox meanwhile, which counts as well.
        return min([self._poll() for _ in range(10)][5:])

    def _poll(self) -> int:
        self.tell(20)
        self.clock.advance(timedelta(seconds=TRAIL_SECONDS / 2))
        self.relay._swept = self.clock.monotonic()  # no sweep is due
        before = self._touched()
        assert self.relay.run_once()
        return self._touched() - before

    def flow(self, count: int) -> None:
        """So many more go to the log, with a sweep now and then."""
        for _ in range(count // 2_000):
            self.tell(2_000)
            while self.relay.run_once():
                self.clock.advance(timedelta(seconds=TRAIL_SECONDS / 2))

    def sweep(self, waiting: int = 0) -> tuple[int, float]:
        """How many blocks a sweep touches while so many events are due, and how long (s) it takes."""
        self.tell(waiting)
        self.clock.advance(timedelta(seconds=SWEEP_SECONDS))
        before, began = self._touched(), time.monotonic()
        assert self.relay.run_once() == bool(waiting)
        took = time.monotonic() - began
        return self._touched() - before, took

    def waiting(self) -> int:
        with self.db.transaction() as tx:
            return int(tx.value("SELECT count(*) FROM outbox"))

    def _touched(self) -> int:
        # One thread, so its pool has one connection: the one whose counts these are.
        with self.db.transaction() as tx:
            tx.execute("SELECT pg_stat_force_next_flush()")
        with self.db.transaction() as tx:
            return int(
                tx.value(
                    """SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
                    FROM pg_statio_user_tables WHERE relname = 'outbox'"""
                )
            )


@pytest.fixture
def polled(postgres: TestPostgres) -> Iterator[Polled]:
    urls = FreshDatabases(postgres)
    clock = ManualClock(datetime(2026, 3, 3, 10, 0, tzinfo=UTC))
    db = Database(urls["survey"], clock, SystemIds(), name="survey")
    log = EmbeddedLog(urls["log"], clock)
    yield Polled(db, log, clock)
    log.close()
    db.close()
    urls.drop()


@pytest.mark.parametrize("events", [20_000, pytest.param(500_000, marks=pytest.mark.slow_fault)])
def test_fault_06_a_poll_costs_the_same_while_a_long_reader_keeps_all_dead_events(
    polled: Polled, capsys: pytest.CaptureFixture[str], events: int
) -> None:
    polled.flow(2_000)
    before = polled.cost()
    swept, quick = polled.sweep()
    reader = polled.db.connect()
    try:
        cursor = reader.cursor()
        cursor.execute("SET idle_in_transaction_session_timeout = 0")
        reader.commit()
        reader.set_session(isolation_level="REPEATABLE READ", readonly=True)
        cursor.execute("SELECT count(*) FROM outbox")
        polled.flow(events)
        unknown = polled.cost()
        with polled.db.transaction() as tx:
            tx.execute("ANALYZE outbox")  # as autovacuum does sooner or later: then it is known to be empty
        after = max(unknown, polled.cost())
        swept_after, slow = polled.sweep()
        swept_busy, slow_busy = polled.sweep(20)
        assert polled.waiting() == 0
        assert sum(topic.appended for topic in polled.log.topics()) == polled.told
    finally:
        reader.close()
    with capsys.disabled():
        print(
            f"\n  beside a reader, {events} events on: a poll touches {after} blocks of the outbox"
            f" ({before} before), a sweep {swept_after} ({swept}),"
            f" in {slow * 1000:.1f} ms ({quick * 1000:.1f}), with events due {swept_busy} in"
            f" {slow_busy * 1000:.1f} ms",
            end="",
        )
    assert swept_after > 4 * max(swept, before), "the reader kept nothing"
    assert after <= 2 * before
    assert swept_busy <= 1.2 * swept_after + 2 * before, "a sweep reads what is dead more than once"
