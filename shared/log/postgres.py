"""The embedded log: topics as tables of a database of their own, with the relay as the sequencer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from shared.clock import Clock
from shared.db import Database, Row, Tx
from shared.events.catalog import TOPICS
from shared.ids import SystemIds
from shared.log import Entry, Lag, TopicState, UnknownTopic
from shared.log.postgres_sink import EmbeddedSink
from shared.log.postgres_source import EmbeddedSource, by_time, entry_of, read

RETENTION = timedelta(days=14)
COMPACTION_LAG = timedelta(days=1)
_LOCK = 0x4842_0003
_PAGE = 250
# A relay waits 10 s for the log before its own lock is freed: the log has to give up earlier.
_STATEMENT_MS = 8_000


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
                SELECT %s, topic, "partition" FROM log_partition WHERE topic = ANY(%s)
                ON CONFLICT DO NOTHING""",
                (group, list(topics)),
            )
        return EmbeddedSource(self.db, group, topics)

    def topics(self) -> list[TopicState]:
        with self.db.transaction() as tx:
            rows = tx.all(
                """SELECT t.name, t.partitions, t.compacted,
                    (SELECT count(*) FROM log_record r WHERE r.topic = t.name) AS records,
                    (SELECT coalesce(sum(p.next_offset), 0)::bigint FROM log_partition p
                     WHERE p.topic = t.name) AS appended
                FROM log_topic t ORDER BY t.name"""
            )
        return [TopicState(**row) for row in rows]

    def lag(self, group: str | None = None) -> list[Lag]:
        with self.db.transaction() as tx:
            rows = tx.all(
                """SELECT o.consumer, o.topic, sum(p.next_offset - o."offset")::bigint AS unread,
                    min((SELECT r.appended_at FROM log_record r
                         WHERE p.next_offset > o."offset" AND r.topic = o.topic
                           AND r."partition" = o."partition" AND r."offset" >= o."offset"
                         ORDER BY r."offset" LIMIT 1)) AS oldest
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
                WHERE p.topic = %s ORDER BY r."partition", r."offset" """,
                (last, topic),
            )
        yield from by_time(rows)[-last:]
        seen = {row["partition"]: row["next_offset"] for row in ends}
        for row in rows:
            seen[row["partition"]] = max(seen[row["partition"]], row["offset"] + 1)
        while follow:
            with self.db.transaction() as tx:
                rows = read(tx.cur, [(topic, partition, offset) for partition, offset in seen.items()], _PAGE)
            for row in rows:
                seen[row["partition"]] = row["offset"] + 1
                yield entry_of(row)
            if not rows:
                time.sleep(0.2)

    def discard(self) -> None:
        with self.db.transaction() as tx:
            tx.execute("TRUNCATE log_record")
            # Nothing is left to be read; places are not used a second time.
            tx.execute(
                """UPDATE log_offset o SET "offset" = p.next_offset FROM log_partition p
                WHERE p.topic = o.topic AND p."partition" = o."partition" """
            )

    def maintain(self, now: datetime) -> int:
        gone = 0
        with self.db.transaction() as tx:
            partitions = tx.all(
                """SELECT p.topic, p."partition", t.compacted
                FROM log_partition p JOIN log_topic t ON t.name = p.topic
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
