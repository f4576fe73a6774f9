"""Reads the embedded log: a group's consumers take partitions from each other for one batch at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from heapq import merge

import psycopg2
import psycopg2.extensions

from shared.db import Database, Row
from shared.errors import Unavailable
from shared.log import Entry

# A source takes this many partitions at a time, so that others of its group find work too.
_SHARE = 8
# How long a batch may take before its partitions go to another consumer of the group.
_HOLD_MS = 60_000


class EmbeddedSource:
    """Reads; from poll to commit its partitions' offset rows are locked on a connection of its own."""

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
            rows = read(cur, [(row["topic"], row["partition"], row["offset"]) for row in taken], each)
        ends = {(row["topic"], row["partition"]): row["offset"] + 1 for row in rows}
        counts = Counter((row["topic"], row["partition"]) for row in rows)
        for row in taken:
            place = row["topic"], row["partition"]
            # Fewer than asked for: the rest up to the end was compacted away or is past its retention.
            end = ends.get(place, 0)
            self._next[place] = max(end, row["next_offset"]) if counts[place] < each else end
        if not rows:
            self.commit()
            return []
        return by_time(rows)

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


def read(cur: psycopg2.extensions.cursor, places: Sequence[tuple[str, int, int]], each: int) -> list[Row]:
    """Up to `each` records of every (topic, partition) from its offset on."""
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


def entry_of(row: Row) -> Entry:
    return Entry(
        topic=row["topic"],
        key=row["key"],
        value=None if row["value"] is None else bytes(row["value"]),
        headers=row["headers"],
        partition=row["partition"],
        offset=row["offset"],
        at=row["appended_at"],
    )


def by_time(rows: Sequence[Row]) -> list[Entry]:
    """Entries of several partitions interleaved by time; each partition stays in order."""
    by_place: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for row in rows:
        by_place[(row["topic"], row["partition"])].append(entry_of(row))
    return list(merge(*by_place.values(), key=lambda entry: entry.at))
