"""Reads Kafka as a member of a consumer group, committing by hand, and made anew after any error."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from heapq import merge
from typing import Any

import structlog
from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition

from shared.errors import Unavailable
from shared.log import Entry
from shared.log.kafka_client import answering, connect
from shared.settings import KafkaSettings

# Waiting in the poll itself: a new record is here as soon as it is on the log.
_WAIT_MS = 200
_COMMIT_MS = 10_000
# A member that says nothing for so long is taken for dead.
_SESSION_MS = 10_000

_log = structlog.get_logger("hearback.events")


class KafkaSource:
    """Reads; from poll to commit the group's partitions are this source's, or the commit is refused."""

    def __init__(self, settings: KafkaSettings, group: str, topics: Sequence[str]) -> None:
        self.settings = settings
        self.group = settings.prefix + group
        self.topics = [settings.prefix + topic for topic in topics]
        self._consumer: KafkaConsumer | None = None
        self._mine: set[TopicPartition] = set()
        # What was polled and not committed: the first offset of each partition, and the one after the last.
        self._held: dict[TopicPartition, tuple[int, int]] = {}

    def poll(self, limit: int) -> list[Entry]:
        self.release()
        try:
            with answering(self.settings):
                consumer = self._joined()
                _remember_to_join(consumer)
                found = consumer.poll(timeout_ms=_WAIT_MS, max_records=limit)
                self._note_partitions(consumer, {place: rows[0].offset for place, rows in found.items()})
        except BaseException:
            self._drop()
            raise
        self._held = {place: (rows[0].offset, rows[-1].offset + 1) for place, rows in found.items()}
        return by_time(found.values(), self.settings.prefix)

    def commit(self) -> None:
        held, self._held = self._held, {}
        if not held:
            return
        if self._consumer is None:
            raise Unavailable("The log took these partitions back.")
        try:
            self._consumer.commit(
                {place: OffsetAndMetadata(after, "", -1) for place, (_, after) in held.items()},
                timeout_ms=_COMMIT_MS,
            )
        except BaseException as error:
            self._drop()
            if not isinstance(error, Exception):
                raise
            # What they hold was applied; whoever has them now finds it in the inbox.
            raise Unavailable(f"The log took these partitions back ({type(error).__name__}).") from error

    def release(self) -> None:
        held, self._held = self._held, {}
        if not held or self._consumer is None:
            return
        try:
            for place, (first, _) in held.items():
                self._consumer.seek(place, first)
        except Exception:
            self._drop()  # not ours any more

    def close(self) -> None:
        self._held = {}
        self._drop()

    def _joined(self) -> KafkaConsumer:
        if self._consumer is None:
            self._mine = set()
            self._consumer = connect(
                KafkaConsumer,
                self.settings,
                group_id=self.group,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                allow_auto_create_topics=False,
                metrics_enabled=False,
                # Topics that were only being made when we subscribed would else be missed for five minutes.
                metadata_max_age_ms=10_000,
                max_poll_interval_ms=self.settings.poll_seconds * 1000,
                session_timeout_ms=_SESSION_MS,
                heartbeat_interval_ms=_SESSION_MS // 4,
            )
            self._consumer.subscribe(self.topics)
        return self._consumer

    def _note_partitions(self, consumer: KafkaConsumer, polled: Mapping[TopicPartition, int]) -> None:
        """Commits where we begin in partitions that are new to us, so that their lag is known from now on.

        `polled` is the first offset that was just read of a partition: its position is beyond that already.
        """
        mine = consumer.assignment()
        begin = {}
        for place in mine - self._mine:
            offset = polled.get(place)
            if offset is None:
                offset = consumer.position(place, timeout_ms=_COMMIT_MS)
            if offset is not None:
                begin[place] = OffsetAndMetadata(offset, "", -1)
        if begin:
            consumer.commit(begin, timeout_ms=_COMMIT_MS)
            _log.info("partitions assigned", group=self.group, partitions=len(mine))
        self._mine = (self._mine & mine) | begin.keys()

    def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(Exception):
                consumer.close(autocommit=False, timeout_ms=1_000)


def _remember_to_join(consumer: KafkaConsumer) -> None:
    """Keeps kafka-python at a join that outlasted the poll in which it began.

    When the topics' metadata changed (they always do after the first join, which may be quicker than they),
    it takes itself for joined as soon as the answer is on its way, never looks at the partitions it was
    given, and sends no heartbeats: it would stand still for good, and say nothing (3.0.12).
    """
    coordinator = consumer._coordinator
    if coordinator.rejoining:
        coordinator.request_rejoin()


def entry_of(row: Any, prefix: str) -> Entry:
    """A record of kafka-python as ours."""
    return Entry(
        topic=row.topic.removeprefix(prefix),
        key="" if row.key is None else row.key.decode("utf-8", "replace"),
        value=None if row.value is None else bytes(row.value),
        headers={name: (value or b"").decode("utf-8", "replace") for name, value in row.headers},
        partition=row.partition,
        offset=row.offset,
        at=datetime.fromtimestamp(row.timestamp / 1000, UTC),
    )


def by_time(parts: Iterable[Iterable[Any]], prefix: str) -> list[Entry]:
    """Records of several partitions interleaved by time; each partition stays in order."""
    by_place: dict[Any, list[Entry]] = defaultdict(list)
    for rows in parts:
        for row in rows:
            by_place[row.topic, row.partition].append(entry_of(row, prefix))
    return list(merge(*by_place.values(), key=lambda entry: entry.at))
