"""Events of one key keep their order, however sessions and relays interleave."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from shared.errors import Unavailable
from shared.events import outbox
from shared.events.relay import SWEEP_SECONDS, Relay
from shared.log import Fenced, Pass, Record
from tests.contract.conftest import KEYS, Bench, customer, message, only_embedded

A, B = KEYS[0], KEYS[1]


def _customers(bench: Bench, *keys: str) -> None:
    with bench.owner.transaction() as tx:
        for key in keys:
            tx.execute(
                "INSERT INTO customer (id, version, created_at, updated_at) VALUES (%s, 0, %s, %s)",
                (key, tx.now, tx.now),
            )


def _command(
    bench: Bench, key: str, begun: threading.Event | None = None, go: threading.Event | None = None
) -> int:
    """A command as they all are: lock the key's row, count up, append."""
    with bench.owner.transaction() as tx:
        if begun:
            begun.set()
        version = tx.value(
            "UPDATE customer SET version = version + 1 WHERE id = %s RETURNING version", (key,)
        )
        if go:
            go.wait(10)
        outbox.append(tx, "customer.changed", key, version, customer(key))
    return int(version)


def test_two_sessions_on_one_key_publish_in_the_order_of_their_versions(bench: Bench) -> None:
    _customers(bench, A)
    begun, go = threading.Event(), threading.Event()
    first = threading.Thread(target=_command, args=(bench, A, begun, go))
    first.start()
    begun.wait(10)
    rest = [threading.Thread(target=_command, args=(bench, A)) for _ in range(3)]
    for thread in rest:
        thread.start()
    bench.flush()  # sees none of them
    go.set()
    for thread in [first, *rest]:
        thread.join()
    bench.flush()
    bench.consume()
    assert bench.effects(A) == [1, 2, 3, 4]


def test_commands_on_many_keys_from_many_sessions_keep_each_keys_order(bench: Bench) -> None:
    _customers(bench, *KEYS[:5])
    stop = threading.Event()
    relays = [threading.Thread(target=bench.relay(batch=3).run, args=(stop, 0.001)) for _ in range(2)]

    def work(offset: int) -> None:
        for number in range(40):
            _command(bench, KEYS[(number + offset) % 5])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in [*relays, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    for thread in relays:
        thread.join()
    bench.flush()
    assert len(bench.on_log("customers")) == 160  # two relays send nothing twice without need
    bench.consume()
    for key in KEYS[:5]:
        assert bench.effects(key) == list(range(1, 33))


def test_a_late_commit_with_a_low_id_is_delivered(bench: Bench) -> None:
    relay = bench.relay()
    late = bench.owner.connect()
    try:
        cursor = late.cursor()
        _raw(cursor, A, 1)  # draws the lower id, commits last
        bench.say(B, 1, 2)
        assert relay.run_once()
        bench.clock.advance(_seconds(2))
        bench.say(B, 3)
        assert relay.run_once()
        bench.clock.advance(_seconds(0.5))
        relay.run_once()
        late.commit()
        bench.clock.advance(_seconds(SWEEP_SECONDS))
        assert relay.run_once()
    finally:
        late.close()
    assert bench.waiting() == 0
    bench.consume()
    assert bench.effects(A) == [1]
    assert bench.effects(B) == [1, 2, 3]


def test_a_late_commit_is_never_overtaken_by_a_later_event_of_its_key(bench: Bench) -> None:
    relay = bench.relay()
    relay.run_once()
    late = bench.owner.connect()
    try:
        cursor = late.cursor()
        _raw(cursor, A, 1)
        for number in range(1, 5):
            bench.say(B, number)
            relay.run_once()
            bench.clock.advance(_seconds(0.6))
        assert relay._floor > 0
        late.commit()
    finally:
        late.close()
    bench.say(A, 2)
    relay._swept = relay.db.clock.monotonic()  # no sweep is due
    assert relay.run_once()
    bench.consume()
    assert bench.effects(A) == [1, 2]


def test_after_a_partitions_first_failed_send_the_rest_goes_again_in_order(bench: Bench) -> None:
    faltering = Faltering(bench, failures=1)
    for number in range(1, 6):
        bench.say(A, number)
        bench.say(B, number)
    relay = bench.relay()
    relay.sink = faltering
    relay.run_once()
    assert bench.waiting() == 3
    bench.say(A, 6)
    bench.clock.advance(_seconds(0.5))
    relay.run_once()
    assert bench.waiting() == 0
    bench.consume()
    assert bench.effects(A) == [1, 2, 3, 4, 5, 6]
    assert bench.effects(B) == [1, 2, 3, 4, 5]


def test_what_failed_is_not_left_to_the_next_sweep(bench: Bench) -> None:
    for number in range(1, 4):
        bench.say(A, number)
    relay = bench.relay()
    relay.sink = Faltering(bench, failures=3)
    relay.run_once()
    for number, seconds in enumerate((1.1, 1.1, 1.1)):
        bench.clock.advance(_seconds(seconds))
        bench.say(B, number)
        relay.run_once()
    assert bench.waiting() == 0


class Faltering:
    """A sink that at first confirms only what comes before A's third record."""

    def __init__(self, bench: Bench, failures: int) -> None:
        self.inner = bench.log.sink()
        self.failures = failures
        self.sent = 0

    def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
        if not self.failures or not any(record.key == A for record in records):
            return self.inner.send(records, who)
        self.failures -= 1
        good = []
        for record in records:
            if record.key == A:
                self.sent += 1
            good.append(record.key != A or self.sent < 3)
        self.sent = min(self.sent, 2)
        self.inner.send([record for record, fine in zip(records, good, strict=True) if fine], who)
        return [None if fine else Unavailable("Not now.") for fine in good]

    def close(self) -> None:
        self.inner.close()


class Refusing:
    """A sink that takes nothing of some keys."""

    def __init__(self, bench: Bench, *keys: str) -> None:
        self.inner = bench.log.sink()
        self.keys = set(keys)
        self.tries = 0

    def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
        fine = [record.key not in self.keys for record in records]
        self.tries += not all(fine)
        self.inner.send([record for record, good in zip(records, fine, strict=True) if good], who)
        return [None if good else Unavailable("Of this no more.") for good in fine]

    def close(self) -> None:
        self.inner.close()


def _of_each_shard(number: int) -> list[str]:
    """A key of each shard, others for each number."""
    found: dict[int, str] = {}
    for name in itertools.count(number * 1_000):
        found.setdefault(outbox.shard_of(str(uuid.UUID(int=name))), str(uuid.UUID(int=name)))
        if len(found) == outbox.SHARDS:
            return [found[shard] for shard in range(outbox.SHARDS)]
    raise AssertionError


def _pass(relay: Relay) -> None:
    """One pass, as the loop does it: an error is a reason to come again."""
    with contextlib.suppress(Unavailable):
        relay.run_once()


@pytest.mark.parametrize("shard", range(outbox.SHARDS))
def test_of_what_the_log_refuses_only_its_key_waits(bench: Bench, shard: int) -> None:
    bad, relay = _of_each_shard(1)[shard], bench.relay()
    relay.sink = refusing = Refusing(bench, bad)
    bench.say(bad, 1, 2)
    for number in range(2, 12):
        bench.clock.advance(_seconds(0.1))
        for key in _of_each_shard(number):
            bench.say(key, 1)
        _pass(relay)
        _pass(relay)
        assert bench.waiting() == 2, "others wait with it"
    assert "Of this no more" in relay.trouble and refusing.tries < 10
    bench.say(bad, 3)
    refusing.keys.clear()
    bench.clock.advance(_seconds(5))
    _pass(relay)
    assert bench.waiting() == 0 and relay.trouble == ""
    bench.consume()
    assert bench.effects(bad) == [1, 2, 3]


def test_many_events_that_the_log_refuses_hide_no_others(bench: Bench) -> None:
    bad = [key for number in range(1, 61) for key in _of_each_shard(number)[:2]]
    relay = bench.relay(batch=50)
    relay.sink = refusing = Refusing(bench, *bad)
    for key in bad:
        bench.say(key, 1)
    for _ in range(20):
        _pass(relay)
    fine = _of_each_shard(100)
    for key in fine:
        bench.say(key, 1)
    for _ in range(3):
        _pass(relay)
    assert bench.waiting() == len(bad)
    refusing.keys = {bad[0]}
    for _ in range(4 * len(bad)):
        bench.clock.advance(_seconds(1))
        _pass(relay)
    assert bench.waiting() == 1
    bench.consume()
    assert all(bench.effects(key) == [1] for key in [*bad[1:], *fine])


def test_a_shard_whose_sending_fails_altogether_comes_last_next_time(bench: Bench) -> None:
    inner, bad = bench.log.sink(), _of_each_shard(1)[1]

    class Gone:
        def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
            if any(record.key == bad for record in records):
                raise Unavailable("Nobody there.")
            return inner.send(records, who)

        def close(self) -> None:
            inner.close()

    relay = bench.relay()
    relay.sink = Gone()
    for key in _of_each_shard(1):
        bench.say(key, 1)
    for _ in range(2):
        with pytest.raises(Unavailable):
            relay.run_once()
    assert bench.waiting() == 1


def test_a_frozen_relay_loses_its_shard_and_cannot_send_late(bench: Bench) -> None:
    inner = bench.log.sink()
    frozen, thaw = threading.Event(), threading.Event()
    refused: list[BaseException] = []

    class Freezing:
        def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
            frozen.set()
            thaw.wait(20)
            try:
                return inner.send(records, who)
            except Fenced as error:
                refused.append(error)
                raise

        def close(self) -> None:
            inner.close()

    bench.change(A, 1)
    sleeper = bench.relay(frozen_ms=300)
    sleeper.sink = Freezing()
    ended: list[Any] = []

    def sleep_through() -> None:
        try:
            ended.append(sleeper.run_once())
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=sleep_through)
    thread.start()
    assert frozen.wait(10)
    other = bench.relay()
    assert not other.run_once()  # the lock is held
    pause = threading.Event()
    while not other.run_once():
        pause.wait(0.05)
    bench.erase(A, 2)
    while not other.run_once():
        pause.wait(0.05)
    thaw.set()
    thread.join()
    assert refused, "the log took a stale pass"
    assert isinstance(ended[0], Exception)
    entries = [(entry.headers["version"], entry.value is None) for entry in bench.on_log("customers")]
    assert entries == [("1", False), ("2", True)]
    assert bench.waiting() == 0


@only_embedded
def test_a_relay_whose_database_was_restored_goes_on_above_the_logs_epoch(bench: Bench) -> None:
    bench.say(A, 1)
    bench.flush()
    with bench.owner.transaction() as tx:
        tx.execute("ALTER SEQUENCE outbox_epoch RESTART 1")
    with bench.owner.transaction() as tx:
        before = tx.value("SELECT nextval('outbox_epoch')")
    assert before == 1
    for _ in range(3):  # as if many passes had been sent since the backup
        bench.say(A, 2)
        bench.flush()
    with bench.owner.transaction() as tx:
        tx.execute("ALTER SEQUENCE outbox_epoch RESTART 1")
    bench.say(A, 3)
    relay = bench.relay()
    assert [relay.run_once() for _ in range(2)] == [False, True]
    assert bench.waiting() == 0


@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_however_relays_interleave_each_key_arrives_once_and_in_order(
    bench: Bench, data: st.DataObject
) -> None:
    with bench.reader.transaction() as tx:
        tx.execute("TRUNCATE effect")
    relays = [bench.relay(batch=data.draw(st.integers(1, 4))) for _ in range(2)]
    base = int(bench.clock.monotonic() * 1000) + 1
    counts = dict.fromkeys(KEYS[:3], 0)
    for step in data.draw(st.lists(st.sampled_from([*KEYS[:3], "relay 0", "relay 1", "time"]), max_size=30)):
        if step.startswith("relay"):
            relays[int(step[-1])].run_once()
        elif step == "time":
            bench.clock.advance(_seconds(0.7))
        else:
            bench.say(step, base + counts[step])
            counts[step] += 1
    bench.clock.advance(_seconds(SWEEP_SECONDS))
    bench.flush()
    bench.consume()
    for key, count in counts.items():
        assert bench.effects(key) == [base + number for number in range(count)]


def _raw(cursor: psycopg2.extensions.cursor, key: str, number: int) -> None:
    kind = outbox.event_id("deliveries", key, number)
    cursor.execute(
        """INSERT INTO outbox (shard, topic, key, event_id, type, version, occurred_at, data)
        VALUES (%s, 'deliveries', %s, %s, 'message.received', %s, now(), %s)""",
        (outbox.shard_of(key), key, kind, number, json.dumps(message(key, number))),
    )


def _seconds(number: float) -> timedelta:
    return timedelta(seconds=number)
