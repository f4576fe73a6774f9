"""Appends to the embedded log: the relay is the sequencer, offsets become visible in their order."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence

from shared.db import Database, Tx
from shared.faults import crash_at
from shared.log import Fenced, Pass, Record, UnknownTopic, partition_of

_COLUMNS = {
    "topic": "text",
    '"partition"': "int",
    '"offset"': "bigint",
    "key": "text",
    "value": "bytea",
    "headers": "json",
}


class EmbeddedSink:
    """Appends; who appends to a partition holds its row, so offsets become visible in their order."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._partitions: dict[str, int] = {}

    def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
        if not records:
            return []
        with self.db.transaction() as tx:
            self._fence(tx, who)
            crash_at("relay.let_through")
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
                    headers = json.dumps(dict(record.headers))
                    lines.append((*place, offset, record.key, record.value, headers))
            tx.add("log_record", _COLUMNS, lines, {"appended_at": tx.now})
            crash_at("relay.mid_batch")
            tx.values(
                """UPDATE log_partition p SET next_offset = p.next_offset + v.added FROM (VALUES %s)
                AS v (topic, "partition", added)
                WHERE p.topic = v.topic AND p."partition" = v."partition" """,
                [(*place, len(items)) for place, items in by_place.items()],
            )
        return [None] * len(records)

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
        return partition_of(record.key, count)
