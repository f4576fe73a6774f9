"""The embedded log: topics as tables of a database of their own, with the relay as the sequencer."""

from __future__ import annotations

import json
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from heapq import merge

import psycopg2
import psycopg2.extensions

from shared.clock import Clock
from shared.db import Database, Row, Tx
from shared.errors import Unavailable
from shared.events.catalog import TOPICS
from shared.faults import crash_at
from shared.ids import SystemIds
from shared.log import Entry, Fenced, Lag, Pass, Record, TopicState, UnknownTopic

RETENTION = timedelta(days=14)
COMPACTION_LAG = timedelta(days=1)
_LOCK = 0x4842_0003
_PAGE = 250
# A source takes this many partitions at a time, so that others of its group find work too.
_SHARE = 8
# How long a batch may take before its partitions go to another consumer of the group.
_HOLD_MS = 60_000


class EmbeddedLog:
    """The log in PostgreSQL; see `shared.log.Log` for what each method promises."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.db = Database(
            url,
            clock,
            SystemIds(),
            name="hearback-log",
            pool_size=2,
            statement_timeout=8_000,
            idle_timeout=8_000,
        )

    def ensure_topics(self) -> None:
        with self.db.transaction() as tx:
            tx.values(
                "INSERT INTO log_topic (name, partitions, compacted) VALUES %s ON CONFLICT DO NOTHING",
                [(topic.name, topic.partitions, topic.compacted) for topic in TOPICS.values()],
            )
            tx.execute(
                """INSERT INTO log_partition (topic, "partition")
                SELECT name, generate_series(0, partitions - 1) FROM log_topic ON CONFLICT DO NOTHING"""
            )

    def ping(self) -> None:
        with self.db.transaction() as tx:
            tx.execute("SELECT FROM log_topic LIMIT 1")

    def sink(self) -> EmbeddedSink:
        return EmbeddedSink(self.db)

    def source(self, group: str, topics: Sequence[str]) -> EmbeddedSource:
        with self.db.transaction() as tx:
            tx.execute(
                """INSERT INTO log_offset (consumer, topic, "partition")
                SELECT %s, topic, "partition" FROM log_partition WHERE topic = ANY(%s) ON CONFLICT DO NOTHING""",
                (group, list(topics)),
            )
        return EmbeddedSource(self.db, group, topics)

    def topics(self) -> list[TopicState]:
        with self.db.transaction() as tx:
            rows = tx.all(
                """SELECT t.name, t.partitions, t.compacted,
                    (SELECT count(*) FROM log_record r WHERE r.topic = t.name) AS records,
                    (SELECT coalesce(sum(p.next_offset), 0)::bigint FROM log_partition p WHERE p.topic = t.name)
                        AS appended
                FROM log_topic t ORDER BY t.name"""
            )
        return [TopicState(**row) for row in rows]

    def lag(self, group: str | None = None) -> list[Lag]:
        with self.db.transaction() as tx:
            rows = tx.all(
                """SELECT o.consumer, o.topic, sum(p.next_offset - o."offset")::bigint AS unread,
                    min((SELECT r.appended_at FROM log_record r
                         WHERE p.next_offset > o."offset" AND r.topic = o.topic AND r."partition" = o."partition"
                           AND r."offset" >= o."offset" ORDER BY r."offset" LIMIT 1)) AS oldest
                FROM log_offset o JOIN log_partition p USING (topic, "partition")
                WHERE %(group)s::text IS NULL OR o.consumer = %(group)s
                GROUP BY o.consumer, o.topic ORDER BY o.consumer, o.topic""",
                {"group": group},
            )
            now = tx.now
        return [
            Lag(
                row["consumer"],
                row["topic"],
                row["unread"],
                max(0.0, (now - row["oldest"]).total_seconds()) if row["oldest"] else 0.0,
            )
            for row in rows
        ]

    def tail(self, topic: str, last: int, *, follow: bool = False) -> Iterator[Entry]:
        with self.db.transaction() as tx:
            ends = tx.all('SELECT "partition", next_offset FROM log_partition WHERE topic = %s', (topic,))
            if not ends:
                raise UnknownTopic(f"There is no topic {topic!r}.")
            rows = tx.all(
                """SELECT r.* FROM log_partition p CROSS JOIN LATERAL (
                    SELECT * FROM log_record r WHERE r.topic = p.topic AND r."partition" = p."partition"
                    ORDER BY r."offset" DESC LIMIT %s) r
                WHERE p.topic = %s ORDER BY r.appended_at DESC, r."partition", r."offset" DESC LIMIT %s""",
                (last, topic, last),
            )
        yield from (_entry(row) for row in reversed(rows))
        seen = {row["partition"]: row["next_offset"] for row in ends}
        for row in rows:
            seen[row["partition"]] = max(seen[row["partition"]], row["offset"] + 1)
        while follow:
            with self.db.transaction() as tx:
                rows = _read(
                    tx.cur, [(topic, partition, offset) for partition, offset in seen.items()], _PAGE
                )
            for row in rows:
                seen[row["partition"]] = row["offset"] + 1
                yield _entry(row)
            if not rows:
                time.sleep(0.2)

    def maintain(self, now: datetime) -> int:
        gone = 0
        with self.db.transaction() as tx:
            partitions = tx.all(
                """SELECT p.topic, p."partition", t.compacted FROM log_partition p JOIN log_topic t ON t.name = p.topic
                ORDER BY 1, 2"""
            )
        for place in partitions:
            while True:
                with self.db.transaction() as tx:
                    if not tx.value("SELECT pg_try_advisory_xact_lock(%s)", (_LOCK,)):
                        return gone
                    tx.execute("SET LOCAL statement_timeout = '10min'")
                    step = _compact(tx, place, now) if place["compacted"] else _expire(tx, place, now)
                gone += step
                if step == 0 or place["compacted"]:
                    break
        return gone

    def close(self) -> None:
        self.db.close()


class EmbeddedSink:
    """Appends; who appends to a partition holds its row, so offsets become visible in their order."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._partitions: dict[str, int] = {}

    def send(self, records: Sequence[Record], who: Pass) -> list[bool]:
        with self.db.transaction() as tx:
            self._fence(tx, who)
            by_place: dict[tuple[str, int], list[Record]] = defaultdict(list)
            for record in records:
                by_place[(record.topic, self._partition(tx, record))].append(record)
            topics, numbers = zip(*sorted(by_place), strict=True)
            rows = tx.all(
                """SELECT topic, "partition", next_offset FROM log_partition
                WHERE (topic, "partition") IN (SELECT * FROM unnest(%s::text[], %s::int[]))
                ORDER BY topic, "partition" FOR NO KEY UPDATE""",
                (list(topics), list(numbers)),
            )
            lines = []
            for row in rows:
                place = row["topic"], row["partition"]
                for offset, record in enumerate(by_place[place], row["next_offset"]):
                    value = None if record.value is None else psycopg2.Binary(record.value)
                    lines.append(
                        (*place, offset, record.key, value, json.dumps(dict(record.headers)), tx.now)
                    )
            for start in range(0, len(lines), _PAGE):
                tx.values(
                    """INSERT INTO log_record (topic, "partition", "offset", key, value, headers, appended_at)
                    VALUES %s""",
                    lines[start : start + _PAGE],
                )
                crash_at("relay.mid_batch")
            tx.values(
                """UPDATE log_partition p SET next_offset = p.next_offset + v.added FROM (VALUES %s)
                AS v (topic, "partition", added) WHERE p.topic = v.topic AND p."partition" = v."partition" """,
                [(*place, len(items)) for place, items in by_place.items()],
            )
        return [True] * len(records)

    def close(self) -> None:
        """The connections are the log's."""

    def _fence(self, tx: Tx, who: Pass) -> None:
        passed = tx.execute(
            """INSERT INTO log_producer AS p (name, epoch) VALUES (%s, %s)
            ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch WHERE p.epoch <= excluded.epoch""",
            (who.producer, who.epoch),
        )
        if not passed:
            epoch = tx.value("SELECT epoch FROM log_producer WHERE name = %s", (who.producer,))
            raise Fenced(f"A later pass of {who.producer} has sent.", epoch)

    def _partition(self, tx: Tx, record: Record) -> int:
        if record.topic not in self._partitions:
            rows = tx.all("SELECT name, partitions FROM log_topic")
            self._partitions = {row["name"]: row["partitions"] for row in rows}
        try:
            count = self._partitions[record.topic]
        except KeyError:
            raise UnknownTopic(f"There is no topic {record.topic!r}.") from None
        return zlib.crc32(record.key.encode()) % count


class EmbeddedSource:
    """Reads; from poll to commit the rows of its partitions' offsets are locked on a connection of its own."""

    def __init__(self, db: Database, group: str, topics: Sequence[str]) -> None:
        self.db = db
        self.group = group
        self.topics = list(topics)
        self._share = _SHARE
        self._connection: psycopg2.extensions.connection | None = None
        self._next: dict[tuple[str, int], int] = {}

    def poll(self, limit: int) -> list[Entry]:
        self.release()
        with self._cursor() as cur:
            cur.execute(
                """SELECT o.topic, o."partition", o."offset", p.next_offset
                FROM log_offset o JOIN log_partition p USING (topic, "partition")
                WHERE o.consumer = %s AND o.topic = ANY(%s) AND p.next_offset > o."offset"
                ORDER BY o.turn LIMIT %s FOR NO KEY UPDATE OF o SKIP LOCKED""",
                (self.group, self.topics, self._share),
            )
            taken = [dict(row) for row in cur.fetchall()]
            if not taken:
                self.release()
                return []
            each = max(1, limit // len(taken))
            rows = _read(cur, [(row["topic"], row["partition"], row["offset"]) for row in taken], each)
        by_place: dict[tuple[str, int], list[Entry]] = defaultdict(list)
        for row in rows:
            by_place[(row["topic"], row["partition"])].append(_entry(row))
        for row in taken:
            place = row["topic"], row["partition"]
            entries = by_place[place]
            end = entries[-1].offset + 1 if entries else 0
            # Fewer than asked for: the rest up to the end was compacted away or is past its retention.
            self._next[place] = max(end, row["next_offset"]) if len(entries) < each else end
        if not rows:
            self.commit()
            return []
        # Interleaved by time, so that a fresh replica sees roughly what happened; each partition stays in order.
        return list(merge(*by_place.values(), key=lambda entry: entry.at))

    def commit(self) -> None:
        if not self._next:
            return
        connection, places = self._connection, self._next
        self._next = {}
        if connection is None or connection.closed:
            raise Unavailable("The log took these partitions back.")
        with self._cursor() as cur:
            topics, numbers = zip(*places, strict=True)
            cur.execute(
                """UPDATE log_offset o SET "offset" = v.next, turn = nextval('log_turn')
                FROM unnest(%s::text[], %s::int[], %s::bigint[]) AS v (topic, "partition", next)
                WHERE o.consumer = %s AND o.topic = v.topic AND o."partition" = v."partition" """,
                (list(topics), list(numbers), list(places.values()), self.group),
            )
            connection.commit()

    def release(self) -> None:
        self._next = {}
        connection = self._connection
        if connection is None:
            return
        try:
            connection.rollback()
        except psycopg2.Error:
            self._drop()

    def close(self) -> None:
        self._next = {}
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _cursor(self) -> psycopg2.extensions.cursor:
        if self._connection is None or self._connection.closed:
            self._connection = self.db.connect()
            with self._connection.cursor() as cur:
                cur.execute(f"SET idle_in_transaction_session_timeout = {_HOLD_MS}")
            self._connection.commit()
        return self._connection.cursor()


def _read(cur: psycopg2.extensions.cursor, places: Sequence[tuple[str, int, int]], each: int) -> list[Row]:
    topics, numbers, offsets = zip(*places, strict=True)
    cur.execute(
        """SELECT r.* FROM unnest(%s::text[], %s::int[], %s::bigint[]) AS want (topic, "partition", "offset")
        CROSS JOIN LATERAL (
            SELECT * FROM log_record r WHERE r.topic = want.topic AND r."partition" = want."partition"
            AND r."offset" >= want."offset" ORDER BY r."offset" LIMIT %s) r
        ORDER BY r.topic, r."partition", r."offset" """,
        (list(topics), list(numbers), list(offsets), each),
    )
    return [dict(row) for row in cur.fetchall()]


def _entry(row: Row) -> Entry:
    return Entry(
        topic=row["topic"],
        key=row["key"],
        value=None if row["value"] is None else bytes(row["value"]),
        headers=row["headers"],
        partition=row["partition"],
        offset=row["offset"],
        at=row["appended_at"],
    )


def _expire(tx: Tx, place: Row, now: datetime) -> int:
    # Offsets rise with time, so what is old lies at the low end of the primary key.
    return tx.execute(
        """DELETE FROM log_record WHERE ctid IN (
            SELECT ctid FROM log_record WHERE topic = %(topic)s AND "partition" = %(partition)s
            ORDER BY "offset" LIMIT 5000
        ) AND appended_at < %(before)s""",
        {"topic": place["topic"], "partition": place["partition"], "before": now - RETENTION},
    )


def _compact(tx: Tx, place: Row, now: datetime) -> int:
    return tx.execute(
        """WITH newest AS (
            SELECT key, max("offset") AS "offset" FROM log_record
            WHERE topic = %(topic)s AND "partition" = %(partition)s GROUP BY key
        )
        DELETE FROM log_record r USING newest n
        WHERE r.topic = %(topic)s AND r."partition" = %(partition)s AND r.key = n.key AND (
            (r."offset" < n."offset" AND r.appended_at < %(superseded)s)
            OR (r.value IS NULL AND r.appended_at < %(erased)s))""",
        {
            "topic": place["topic"],
            "partition": place["partition"],
            "superseded": now - COMPACTION_LAG,
            "erased": now - RETENTION,
        },
    )
