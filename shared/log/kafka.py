"""The log on Kafka: the catalog's topics, the services' groups, and how far they are."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    NotCoordinatorError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from shared.errors import Unavailable
from shared.events.catalog import TOPICS, Topic
from shared.log import Entry, Lag, TopicState, UnknownTopic, WrongTopic
from shared.log.kafka_client import REQUEST_MS, answering, connect
from shared.log.kafka_sink import KafkaSink
from shared.log.kafka_source import KafkaSource, by_time
from shared.settings import SERVICES, KafkaSettings

_DAY_MS = 86_400_000
_RETENTION_MS = 14 * _DAY_MS
# Every topic's; the rest follows from whether it is compacted. An event has at most 256 kB, and headers.
_EVERY = {
    "max.message.bytes": 1_048_576,
    "message.timestamp.type": "LogAppendTime",
    "segment.ms": _DAY_MS,
}
_COMPACTED = {
    "cleanup.policy": "compact",
    "max.compaction.lag.ms": _DAY_MS,
    "delete.retention.ms": _RETENTION_MS,
}
_KEPT = {"cleanup.policy": "delete", "retention.ms": _RETENTION_MS}
# Looking at the oldest unread records takes no longer than this; what is not known by then counts as now.
_LOOK_SECONDS = 2.0


class KafkaLog:
    """The log on Kafka; see `shared.log.Log` for what each method promises. Threads may share it."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._admin: KafkaAdminClient | None = None
        self._reader: KafkaConsumer | None = None

    def ensure_topics(self) -> None:
        with self._asking() as admin:
            there = self._described(admin)
            missing = {
                self.settings.prefix + topic.name: _options(topic)
                for topic in TOPICS.values()
                if topic.name not in there
            }
            if missing:
                # Another process may have been quicker with some of them, and the brokers need a moment
                # to tell each other.
                made = admin.create_topics(missing, raise_errors=False)
                for one in made["topics"]:
                    if one["error_code"] not in (0, TopicAlreadyExistsError.errno):
                        raise for_code(one["error_code"])(one["error_message"])
                admin.wait_for_topics(list(missing))
                self._forget_offsets(admin, {one["name"] for one in made["topics"] if not one["error_code"]})
                there = self._described(admin)
        for topic in TOPICS.values():
            found = there.get(topic.name)
            if found is None:
                raise Unavailable(
                    f"The brokers do not all know the topic {self.settings.prefix}{topic.name} yet.",
                    retry_after=1,
                )
            if found != topic.partitions:
                raise WrongTopic(
                    f"The topic {self.settings.prefix}{topic.name} has {found} partitions, and needs "
                    f"{topic.partitions}: with any other number keys change their partition and their order "
                    "is lost. Move to an empty cluster or another HEARBACK_KAFKA_PREFIX."
                )

    def ping(self) -> None:
        with self._asking() as admin:
            admin.describe_cluster()

    def sink(self) -> KafkaSink:
        return KafkaSink(self.settings)

    def source(self, group: str, topics: Sequence[str]) -> KafkaSource:
        return KafkaSource(self.settings, group, topics)

    def topics(self) -> list[TopicState]:
        with self._asking() as admin:
            places = [
                TopicPartition(self.settings.prefix + name, number)
                for name, count in self._described(admin).items()
                for number in range(count)
            ]
            starts, ends = _offsets(admin, places)
        records: dict[str, int] = defaultdict(int)
        appended: dict[str, int] = defaultdict(int)
        partitions: dict[str, int] = defaultdict(int)
        for place in places:
            name = place.topic.removeprefix(self.settings.prefix)
            partitions[name] += 1
            records[name] += ends[place] - starts[place]
            appended[name] += ends[place]
        return [
            TopicState(name, partitions[name], TOPICS[name].compacted, records[name], appended[name])
            for name in sorted(partitions)
        ]

    def lag(self, group: str | None = None) -> list[Lag]:
        groups = {self.settings.prefix + name: name for name in ([group] if group else SERVICES)}
        with self._asking() as admin:
            committed = {
                (groups[name], place): at.offset
                for name, offsets in _committed(admin, list(groups)).items()
                for place, at in offsets.items()
                if place.topic.removeprefix(self.settings.prefix) in TOPICS
            }
            # Where a group has not begun to read it has everything before it.
            for consumer, topic in {(consumer, place.topic) for consumer, place in committed}:
                for number in range(TOPICS[topic.removeprefix(self.settings.prefix)].partitions):
                    committed.setdefault((consumer, TopicPartition(topic, number)), 0)
            places = sorted({place for _, place in committed})
            starts, ends = _offsets(admin, places)
            unread = {
                (consumer, place): max(0, ends[place] - max(offset, starts[place]))
                for (consumer, place), offset in committed.items()
            }
            oldest = {(place, ends[place] - count) for (_, place), count in unread.items() if count}
            times: dict[tuple[TopicPartition, int], float] = {}
            while oldest:  # of groups that are differently far, one after the other
                turn = dict(oldest)
                times |= {(place, turn[place]): at for place, at in self._times(turn).items()}
                oldest -= set(turn.items())
        now = time.time()
        found: dict[tuple[str, str], tuple[int, float]] = {}
        for (consumer, place), count in unread.items():
            key = consumer, place.topic.removeprefix(self.settings.prefix)
            total, age = found.get(key, (0, 0.0))
            seconds = max(0.0, now - times.get((place, ends[place] - count), now)) if count else 0.0
            found[key] = total + count, max(age, seconds)
        return [Lag(consumer, topic, *found[consumer, topic]) for consumer, topic in sorted(found)]

    def tail(self, topic: str, last: int, *, follow: bool = False) -> Iterator[Entry]:
        with self._asking() as admin:
            count = self._described(admin).get(topic)
            if count is None:
                raise UnknownTopic(f"There is no topic {topic!r}.")
            places = [TopicPartition(self.settings.prefix + topic, number) for number in range(count)]
            starts, ends = _offsets(admin, places)
        reader = self._reading(places)
        try:
            with answering(self.settings):
                for place in places:
                    reader.seek(place, max(starts[place], ends[place] - last))
                rows = _up_to(reader, ends)
            shown = by_time(rows, self.settings.prefix)
            yield from shown if follow else shown[-last:]
            while follow:
                with answering(self.settings):
                    polled = reader.poll(500)
                yield from by_time(polled.values(), self.settings.prefix)
        finally:
            reader.close(autocommit=False)

    def discard(self) -> None:
        # Compaction would keep customers for ever, and of a compacted topic no records can be deleted.
        with self._asking() as admin:
            there = [self.settings.prefix + name for name in self._described(admin)]
            if there:
                admin.delete_topics(there)

    def maintain(self, now: datetime) -> int:
        return 0  # the brokers do it

    def close(self) -> None:
        with self._lock:
            self._drop()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[KafkaAdminClient]:
        """The admin client, for one thread at a time; after any error it is made anew."""
        with self._lock:
            try:
                with answering(self.settings):
                    if self._admin is None:
                        self._admin = connect(KafkaAdminClient, self.settings)
                    yield self._admin
            except BaseException:
                self._drop()
                raise

    def _drop(self) -> None:
        admin, reader = self._admin, self._reader
        self._admin = self._reader = None
        for client in (admin, reader):
            if client is not None:
                with contextlib.suppress(Exception):
                    client.close()

    def _described(self, admin: KafkaAdminClient) -> Mapping[str, int]:
        """The topics of the catalog that are there, with their numbers of partitions."""
        prefix = self.settings.prefix
        there = {}
        for topic in admin.describe_topics([prefix + name for name in TOPICS]):
            if topic["error_code"] == UnknownTopicOrPartitionError.errno:
                continue
            if topic["error_code"]:
                raise for_code(topic["error_code"])(topic["name"])
            there[topic["name"].removeprefix(prefix)] = len(topic["partitions"])
        return there

    def _forget_offsets(self, admin: KafkaAdminClient, new: Collection[str]) -> None:
        """A topic that is made again begins at 0; how far a group had read the one before says nothing."""
        groups = [self.settings.prefix + name for name in SERVICES]
        for group, offsets in _committed(admin, groups, patience=30.0).items():
            if stale := [place for place in offsets if place.topic in new]:
                admin.delete_group_offsets(group, stale)

    def _reading(self, places: Sequence[TopicPartition], **options: Any) -> KafkaConsumer:
        """A reader of these partitions that is in no group."""
        with answering(self.settings):
            reader = connect(
                KafkaConsumer,
                self.settings,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                metrics_enabled=False,
                **options,
            )
            reader.assign(places)
            return reader

    def _times(self, oldest: Mapping[TopicPartition, int]) -> dict[TopicPartition, float]:
        """When the records at these offsets (or the next ones after them) were appended, in epoch seconds."""
        times: dict[TopicPartition, float] = {}
        if not oldest:
            return times
        if self._reader is None:
            self._reader = self._reading([], max_partition_fetch_bytes=16_384)
        self._reader.assign(list(oldest))
        for place, offset in oldest.items():
            self._reader.resume(place)  # it may have been looked at before, and stays paused after that
            self._reader.seek(place, offset)
        until = time.monotonic() + _LOOK_SECONDS
        while len(times) < len(oldest) and time.monotonic() < until:
            for place, rows in self._reader.poll(100).items():
                times.setdefault(place, rows[0].timestamp / 1000)
                self._reader.pause(place)
        return times


def _options(topic: Topic) -> dict[str, Any]:
    """How a topic is created; how often it is replicated is the brokers' default."""
    settings = _EVERY | (_COMPACTED if topic.compacted else _KEPT)
    return {
        "num_partitions": topic.partitions,
        "replication_factor": -1,
        "configs": {name: str(value) for name, value in settings.items()},
    }


def _committed(
    admin: KafkaAdminClient, groups: Sequence[str], patience: float = REQUEST_MS / 1000
) -> dict[str, dict[TopicPartition, Any]]:
    """How far the groups are; a group that is not there is nowhere."""
    until = time.monotonic() + patience
    while True:
        try:
            found: dict[str, dict[TopicPartition, Any]] = admin.list_group_offsets(dict.fromkeys(groups))
            return found
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            # Who keeps the groups is settled at the first question to a new cluster, and after a restart.
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _offsets(
    admin: KafkaAdminClient, places: Sequence[TopicPartition]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Where the partitions begin, and where they end (the offset the next record will get)."""
    if not places:
        return {}, {}
    starts, ends = (
        {place: at.offset for place, at in admin.list_partition_offsets(dict.fromkeys(places, spec)).items()}
        for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
    )
    return starts, ends


def _up_to(reader: KafkaConsumer, ends: Mapping[TopicPartition, int]) -> list[list[Any]]:
    """The records from where the reader stands up to these ends, by partition."""
    rows: dict[TopicPartition, list[Any]] = {place: [] for place in ends}
    until = time.monotonic() + REQUEST_MS / 1000
    while any(reader.position(place) < end for place, end in ends.items()):
        polled = reader.poll(200, max_records=10_000)
        for place, more in polled.items():
            rows[place] += more
        if polled:
            until = time.monotonic() + REQUEST_MS / 1000
        elif time.monotonic() > until:
            raise TimeoutError("no records came")
    return list(rows.values())
