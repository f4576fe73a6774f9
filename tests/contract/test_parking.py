"""Poison stops only its own key; what is parked can be shown, replayed in order, passed by an erasure."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta

import pytest
from psycopg2.errors import QueryCanceled

from shared.db import Tx
from shared.errors import Unavailable
from shared.events import parking
from shared.events.catalog import TYPES
from shared.events.consumer import MassParking
from shared.events.envelope import Event
from shared.log import Pass, Record
from tests.contract.conftest import GROUP, KEYS, Bench, Broken

A, B = KEYS[0], KEYS[1]


def _poisoned(bench: Bench) -> None:
    """A's second message is poison; its first and B's are applied, A's third waits."""
    bench.poison = {"poison"}
    bench.say(A, 1)
    bench.say(A, 2, text="poison")
    bench.say(B, 1)
    bench.say(A, 3)
    bench.flush()
    bench.consume()


def _replay(bench: Bench, key: str = A) -> parking.Replayed:
    return parking.replay(bench.reader, GROUP, "deliveries", key, bench.apply)


def test_a_poison_event_parks_only_its_key_and_the_partition_flows_on(bench: Bench) -> None:
    _poisoned(bench)
    assert bench.effects(A) == [1]
    assert bench.effects(B) == [1]
    assert bench.parked() == [(A, 2)]
    assert bench.unread() == 0
    bench.say(A, 4)
    bench.say(B, 2)
    bench.flush()
    bench.consume()
    assert bench.parked() == [(A, 3)]
    assert bench.effects(B) == [1, 2]


def test_a_duplicate_of_a_poison_event_is_not_parked_twice(bench: Bench) -> None:
    bench.poison = {"poison"}
    bench.say(A, 1, text="poison")
    bench.flush()
    bench.consume()
    bench.say(A, 1, text="poison")
    bench.say(B, 1, text="poison")  # so that the batch is done one by one
    bench.flush()
    bench.consume()
    assert bench.parked() == [(A, 1), (B, 1)]


def test_what_is_parked_is_shown_with_its_reason(bench: Bench) -> None:
    _poisoned(bench)
    [key] = parking.keys(bench.reader)
    assert (key.consumer, key.topic, key.key, key.events) == (GROUP, "deliveries", A, 2)
    assert key.reason == "Broken: this one never works"
    poison, behind = parking.show(bench.reader, GROUP, "deliveries", A)
    assert (poison.attempts, behind.attempts) == (1, 0)
    assert poison.headers["version"] == "2"
    assert poison.value is not None and b"poison" in poison.value


def test_replay_applies_what_is_parked_in_order_and_frees_the_key(bench: Bench) -> None:
    _poisoned(bench)
    bench.poison = set()
    assert _replay(bench) == parking.Replayed(2, 0)
    assert bench.effects(A) == [1, 2, 3]
    assert bench.parked() == []
    bench.say(A, 4)
    bench.flush()
    bench.consume()
    assert bench.effects(A) == [1, 2, 3, 4]


def test_replay_of_what_is_still_poison_changes_nothing_but_the_count(bench: Bench) -> None:
    _poisoned(bench)
    result = _replay(bench)
    assert (result.applied, result.left, result.reason) == (0, 2, "Broken: this one never works")
    assert bench.effects(A) == [1]
    assert [event.attempts for event in parking.show(bench.reader, GROUP, "deliveries", A)] == [2, 0]


def test_replay_stops_at_a_second_poison_and_keeps_what_it_applied(bench: Bench) -> None:
    _poisoned(bench)
    bench.say(A, 4, text="other poison")
    bench.flush()
    bench.consume()
    bench.poison = {"other poison"}
    result = _replay(bench)
    assert (result.applied, result.left) == (2, 1)
    assert bench.effects(A) == [1, 2, 3]


def test_a_transient_fault_in_a_replay_keeps_everything_for_the_next(bench: Bench) -> None:
    _poisoned(bench)

    def away(tx: Tx, events: Sequence[Event]) -> None:
        raise Unavailable("the database is away")

    with pytest.raises(Unavailable):
        parking.replay(bench.reader, GROUP, "deliveries", A, away)
    bench.poison = set()
    assert _replay(bench).applied == 2


def test_replay_beside_a_running_consumer_keeps_the_keys_order(bench: Bench) -> None:
    _poisoned(bench)
    bench.say(A, *range(4, 30))
    bench.flush()
    bench.consume()
    bench.poison = set()
    stop = threading.Event()
    consumer = bench.consumer(batch=2)
    running = threading.Thread(target=consumer.run, args=(stop, 0.001))
    running.start()

    def go_on() -> None:
        for number in range(30, 50):
            _say_and_flush(bench, number)

    more = threading.Thread(target=go_on)
    more.start()
    pause = threading.Event()
    while more.is_alive():
        _replay(bench)
        pause.wait(0.01)
    more.join()
    while bench.unread():
        pause.wait(0.01)
    stop.set()
    running.join()
    _replay(bench)
    assert bench.effects(A) == list(range(1, 50))
    assert bench.parked() == []


def test_while_a_replay_applies_a_keys_last_event_the_consumer_waits(bench: Bench) -> None:
    _poisoned(bench)
    bench.poison = set()
    entered, leave = threading.Event(), threading.Event()

    def slow(tx: Tx, events: Sequence[Event]) -> None:
        if events[0].version == 3:
            entered.set()
            leave.wait(10)
        bench.apply(tx, events)

    replaying = threading.Thread(target=parking.replay, args=(bench.reader, GROUP, "deliveries", A, slow))
    replaying.start()
    entered.wait(10)
    _say_and_flush(bench, 4)
    consuming = threading.Thread(target=bench.consume)
    consuming.start()
    consuming.join(0.3)
    assert consuming.is_alive()
    leave.set()
    replaying.join()
    consuming.join()
    assert bench.effects(A) == [1, 2, 3, 4]
    assert bench.parked() == []


def test_an_erasure_passes_parking_and_deletes_what_is_parked_for_the_customer(bench: Bench) -> None:
    bench.change(A, 1)
    _poisoned(bench)
    bench.erase(A, 2)
    bench.say(A, 4)
    bench.flush()
    bench.consume()
    assert bench.effects(A, "customers") == [1, 2]
    assert bench.parked() == []
    assert bench.effects(A, "deliveries")[:1] == [1]
    with bench.reader.transaction() as tx:
        assert tx.value("SELECT count(*) FROM parked") == 0


def test_an_erasure_passes_events_of_its_own_topic_that_wait(bench: Bench) -> None:
    def no_names(tx: Tx, events: Sequence[Event]) -> None:
        if any(event.data and event.data.get("name") == "poison" for event in events):
            raise Broken
        bench.apply(tx, events)

    bench.change(A, 1, "poison")
    bench.change(A, 2)
    bench.flush()
    bench.consume(bench.consumer(no_names))
    assert bench.parked() == [(A, 2)]
    bench.change(A, 3)
    bench.erase(A, 4)
    bench.flush()
    bench.consume(bench.consumer(no_names))
    assert bench.effects(A, "customers") == [4]
    assert bench.parked() == []


def test_an_owners_erasure_forgets_what_it_has_parked_itself(bench: Bench) -> None:
    with bench.owner.transaction() as tx:
        tx.execute("INSERT INTO parked_key VALUES ('survey', 'notices', %s, %s)", (A, tx.now))
    bench.erase(A, 1)
    with bench.owner.transaction() as tx:
        assert tx.value("SELECT count(*) FROM parked_key") == 0


def test_a_bug_that_hits_everybody_stops_the_consumer(bench: Bench) -> None:
    bench.poison = {"hello"}
    for key in KEYS[:30]:
        bench.say(key, 1)
    bench.flush()
    consumer = bench.consumer(park_limit=20)
    with pytest.raises(MassParking):
        bench.consume(consumer)
    assert len(bench.parked()) == 20
    assert bench.unread() > 0
    with pytest.raises(MassParking):  # and does not begin again by itself
        bench.consume(consumer)
    assert len(bench.parked()) == 20
    bench.poison = set()
    bench.consume(consumer)
    assert bench.unread() == 0
    for key in KEYS[:30]:
        _replay(bench, key)
        assert bench.effects(key) == [1]


def test_poison_now_and_then_stops_nobody(bench: Bench) -> None:
    bench.poison = {"hello"}
    consumer = bench.consumer(park_limit=5)
    for key in KEYS[:15]:
        bench.say(key, 1, 2, 3)
        bench.flush()
        bench.consume(consumer)
        bench.clock.advance(timedelta(seconds=13))
    assert len(bench.parked()) == 15


def test_a_statement_that_runs_out_of_time_is_tried_again_before_its_event_is_parked(bench: Bench) -> None:
    def slow(tx: Tx, events: Sequence[Event]) -> None:
        if any(event.key == A for event in events):
            tx.execute("SET LOCAL statement_timeout = '5ms'; SELECT pg_sleep(5)")
        bench.apply(tx, events)

    bench.say(A, 1)
    bench.say(B, 1)
    bench.flush()
    consumer = bench.consumer(slow)
    for _ in range(2):
        with pytest.raises(QueryCanceled):
            while bench.unread():  # what is on other partitions may come first
                consumer.run_once()
        assert bench.parked() == []
    bench.consume(consumer)
    assert bench.parked() == [(A, 1)]
    assert bench.effects(B) == [1]


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b"{}", {}),
        (b"not json", {"id": "0", "type": "a", "version": "1", "occurred_at": "2026-03-03T10:00:00+00:00"}),
        (b"\xff\x00", {"id": KEYS[5], "type": "a", "version": "x", "occurred_at": "yesterday"}),
        (b"[1]", {"id": KEYS[5], "type": "a", "version": "1", "occurred_at": "2026-03-03T10:00:00+00:00"}),
        (b"{}", {"id": "; --", "type": "a", "version": "1", "occurred_at": "2026-03-03T10:00:00+00:00"}),
        (
            b"{}",
            {"id": KEYS[5], "type": "a", "version": "9" * 30, "occurred_at": "2026-03-03T10:00:00+00:00"},
        ),
        (b"{}", {"id": KEYS[5], "type": "a", "version": "1", "occurred_at": "2026-03-03T10:00:00"}),
        (b"{}", {"id": KEYS[5], "type": "\x00", "version": "one", "occurred_at": "\x00"}),
        (None, {"id": KEYS[5]}),
    ],
)
def test_a_record_that_is_no_event_is_parked_and_never_a_crash_loop(
    bench: Bench, value: bytes | None, headers: dict[str, str]
) -> None:
    bench.say(A, 1)
    bench.say(B, 1)
    bench.flush()
    bench.log.sink().send([Record("deliveries", A, value, headers)], Pass("stranger", 1))
    bench.say(A, 2)
    bench.say(B, 2)
    bench.flush()
    bench.consume()
    bench.consume()
    assert bench.effects(A) == [1]
    assert bench.effects(B) == [1, 2]
    assert bench.parked() == [(A, 2)]
    assert _replay(bench).reason
    assert parking.discard(bench.reader, GROUP, "deliveries", A) == 2
    bench.say(A, 3)
    bench.flush()
    bench.consume()
    assert bench.effects(A) == [1, 3]


def test_what_only_a_newer_version_knows_waits_for_it_and_is_applied_in_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"id": KEYS[5], "type": "message.praised", "version": "2"}
    headers["occurred_at"] = "2026-03-03T10:00:00+00:00"
    bench.say(A, 1)
    bench.flush()
    for _ in range(2):  # a relay may send it twice
        bench.log.sink().send([Record("deliveries", A, b"{}", headers)], Pass("newer", 1))
    bench.say(A, 3)
    bench.say(B, 1)
    bench.flush()
    bench.consume()
    assert bench.effects(A) == [1] and bench.effects(B) == [1]
    assert bench.parked() == [(A, 2)]
    for _ in range(2):
        parking.replay_newer(bench.reader, GROUP, bench.apply)
    [first, _] = parking.show(bench.reader, GROUP, "deliveries", A)
    assert "knows no 'message.praised'" in first.reason and first.attempts == 1
    assert _replay(bench).applied == 0, "an older version's replay would drop it"
    monkeypatch.setattr(parking, "TYPES", {**TYPES, "message.praised": TYPES["message.received"]})
    parking.replay_newer(bench.reader, GROUP, bench.apply)
    assert bench.effects(A) == [1, 2, 3] and bench.parked() == []


def _say_and_flush(bench: Bench, number: int) -> None:
    bench.say(A, number)
    bench.flush()
