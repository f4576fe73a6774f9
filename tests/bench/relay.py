"""The relay beside a bare writer of the same records: psycopg2 into a table, kafka-python into a topic."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

import psycopg2
import psycopg2.extras

from shared.events.relay import BATCH, Relay
from shared.log import Record
from tests.bench.events import campaign, outbox_rows, records
from tests.bench.ground import Ground
from tests.bench.table import Row
from tests.support.running import Running

_CUSTOMERS = 4_000
_BARE = """CREATE TABLE record (topic text NOT NULL, key text NOT NULL, "offset" bigint NOT NULL, value bytea,
    headers json NOT NULL, appended_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (topic, "offset"))"""


def embedded(ground: Ground, repeats: int) -> list[Row]:
    """Events/s from outbox to log ÷ rows/s of the same records inserted in batches, one transaction each."""
    events = campaign(_CUSTOMERS)
    rows, made = outbox_rows(events), records(events)
    ours, base = [], []
    missing = doubled = 0
    with ground.installation() as running:
        bare = ground.postgres.empty("log")
        for repeat in range(repeats + 1):
            ours.append(through_outbox(running, rows))
            base.append(_insert(bare, made))
            if repeat == 0:  # warm
                ours.clear()
                base.clear()
            missing, doubled = _counted(running, repeat + 1, len(events))
    return [Row("relay to the embedded log", "events/s", ours, base, 0.5, missing=missing, doubled=doubled)]


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
    relay = Relay("survey", db, sink)
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


def _counted(running: Running, passes: int, events: int) -> tuple[int, int]:
    """How many events of all passes are missing on the log, and how many are there too often."""
    with running.db("log").transaction() as tx:
        row = tx.one(
            """SELECT count(*) AS ids, coalesce(sum(greatest(times - %(passes)s, 0)), 0)::int AS doubled,
                coalesce(sum(greatest(%(passes)s - times, 0)), 0)::int AS missing
            FROM (SELECT headers->>'id' AS id, count(*) AS times FROM log_record GROUP BY 1) found""",
            {"passes": passes},
        )
    assert row is not None
    return row["missing"] + (events - row["ids"]) * passes, row["doubled"]
