"""Faults 3 and 9 to 12 on brokers: partitions change hands amid a batch; brokers die, freeze, refuse."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import urllib3
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from shared.events.catalog import TOPICS
from shared.roles import read_report
from shared.settings import SERVICES, KafkaSettings
from tests.faults.conftest import SEEDS, history_on, settings_for
from tests.support import trial
from tests.support.checker import check, sent_twice
from tests.support.history import Ack, History, Person, Traffic
from tests.support.kafka import Broker, Cluster
from tests.support.postgres import TestPostgres
from tests.support.running import Process

OUTAGE = 20.0


_THREE = pytest.param(Cluster, id="three", marks=pytest.mark.slow_fault)


@pytest.fixture(scope="module", params=[pytest.param(Broker, id="one"), _THREE])
def own(request: pytest.FixtureRequest) -> Iterator[Broker | Cluster]:
    """Brokers that only the tests of this file use, for they stop them."""
    started = request.param().start()
    yield started
    started.close()


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed{seed}")
def history(
    request: pytest.FixtureRequest, own: Broker | Cluster, postgres: TestPostgres
) -> Iterator[History]:
    """An installation on Kafka. The tests go on from each other."""
    with history_on(postgres, request.param, "kafka", settings_for(own)) as made:
        yield made


@contextlib.contextmanager
def _slow(history: History, seconds: float, person: Person | None = None) -> Iterator[None]:
    """Followup takes so long over each answer (of one person, or of anybody)."""
    when = f"WHEN (NEW.customer_id = '{person.id}')" if person else ""
    with history.running.db("followup").transaction() as tx:
        tx.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END $$"
        )
        tx.execute(
            "CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON response"
            f" FOR EACH ROW {when} EXECUTE FUNCTION slow()"
        )
    yield
    # The batch at work has the table until its end, which slow answers may put off for long: they are made
    # quick first, for which no table is needed.
    with history.running.db("followup").transaction() as tx:
        tx.execute(
            "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RETURN NEW; END $$"
        )
    with history.running.db("followup").transaction() as tx:
        tx.execute("DROP FUNCTION slow CASCADE")


def _wait_until_amid_a_batch(history: History) -> None:
    def asleep() -> bool:
        with history.running.db("followup").transaction() as tx:
            return bool(
                tx.value(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND wait_event = 'PgSleep'"
                )
            )

    history.running.wait(asleep, None, "followup to be amid a batch")


def _assigned(process: Process) -> bool:
    return "partitions assigned" in process.output.read_text(errors="replace")


def _kafka(history: History) -> KafkaSettings:
    found = history.running.settings.kafka
    assert found is not None
    return found


def _check_never_back(history: History) -> None:
    """That followup's group has never gone back on what it had read, by all that it has ever committed."""
    kafka = _kafka(history)
    reader = KafkaConsumer(bootstrap_servers=kafka.bootstrap.split(","), enable_auto_commit=False)
    topic = "__consumer_offsets"  # kept whole: only what is in a segment that is full may be compacted
    places = [TopicPartition(topic, number) for number in reader.partitions_for_topic(topic)]
    ends = reader.end_offsets(places)
    reader.assign(places)
    reader.seek_to_beginning(*places)
    best: dict[tuple[str, int], int] = {}
    back: list[str] = []

    def read() -> bool:
        for record in itertools.chain(*reader.poll(500).values()):
            found = _commit(record.key, record.value)
            if found is not None and found[0] == f"{kafka.prefix}followup":
                _, place, offset = found
                if offset < best.get(place, 0):
                    back.append(f"{place} went from {best[place]} to {offset}")
                best[place] = offset
        return all(reader.position(place) >= ends[place] for place in places)

    history.running.wait(read, None, "all commits")
    reader.close()
    assert best and not back, back


def _commit(key: bytes, value: bytes | None) -> tuple[str, tuple[str, int], int] | None:
    """A record of the broker's own about a group: which, a partition, and how far it is committed."""
    (version,) = struct.unpack_from(">h", key)
    if version > 1 or value is None:  # of the group itself; or of a topic that was removed
        return None
    at, names = 2, []
    for _ in range(2):
        (size,) = struct.unpack_from(">h", key, at)
        names.append(key[at + 2 : at + 2 + size].decode())
        at += 2 + size
    group, topic = names
    return group, (topic, *struct.unpack_from(">i", key, at)), struct.unpack_from(">q", value, 2)[0]


@pytest.mark.parametrize("own", [_THREE], indirect=True, scope="module")
def test_fault_11_one_of_three_brokers_dies_under_load_and_is_not_missed(
    history: History, own: Cluster
) -> None:
    """It stays away for the tests that follow, until all are started again."""
    with Traffic(history) as traffic:
        traffic.wait_for_more()
        own.nodes[0].kill()
        for _ in history.people:  # so that everybody's partition is written to
            traffic.wait_for_more()
    history.running.settle()
    assert not own.nodes[0].alive
    _check_never_back(history)
    check(history)


def test_fault_03_a_relay_dies_when_the_log_has_a_part_of_its_batch(history: History) -> None:
    def on_the_log() -> Counter[str]:
        log = history.running.log()
        found = Counter({topic: sum(1 for _ in log.tail(topic, 1_000_000)) for topic in TOPICS})
        log.close()
        return found

    history.running.settle()
    history.cast.relay.stop()
    before, twice = on_the_log(), sent_twice(history)
    history.invite(6)
    history.answer_all()
    _take_at_most(10, history)
    try:
        history.running.wait_crash(history.cast.relay_again(crash_at="relay.mid_batch"))
    finally:
        _take_at_most(1_048_576, history)
    there = on_the_log() - before
    assert there and not there["responses"], f"no part of the batch was there: {there}"
    history.cast.relay_again()
    history.running.settle()
    check(history)
    assert sent_twice(history) > twice


def test_fault_09_another_consumer_joins_amid_a_batch(history: History) -> None:
    with Traffic(history) as traffic:
        with _slow(history, 0.1):
            traffic.wait_for_more()
            _wait_until_amid_a_batch(history)
            second = history.running.role("followup", "consumer")
            history.running.wait(lambda: _assigned(second), second, "the second to get partitions")
        traffic.wait_for_more()
        second.stop()
        traffic.wait_for_more()
    history.running.settle()
    _check_never_back(history)
    check(history)


def test_fault_09_a_consumer_that_was_expelled_amid_a_batch_resumes(history: History) -> None:
    first = history.cast.consumers["followup"]
    before = _taken_back(first)
    with _slow(history, 0.2):
        history.answer_all()
        _wait_until_amid_a_batch(history)
        first.freeze()
        second = history.running.role("followup", "consumer")
        history.running.wait(lambda: _assigned(second), second, "the first to be expelled")
        first.thaw()
    history.answer_all()
    history.running.settle()
    assert first.alive and _taken_back(first) > before
    _check_never_back(history)
    check(history)
    second.stop()


def test_fault_10_a_consumer_that_is_slower_than_its_poll_interval_joins_again(history: History) -> None:
    consumer = history.cast.consumers["followup"]
    slowest = history.people[0]
    before = _taken_back(consumer)
    with _slow(history, _kafka(history).poll_seconds + 3, slowest):
        history.answer(slowest)
        _wait_until_amid_a_batch(history)
        history.answer_all(revise=0)
        history.running.wait(lambda: _taken_back(consumer) > before, consumer, "the log")
    history.answer_all(revise=0)
    history.running.settle()
    _check_never_back(history)
    check(history)


def _taken_back(consumer: Process) -> int:
    return consumer.output.read_text(errors="replace").count("took these partitions back")


def _take_at_most(size: int, history: History) -> None:
    """The broker takes no answers that are longer, in bytes."""
    admin = KafkaAdminClient(bootstrap_servers=_kafka(history).bootstrap)
    topic = f"{_kafka(history).prefix}responses"
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(size)})])
    admin.close()


def _trouble(history: History, role: str) -> str:
    """What a worker that has one role says it cannot do."""
    report = read_report(history.running.settings.home, role)
    if report is None or report["ready"]:
        return ""
    [found] = report["roles"].values()
    return str(found["error"])


def _readyz(history: History, service: str) -> tuple[int, dict[str, Any]]:
    reply = urllib3.request("GET", f"{history.running.url}/{service}/readyz", timeout=5.0, retries=False)
    return reply.status, reply.json()


def _wait_until_all_say_of_the_log(history: History, status: str) -> None:
    # Each of them at every look, for each asks in the background.
    history.running.wait(
        lambda: {_readyz(history, service)[1]["log"]["status"] for service in SERVICES} == {status},
        None,
        f"all webs to say {status}",
    )


def test_fault_11_the_broker_is_away_under_load(history: History, own: Broker | Cluster) -> None:
    installation = history.running
    relay = psutil.Process(history.cast.relay.popen.pid)
    gone = f"Kafka at {own.bootstrap} does not answer"
    roles = ["survey-relay", "followup-consumer", "reporting-consumer"]
    # Fifty a second: a service that is slower than everybody else together would need long afterwards.
    with Traffic(history, pause=0.02) as traffic:
        traffic.wait_for_more()
        own.kill()
        until = time.monotonic() + OUTAGE
        installation.wait(
            lambda: all(gone in _trouble(history, role) for role in roles), None, f"{roles} to say so"
        )
        _wait_until_all_say_of_the_log(history, "does not answer")
        threads = relay.num_threads()
        # A condition that is time itself: the outage lasts so long.
        installation.wait(lambda: time.monotonic() >= until, None, "the outage to be over")
        for service in SERVICES:
            status, body = _readyz(history, service)
            assert status == 200 and body["status"] == "ready", body
            assert service != "survey" or body["outbox"] > 0, body
        assert relay.num_threads() <= threads + 2
        traffic.wait_for_more()
        own.start()
        trial.over()
        installation.wait(lambda: not any(_trouble(history, role) for role in roles), None, "them to be back")
        traffic.wait_for_more()
    installation.settle()
    _wait_until_all_say_of_the_log(history, "ok")
    check(history)


@contextlib.contextmanager
def _amid_a_flush(history: History) -> Iterator[None]:
    """Within, under load, the relay has given its producer a batch, and waits for nothing yet."""
    installation = history.running
    history.cast.relay.stop()
    relay = history.cast.relay = installation.role("survey", "relay", freeze_at="relay.let_through")
    installation.settle()  # it is connected, and has nothing to do
    installation.arm(relay)
    history.answer(history.people[0])
    installation.wait(lambda: relay.frozen, relay, "the relay to be amid a batch")
    yield
    relay.thaw()


def test_fault_12_the_broker_freezes_amid_a_flush(history: History, own: Broker | Cluster) -> None:
    with _amid_a_flush(history):
        own.freeze()
    with Traffic(history) as traffic:
        # Said by a flush, which nothing else tries while it waits.
        history.running.wait(
            lambda: "no answer in time" in _trouble(history, "survey-relay"), None, "the relay to give up"
        )
        traffic.wait_for_more()
        own.thaw()
        trial.over()
        history.running.wait(lambda: not _trouble(history, "survey-relay"), None, "the relay to go on")
        traffic.wait_for_more()
    history.running.settle()
    assert history.cast.relay.alive
    check(history)


@pytest.mark.parametrize("own", [_THREE], indirect=True, scope="module")
def test_fault_12_one_of_three_brokers_freezes_amid_a_flush_and_the_others_go_on(
    history: History, own: Cluster
) -> None:
    roles = ["survey-relay", "followup-consumer", "reporting-consumer"]
    own.start()  # one was killed before
    frozen = own.nodes[1]
    with _amid_a_flush(history):
        frozen.freeze()
    with Traffic(history) as traffic:
        history.running.wait(
            lambda: "no answer in time" in _trouble(history, "survey-relay"), None, "the relay to give up"
        )
        traffic.wait_for_more()
        # The others take over what it led, and what is said while it stands still arrives.
        last = history.acks[-1]
        history.running.wait(lambda: _known(history, last), None, "an answer to arrive without it")
        history.running.wait(lambda: not any(_trouble(history, role) for role in roles), None, "all to go on")
        frozen.thaw()
        trial.over()
        traffic.wait_for_more()
    history.running.settle()
    assert history.cast.relay.alive
    _check_never_back(history)
    check(history)


def _known(history: History, ack: Ack) -> bool:
    with history.running.db("reporting").transaction() as tx:
        found = tx.value("SELECT version FROM response WHERE customer_id = %s", (ack.person.id,))
    return bool(found is not None and found >= ack.version)


def test_fault_12_what_the_broker_refuses_for_good_keeps_its_place(history: History) -> None:
    long, *others = history.people
    _take_at_most(2_000, history)
    history.answer(long, comment=secrets.token_urlsafe(2_400))
    history.running.wait(
        lambda: "MessageSizeTooLarge" in _trouble(history, "survey-relay"), None, "a refusal"
    )
    for score in (1, 9):
        history.answer(long, score, "short")
    twice = sent_twice(history)
    for person in others:
        history.answer(person)

    def known(person: Person) -> int:
        with history.running.db("reporting").transaction() as tx:
            return tx.value("SELECT version FROM response WHERE customer_id = %s", (person.id,)) or 0

    history.running.wait(
        lambda: all(known(person) == person.version for person in others), None, "the others' answers"
    )
    assert known(long) < long.version - 2 and "MessageSizeTooLarge" in _trouble(history, "survey-relay")
    assert sent_twice(history) == twice, "what the broker had taken was sent again with what it refuses"
    _take_at_most(1_048_576, history)
    history.running.settle()
    check(history)
