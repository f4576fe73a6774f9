"""A publishing and a consuming service on one log, for every adapter of the log alike."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from shared.clock import ManualClock
from shared.db import Database, Tx
from shared.events import outbox
from shared.events.consumer import Apply, Consumer
from shared.events.envelope import Event
from shared.events.relay import Relay
from shared.ids import SystemIds
from shared.log import Entry, Log, Source, open_log
from shared.log.kafka_source import KafkaSource
from shared.settings import LOGS, Settings
from tests.support.kafka import Broker
from tests.support.postgres import FreshDatabases, TestPostgres

GROUP = "reporting"
KEYS = [str(uuid.UUID(int=number)) for number in range(1, 101)]
TOPICS = ("customers", "deliveries")
_numbers = itertools.count(1)


class Broken(Exception):
    """What a handler raises that will never succeed."""


def message(key: str, number: int, text: str = "hello") -> dict[str, Any]:
    """The data of a `message.received`; its id follows from key and number."""
    return {
        "message_id": str(uuid.uuid5(uuid.UUID(key), str(number))),
        "customer_id": key,
        "account_id": None,
        "channel": "sms",
        "text": text,
        "at": "2026-03-03T10:00:00Z",
    }


def customer(key: str, name: str = "Ada") -> dict[str, Any]:
    """The data of a `customer.changed`."""
    return {
        "id": key,
        "external_id": None,
        "email": "ada@example.com",
        "phone": None,
        "name": name,
        "account": None,
        "language": None,
        "time_zone": None,
        "touchpoint": None,
        "properties": {},
        "may_email": True,
        "may_sms": False,
        "email_opt_out_at": None,
        "sms_opt_out_at": None,
        "created_at": "2026-03-03T10:00:00Z",
        "updated_at": "2026-03-03T10:00:00Z",
    }


@dataclass
class Bench:
    """Two services and a log. Effects are written down in the order in which they happen."""

    log: Log
    owner: Database
    reader: Database
    clock: ManualClock
    poison: set[str] = field(default_factory=set)

    def say(self, key: str, *numbers: int, text: str = "hello") -> None:
        """Appends messages of one customer, one transaction each, numbered as their versions."""
        for number in numbers:
            with self.owner.transaction() as tx:
                self.append(tx, key, number, text)

    def append(self, tx: Tx, key: str, number: int, text: str = "hello") -> None:
        outbox.append(tx, "message.received", key, number, message(key, number, text), aggregate=key)

    def change(self, key: str, version: int, name: str = "Ada") -> None:
        with self.owner.transaction() as tx:
            outbox.append(tx, "customer.changed", key, version, customer(key, name))

    def erase(self, key: str, version: int) -> None:
        with self.owner.transaction() as tx:
            outbox.erase(tx, key, version)

    def relay(self, **options: Any) -> Relay:
        return Relay("survey", self.owner, self.log.sink(), **options)

    def flush(self) -> None:
        """Sends all of the outbox, late commits too."""
        while self.relay().run_once():
            pass

    def consumer(self, apply: Apply | None = None, **options: Any) -> Consumer:
        source = self.log.source(GROUP, TOPICS)
        if isinstance(source, KafkaSource):
            _join(source)
        return Consumer(GROUP, self.reader, source, apply or self.apply, **options)

    def consume(self, consumer: Consumer | None = None) -> None:
        """Applies all that is on the log."""
        mine = consumer or self.consumer()
        # A member of a group is given nothing until it has joined.
        while mine.run_once() or self.unread():
            pass
        mine.source.close()

    def apply(self, tx: Tx, events: Sequence[Event]) -> None:
        """Writes each event down; those whose text is poison, never."""
        for event in events:
            if event.data and event.data.get("text") in self.poison:
                raise Broken("this one never works")
            tx.execute(
                "INSERT INTO effect (event_id, topic, key, version) VALUES (%s, %s, %s, %s)",
                (event.id, event.topic, event.key, event.version),
            )

    def effects(self, key: str | None = None, topic: str | None = None) -> list[int]:
        """The versions applied, in order, of one key or of all."""
        with self.reader.transaction() as tx:
            rows = tx.all(
                """SELECT version FROM effect WHERE (%(key)s::text IS NULL OR key = %(key)s)
                AND (%(topic)s::text IS NULL OR topic = %(topic)s) ORDER BY id""",
                {"key": key, "topic": topic},
            )
        return [row["version"] for row in rows]

    def waiting(self) -> int:
        """How many events are in the outbox."""
        with self.owner.transaction() as tx:
            return int(tx.value("SELECT count(*) FROM outbox"))

    def parked(self) -> list[tuple[str, int]]:
        """The keys that are parked, and with how many events each."""
        with self.reader.transaction() as tx:
            rows = tx.all("SELECT key, count(*) AS events FROM parked GROUP BY key ORDER BY key")
        return [(row["key"], row["events"]) for row in rows]

    def pass_time(self, seconds: float) -> None:
        """Moves the clock on; a log that has a clock of its own sees a moment pass."""
        self.clock.advance(timedelta(seconds=seconds))
        time.sleep(0.002)

    def on_log(self, topic: str) -> list[Entry]:
        return list(self.log.tail(topic, 10_000))

    def unread(self) -> int:
        behind = {lag.topic: lag.unread for lag in self.log.lag(GROUP)}
        # Who has not begun with a topic has all of it before them.
        whole = {topic.name: topic.records for topic in self.log.topics() if topic.name in TOPICS}
        return sum((whole | behind).values())


def _join(source: KafkaSource) -> None:
    """A member of a group is given nothing until it has joined, which may take a new broker a while."""
    until = time.monotonic() + 5  # while others of the group stand still, it waits for them in vain
    while not source._joined().assignment() and time.monotonic() < until:
        source.poll(1)
    source.release()


def first_batch(consumer: Consumer) -> None:
    """Runs the consumer until there was something to apply."""
    until = time.monotonic() + 30
    while not consumer.run_once():
        assert time.monotonic() < until, "nothing came"


def first_of(source: Source, limit: int) -> list[Entry]:
    """The first entries that a source gives, once it has joined its group."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if found := source.poll(limit):
            return found
    raise AssertionError("nothing came")


@pytest.fixture(scope="session")
def shared_urls(postgres: TestPostgres) -> Iterator[FreshDatabases]:
    """Databases that the tests of this folder share; each leaves them empty."""
    urls = FreshDatabases(postgres)
    yield urls
    urls.drop()


@pytest.fixture(params=LOGS)
def log_settings(request: pytest.FixtureRequest, shared_urls: FreshDatabases, tmp_path: Path) -> Settings:
    """Settings for one adapter; on Kafka each test has topics of its own."""
    kafka = None
    if request.param == "kafka":
        broker: Broker = request.getfixturevalue("broker")
        kafka = broker.settings(f"test{next(_numbers)}.")
    return Settings(home=tmp_path, secret="x" * 32, database_urls=shared_urls, log=request.param, kafka=kafka)


@pytest.fixture
def log(log_settings: Settings, shared_urls: FreshDatabases, clock: ManualClock) -> Iterator[Log]:
    """An empty log with every topic of the catalog."""
    made = open_log(log_settings, clock)
    made.ensure_topics()
    yield made
    made.close()
    if log_settings.log == "embedded":
        _empty(shared_urls["log"], "log_record, log_offset, log_partition, log_topic, log_producer")


# What only the embedded log does itself: retention and compaction by our clock, fencing by number, partitions
# taken from each other batch by batch. Kafka's own ways are in test_kafka.py.
only_embedded = pytest.mark.parametrize("log_settings", ["embedded"], indirect=True)
only_kafka = pytest.mark.parametrize("log_settings", ["kafka"], indirect=True)


@pytest.fixture
def bench(log: Log, shared_urls: FreshDatabases, clock: ManualClock, ids: SystemIds) -> Iterator[Bench]:
    owner, reader = (Database(shared_urls[name], clock, ids, name=name) for name in ("survey", "reporting"))
    with reader.transaction() as tx:
        tx.execute(
            """CREATE TABLE IF NOT EXISTS effect (id bigint GENERATED ALWAYS AS IDENTITY,
                event_id uuid, topic text, key text, version bigint)"""
        )
    yield Bench(log, owner, reader, clock)
    owner.close()
    reader.close()
    _empty(shared_urls["survey"], "outbox, parked_key, parked, customer, log_in_use")
    _empty(shared_urls["reporting"], "inbox, parked_key, parked, consumer_stop, effect, log_in_use")


def _empty(url: str, tables: str) -> None:
    """Empties tables, whoever a test left holding them."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cur:
            cur.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND backend_type = 'client backend'
                    AND pid <> pg_backend_pid()"""
            )
            cur.execute(f"TRUNCATE {tables} CASCADE")
    finally:
        connection.close()
