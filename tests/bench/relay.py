"""The relay beside a bare writer of the same records: psycopg2 into a table, kafka-python into a topic."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import psycopg2
import psycopg2.extras
from kafka import KafkaProducer

from shared.events.catalog import TOPICS
from shared.events.relay import BATCH, Relay
from shared.log import Record, partition_of
from shared.log.kafka import KafkaLog
from shared.settings import KafkaSettings
from tests.bench.events import campaign, outbox_rows, records
from tests.bench.ground import Ground
from tests.bench.table import Row
from tests.support.running import Running

_CUSTOMERS = 4_000
_BARE = """CREATE TABLE record (topic text NOT NULL, key text NOT NULL, "offset" bigint NOT NULL, value bytea,
    headers json NOT NULL, appended_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (topic, "offset"))"""


def to_each_log(ground: Ground, repeats: int) -> list[Row]:
    """Events/s from outbox to log ÷ records/s of the bare writer."""
    return [_to(ground, name, repeats) for name in ground.logs()]


def _to(ground: Ground, name: str, repeats: int) -> Row:
    events = campaign(_CUSTOMERS)
    rows, made = outbox_rows(events), records(events)
    ours, base = [], []
    with ground.installation(name) as running:
        write = _bare(ground, running, made)
        for _ in range(repeats + 1):
            ours.append(through_outbox(running, rows))
            base.append(write())
        missing, doubled = _counted(running, [event.id for event in events], repeats + 1)
    # The first pair only warms up.
    return Row(f"relay, {name} log", "events/s", ours[1:], base[1:], 0.5, missing=missing, doubled=doubled)


def _bare(ground: Ground, running: Running, made: Sequence[Record]) -> Callable[[], float]:
    """The bare writer for the log in use: into a database, or into topics, of its own."""
    if running.settings.kafka is None:
        url = ground.postgres.empty("log")
        return lambda: _insert(url, made)
    kafka = replace(running.settings.kafka, prefix=f"{running.settings.kafka.prefix}bare.")
    topics = KafkaLog(kafka)
    topics.ensure_topics()
    topics.close()
    return lambda: _produce(kafka, made)


def through_outbox(running: Running, rows: Sequence[tuple[object, ...]]) -> float:
    """Fills survey's outbox, relays all of it and returns events/s."""
    db = running.db("survey")
    with db.transaction() as tx:
        tx.values(
            "INSERT INTO outbox (shard, topic, key, event_id, type, version, occurred_at, data, replay,"
            " trace)"
            " VALUES %s",
            rows,
        )
    log = running.log()
    sink = log.sink()
    relay = Relay("survey", db, sink, log=running.settings.log or "embedded")
    try:
        began = time.perf_counter()
        while relay.run_once():
            pass
        took = time.perf_counter() - began
    finally:
        sink.close()
        log.close()
    with db.transaction() as tx:
        assert tx.value("SELECT count(*) FROM outbox") == 0
    return len(rows) / took


def _insert(url: str, made: Sequence[Record]) -> float:
    with contextlib.closing(psycopg2.connect(url)) as db:
        with db, db.cursor() as cur:
            cur.execute("DROP TABLE IF EXISTS record")
            cur.execute(_BARE)
        began = time.perf_counter()
        for start in range(0, len(made), BATCH):
            with db, db.cursor() as cur:
                psycopg2.extras.execute_values(
                    cur,
                    'INSERT INTO record (topic, key, "offset", value, headers) VALUES %s',
                    [
                        (one.topic, one.key, start + n, one.value, json.dumps(dict(one.headers)))
                        for n, one in enumerate(made[start : start + BATCH])
                    ],
                    page_size=BATCH,
                )
        return len(made) / (time.perf_counter() - began)


def _produce(settings: KafkaSettings, made: Sequence[Record]) -> float:
    """An idempotent producer that waits for all replicas, as its documentation shows it."""
    producer = KafkaProducer(
        bootstrap_servers=settings.bootstrap,
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
        batch_size=256 * 1024,
        linger_ms=5,
        allow_auto_create_topics=False,
    )
    try:
        places = {one.topic: f"{settings.prefix}{one.topic}" for one in made}
        began = time.perf_counter()
        sent = [
            producer.send(
                places[one.topic],
                value=one.value,
                key=one.key.encode(),
                headers=[(name, value.encode()) for name, value in one.headers.items()],
                partition=partition_of(one.key, TOPICS[one.topic].partitions),
            )
            for one in made
        ]
        producer.flush()
        took = time.perf_counter() - began
        assert all(future.succeeded() for future in sent)
    finally:
        producer.close()
    return len(made) / took


def _counted(running: Running, ids: Sequence[str], passes: int) -> tuple[int, int]:
    """How many events of all passes are missing on the log, and how many are there too often."""
    log = running.log()
    source = log.source("count", list(TOPICS))
    found: Counter[str] = Counter()
    try:
        empty = 0
        while empty < 5:
            entries = source.poll(2_000)
            found.update(entry.headers["id"] for entry in entries)
            source.commit()
            empty = 0 if entries else empty + 1
    finally:
        source.close()
        log.close()
    missing = sum(max(0, passes - found[id_]) for id_ in ids)
    return missing, sum(max(0, count - passes) for count in found.values())
