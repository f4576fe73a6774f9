"""Every event has exactly one effect, whoever crashes and whoever shares the work."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence

import pytest

from shared.db import Tx
from shared.errors import Unavailable
from shared.events import inbox, outbox
from shared.events.consumer import Consumer, by_type
from shared.events.envelope import Event
from shared.log import Entry, Pass, Record
from tests.contract.conftest import GROUP, KEYS, TOPICS, Bench, first_batch, first_of, message, only_embedded

A, B = KEYS[0], KEYS[1]


class Crash(BaseException):
    """Ends a process in a test; nothing may catch it."""


def test_an_event_is_applied_once_and_read_no_more(bench: Bench) -> None:
    bench.say(A, 1, 2)
    bench.flush()
    bench.consume()
    bench.consume()
    assert bench.effects() == [1, 2]
    assert bench.unread() == 0


def test_a_relay_that_dies_after_the_log_confirmed_sends_twice_and_has_one_effect(bench: Bench) -> None:
    inner = bench.log.sink()

    class Dying:
        def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
            inner.send(records, who)
            raise Crash

        def close(self) -> None:
            inner.close()

    bench.say(A, 1, 2)
    relay = bench.relay()
    relay.sink = Dying()
    with pytest.raises(Crash):
        relay.run_once()
    bench.flush()
    assert len(bench.on_log("deliveries")) == 4
    bench.consume()
    assert bench.effects(A) == [1, 2]


def test_a_consumer_that_dies_before_its_commit_does_the_work_again(bench: Bench) -> None:
    bench.say(A, 1, 2)
    bench.flush()

    def die(tx: Tx, events: Sequence[Event]) -> None:
        bench.apply(tx, events)
        raise Crash

    dying = bench.consumer(die)
    with pytest.raises(Crash):
        first_batch(dying)
    assert bench.effects() == []
    dying.source.close()
    bench.consume()
    assert bench.effects(A) == [1, 2]


def test_a_consumer_that_dies_between_its_commit_and_the_offset_has_one_effect(bench: Bench) -> None:
    bench.say(A, 1, 2)
    bench.flush()
    dying = bench.consumer()

    def die() -> None:
        raise Crash

    dying.source.commit = die  # type: ignore[method-assign]
    with pytest.raises(Crash):
        first_batch(dying)
    assert bench.effects(A) == [1, 2]
    assert bench.unread() == 2
    dying.source.close()
    bench.consume()
    assert bench.effects(A) == [1, 2]
    assert bench.unread() == 0


@only_embedded
def test_two_consumers_of_a_group_share_the_partitions_and_keep_each_keys_order(bench: Bench) -> None:
    for number in range(1, 21):
        for key in KEYS[:24]:
            bench.say(key, number)
    bench.flush()
    both = threading.Barrier(2, timeout=10)
    worked: list[int] = []

    def work() -> None:
        met = False
        applied = 0

        def apply(tx: Tx, events: Sequence[Event]) -> None:
            nonlocal met, applied
            if not met:
                met = True
                both.wait()  # each holds a batch while the other has one, too
            applied += len(events)
            bench.apply(tx, events)

        consumer = bench.consumer(apply, batch=40)
        consumer.source._share = 2  # type: ignore[attr-defined]
        while consumer.run_once():
            pass
        consumer.source.close()
        worked.append(applied)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.consume()
    assert len(worked) == 2 and min(worked) > 0
    for key in KEYS[:24]:
        assert bench.effects(key) == list(range(1, 21))


@only_embedded
def test_two_sources_of_a_group_never_hold_the_same_partition(bench: Bench) -> None:
    for key in KEYS[:60]:
        bench.say(key, 1)
        bench.change(key, 1)
    bench.flush()
    sources = [bench.log.source(GROUP, TOPICS) for _ in range(3)]
    held = [{(entry.topic, entry.partition) for entry in source.poll(1000)} for source in sources]
    assert held[0] and held[1]
    assert sum(map(len, held)) == len(set.union(*held)) == 16
    for source in sources:
        source.close()


@only_embedded
def test_a_batch_that_another_consumer_took_over_is_applied_once(bench: Bench) -> None:
    bench.say(A, 1, 2, 3)
    bench.flush()
    entered, leave = threading.Event(), threading.Event()

    def slow(tx: Tx, events: Sequence[Event]) -> None:
        entered.set()
        leave.wait(10)
        bench.apply(tx, events)

    late = bench.consumer(slow)
    thread = threading.Thread(target=lambda: _ignore_lost(late))
    thread.start()
    entered.wait(10)
    _take_back(bench)  # the log gives its partitions to somebody else
    other = threading.Thread(target=bench.consume)
    other.start()
    leave.set()
    thread.join()
    other.join()
    bench.consume()
    assert bench.effects(A) == [1, 2, 3]
    assert bench.unread() == 0


def test_a_transient_fault_parks_nothing_and_is_tried_again(bench: Bench) -> None:
    bench.say(A, 1)
    bench.flush()
    calls = 0

    def shaky(tx: Tx, events: Sequence[Event]) -> None:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise Unavailable("the database is away")
        bench.apply(tx, events)

    consumer = bench.consumer(shaky)
    for _ in range(2):
        with pytest.raises(Unavailable):
            first_batch(consumer)
    first_batch(consumer)
    assert bench.effects() == [1]
    assert bench.parked() == []


def test_a_new_group_starts_at_the_earliest_event(bench: Bench) -> None:
    bench.say(A, 1)
    bench.flush()
    bench.consume()
    source = bench.log.source("newcomer", TOPICS)
    assert [entry.headers["version"] for entry in first_of(source, 10)] == ["1"]
    source.close()


def test_unknown_types_are_ignored_and_noted(bench: Bench) -> None:
    seen: list[int] = []
    apply = by_type({"customer.changed": lambda tx, event: seen.append(event.version)})
    bench.say(A, 1)
    bench.change(B, 1)
    bench.flush()
    bench.consume(bench.consumer(apply))
    assert seen == [1]
    with bench.reader.transaction() as tx:
        assert tx.value("SELECT count(*) FROM inbox WHERE consumer = %s", (GROUP,)) == 2
    assert bench.unread() == 0


def test_a_field_that_a_newer_version_added_is_carried(bench: Bench) -> None:
    seen: list[object] = []
    data = {**message(A, 1), "mood": "sunny"}
    event = Event(str(uuid.uuid4()), "message.received", "deliveries", A, 1, bench.clock.now(), data)
    bench.log.sink().send([Record(event.topic, A, event.value(), event.headers())], Pass("newer", 1))
    handlers = {"message.received": lambda tx, event: seen.append(event.data["mood"])}
    bench.consume(bench.consumer(by_type(handlers)))
    assert seen == ["sunny"]


def test_the_same_state_published_again_has_the_same_id(bench: Bench) -> None:
    with bench.owner.transaction() as tx:
        first = outbox.append(tx, "message.received", A, 1, message(A, 1))
    with bench.owner.transaction() as tx:
        again = outbox.append(tx, "message.received", A, 1, message(A, 1), replay=True)
    assert first == again
    bench.flush()
    bench.consume()
    assert bench.effects() == [1]


def test_a_replica_cleared_for_a_rebuild_takes_the_same_event_again(bench: Bench) -> None:
    bench.change(A, 1)
    bench.flush()
    bench.consume()
    with bench.reader.transaction() as tx:
        inbox.clear(tx, GROUP)
        tx.execute("DELETE FROM effect")
    bench.change(A, 1)
    bench.flush()
    bench.consume()
    assert bench.effects() == [1]


def test_records_keep_key_value_and_headers(bench: Bench) -> None:
    bench.say(A, 1, text="grüß 你好 \x00 nul")
    bench.flush()
    [entry] = bench.on_log("deliveries")
    event = Event.from_record(entry.topic, entry.key, entry.value, entry.headers)
    assert event.data == message(A, 1, "grüß 你好 \x00 nul")
    assert event.id == outbox.event_id("deliveries", A, 1)
    assert event.occurred_at == bench.clock.now()
    assert event.day is not None


def _ignore_lost(consumer: Consumer) -> None:
    try:
        consumer.run_once()
    except Exception as error:
        assert "took" in str(error) or "terminat" in str(error) or "database" in str(error), error


def _take_back(bench: Bench) -> None:
    with bench.log.db.transaction() as tx:  # type: ignore[attr-defined]
        tx.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND state = 'idle in transaction'
            AND pid <> pg_backend_pid()"""
        )


def test_a_released_batch_is_read_again(bench: Bench) -> None:
    bench.say(A, 1, 2)
    bench.flush()
    source = bench.log.source(GROUP, TOPICS)

    def offsets(entries: Sequence[Entry]) -> list[int]:
        return [entry.offset for entry in entries]

    first = offsets(first_of(source, 1))
    source.release()
    assert offsets(first_of(source, 1)) == first
    source.commit()
    assert offsets(first_of(source, 1)) != first
    source.close()
