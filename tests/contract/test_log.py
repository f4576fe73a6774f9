"""What a log keeps, for how long, and what it says about itself."""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

import pytest

from shared.events.catalog import TOPICS
from shared.log import Pass, Record, UnknownTopic, in_use
from tests.contract.conftest import GROUP, KEYS, Bench, first_of, only_embedded, only_kafka
from tests.contract.conftest import TOPICS as READ

A, B = KEYS[0], KEYS[1]


def test_every_topic_of_the_catalog_is_there_with_its_partitions(bench: Bench) -> None:
    bench.log.ensure_topics()  # twice changes nothing
    there = {topic.name: (topic.partitions, topic.compacted) for topic in bench.log.topics()}
    assert there == {topic.name: (topic.partitions, topic.compacted) for topic in TOPICS.values()}


def test_an_unknown_topic_is_refused(bench: Bench) -> None:
    with pytest.raises(UnknownTopic):
        bench.log.sink().send([Record("gossip", A, b"{}", {})], Pass("survey/0", 1))
    with pytest.raises(UnknownTopic):
        list(bench.log.tail("gossip", 1))


@only_embedded
def test_lag_counts_unread_records_and_the_age_of_the_oldest(bench: Bench) -> None:
    source = bench.log.source(GROUP, READ)
    bench.say(A, 1, 2)
    bench.flush()
    bench.clock.advance(timedelta(seconds=90))
    bench.say(B, 1)
    bench.flush()
    lags = {lag.topic: (lag.unread, lag.seconds) for lag in bench.log.lag(GROUP)}
    assert lags == {"customers": (0, 0.0), "deliveries": (3, 90.0)}
    source.close()
    bench.consume()
    assert {lag.unread for lag in bench.log.lag()} == {0}
    assert bench.log.lag("nobody") == []


@only_kafka
def test_the_age_of_a_groups_oldest_record_is_not_that_of_a_slower_group(bench: Bench) -> None:
    slow = bench.log.source("survey", READ)
    bench.say(A, 1)
    bench.flush()
    first_of(slow, 10)
    slow.commit()
    bench.say(A, 2)
    bench.flush()
    bench.consume()
    bench.say(A, 3)
    bench.flush()
    bench.log.lag()  # who looks a second time sees the same
    found = {lag.consumer: lag for lag in bench.log.lag() if lag.topic == "deliveries"}
    assert (found["survey"].unread, found[GROUP].unread) == (2, 1)
    slow.close()
    assert 0 < found[GROUP].seconds < found["survey"].seconds


def test_a_topic_that_a_service_has_never_read_is_unread(bench: Bench) -> None:
    bench.say(A, 1)
    bench.change(A, 2)
    bench.flush()
    assert in_use.unread(bench.log) == {"followup": 2, "reporting": 2}
    source = bench.log.source("reporting", ["deliveries"])
    assert len(first_of(source, 1)) == 1
    source.commit()
    source.close()
    assert in_use.unread(bench.log) == {"followup": 2, "reporting": 1}


def test_a_discarded_log_holds_nothing_and_can_be_used_again(bench: Bench) -> None:
    bench.say(A, 1)
    bench.change(B, 1)
    bench.flush()
    bench.consume()
    bench.log.discard()
    assert sum(topic.records for topic in bench.log.topics()) == 0
    bench.log.ensure_topics()
    assert list(bench.log.tail("customers", 5)) == list(bench.log.tail("deliveries", 5)) == []
    bench.say(A, 3)
    bench.change(B, 2)
    bench.flush()
    bench.consume()
    assert (bench.effects(A), bench.effects(B)) == ([1, 3], [1, 2])
    assert in_use.unread(bench.log) == {"followup": 2}


def test_tail_gives_the_last_records_oldest_first(bench: Bench) -> None:
    for number, key in enumerate([A, B, KEYS[2], A, B]):
        bench.say(key, number)
        bench.flush()
        bench.pass_time(1)
    assert [entry.headers["version"] for entry in bench.log.tail("deliveries", 3)] == ["2", "3", "4"]


def test_a_followed_tail_gives_each_new_record(bench: Bench) -> None:
    bench.say(A, 1)
    bench.flush()
    seen: list[str] = []
    enough = threading.Event()

    def follow() -> None:
        for entry in bench.log.tail("deliveries", 10, follow=True):
            seen.append(entry.headers["version"])
            if len(seen) == 3:
                enough.set()
                return

    thread = threading.Thread(target=follow)
    thread.start()
    bench.say(A, 2)
    bench.say(B, 3)
    bench.flush()
    assert enough.wait(10)
    thread.join()
    assert seen[0] == "1" and sorted(seen) == ["1", "2", "3"]


@only_embedded
def test_records_go_after_fourteen_days_and_a_late_consumer_goes_on_with_the_rest(bench: Bench) -> None:
    bench.log.source(GROUP, READ).close()
    bench.say(A, 1, 2)
    bench.flush()
    bench.clock.advance(timedelta(days=13))
    bench.say(A, 3)
    bench.flush()
    assert bench.log.maintain(bench.clock.now()) == 0
    bench.clock.advance(timedelta(days=2))
    assert bench.log.maintain(bench.clock.now()) == 2
    bench.consume()
    assert bench.effects(A) == [3]
    assert bench.unread() == 0


@only_embedded
def test_a_consumer_passes_what_is_gone_altogether(bench: Bench) -> None:
    bench.log.source(GROUP, READ).close()
    bench.say(A, 1)
    bench.flush()
    bench.clock.advance(timedelta(days=15))
    bench.log.maintain(bench.clock.now())
    bench.consume()
    assert bench.effects() == []
    assert bench.unread() == 0


@only_embedded
def test_compaction_keeps_each_keys_last_record(bench: Bench) -> None:
    for version in (1, 2, 3):
        bench.change(A, version)
    bench.change(B, 1)
    bench.flush()
    assert bench.log.maintain(bench.clock.now()) == 0  # not within a day
    bench.clock.advance(timedelta(days=40))
    assert bench.log.maintain(bench.clock.now()) == 2
    bench.consume()
    assert bench.effects(A) == [3]
    assert bench.effects(B) == [1]
    assert bench.unread() == 0


@only_embedded
def test_compaction_keeps_a_tombstone_for_fourteen_days_and_nothing_before_it(bench: Bench) -> None:
    bench.change(A, 1)
    bench.erase(A, 2)
    bench.flush()
    bench.clock.advance(timedelta(days=2))
    bench.log.maintain(bench.clock.now())
    assert [entry.value for entry in bench.on_log("customers")] == [None]
    bench.clock.advance(timedelta(days=13))
    bench.log.maintain(bench.clock.now())
    assert bench.on_log("customers") == []


@only_embedded
def test_maintenance_runs_beside_readers_and_writers(bench: Bench) -> None:
    for key in KEYS[:20]:
        bench.change(key, 1)
        bench.change(key, 2)
    bench.flush()
    bench.clock.advance(timedelta(days=2))
    stop = threading.Event()
    consumer = bench.consumer(batch=3)
    reading = threading.Thread(target=consumer.run, args=(stop, 0.001))
    reading.start()
    bench.log.maintain(bench.clock.now())
    for key in KEYS[:20]:
        bench.change(key, 3)
    bench.flush()
    pause = threading.Event()
    while bench.unread():
        pause.wait(0.01)
    stop.set()
    reading.join()
    consumer.source.close()
    for key in KEYS[:20]:
        assert bench.effects(key)[-1] == 3


def test_a_key_always_goes_to_the_same_partition(bench: Bench) -> None:
    sink = bench.log.sink()
    keys = [str(uuid.uuid4()) for _ in range(50)]
    for epoch in (1, 2):
        sink.send([Record("tasks", key, b"{}", {}) for key in keys], Pass("followup/0", epoch))
    places: dict[str, set[int]] = {}
    for entry in bench.on_log("tasks"):
        places.setdefault(entry.key, set()).add(entry.partition)
    assert all(len(found) == 1 for found in places.values())
    assert len(set.union(*places.values())) > 4
