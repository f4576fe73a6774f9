"""The log's port: topics of records, appended by relays, read by groups; and which adapter is in use."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from shared.clock import Clock, SystemClock
from shared.errors import HearbackError
from shared.settings import BadSettings, Settings


@dataclass(frozen=True, slots=True)
class Record:
    """What is appended; records of one topic and key stay in their order. A null value is a tombstone."""

    topic: str
    key: str
    value: bytes | None
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entry(Record):
    """A record as it stands on the log."""

    partition: int
    offset: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a relay: its shard's name and a number that only rises; an earlier one may be refused.

    `until`, on the machine's monotonic clock, is when another relay may have taken over its shard.
    """

    producer: str
    epoch: int
    until: float = math.inf


@dataclass(frozen=True, slots=True)
class TopicState:
    """How much a topic holds."""

    name: str
    partitions: int
    compacted: bool
    records: int
    appended: int


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a consumer is behind on one topic: unread records, and the age in seconds of the oldest."""

    consumer: str
    topic: str
    unread: int
    seconds: float


class Sink(Protocol):
    """Where a relay sends."""

    def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
        """Appends in order; returns once it is durable, and says of each record why it is not (None: it is).

        Invariant: within a partition, what is confirmed is a beginning of what was given; what only came
        behind something refused is `NotTried`. Raises `Fenced` when a later pass of the same producer has
        sent (or may have: `until` is over), and transient errors when the log is gone.
        """
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """One consumer's share of its group's partitions; for one thread."""

    def poll(self, limit: int) -> list[Entry]:
        """The next records, at most `limit`, in order within a partition; empty when there is nothing to do.

        They stay with this source until `commit` or `release`.
        """
        ...

    def commit(self) -> None:
        """Advances the group beyond what `poll` gave. Raises when they are not this source's any more."""
        ...

    def release(self) -> None:
        """Gives back what `poll` gave, unread."""
        ...

    def close(self) -> None: ...


class Log(Protocol):
    """A log. Constructing one opens nothing; every method may raise a transient error."""

    def ensure_topics(self) -> None:
        """Makes every topic of the catalog that is not there. Partition counts never change afterwards."""
        ...

    def ping(self) -> None:
        """Returns when the log answers; raises when it does not."""
        ...

    def sink(self) -> Sink: ...

    def source(self, group: str, topics: Sequence[str]) -> Source:
        """Joins `group`; a new group starts at the earliest record."""
        ...

    def topics(self) -> list[TopicState]: ...

    def lag(self, group: str | None = None) -> list[Lag]:
        """How far each consumer (or `group`) is behind by topic; cheap enough for every health check."""
        ...

    def tail(self, topic: str, last: int, *, follow: bool = False) -> Iterator[Entry]:
        """The last `last` records of a topic, oldest first; with `follow` then every new one."""
        ...

    def discard(self) -> None:
        """Removes every record, once events are elsewhere; `ensure_topics` makes it fit for use again."""
        ...

    def maintain(self, now: datetime) -> int:
        """Drops what is past its retention and compacts; returns how many went. Several may run it."""
        ...

    def close(self) -> None: ...


class Fenced(Exception):
    """A later pass of this shard, `epoch`, has sent already, or may have; nothing was confirmed."""

    def __init__(self, message: str, epoch: int) -> None:
        super().__init__(message)
        self.epoch = epoch


class NotTried(Exception):
    """A record that was not appended because of another: one before it in its partition, or a later pass."""


class UnknownTopic(LookupError):
    """A topic that nobody made."""


class WrongTopic(HearbackError):
    """A topic that is there is not as the catalog says; keys would move to other partitions."""

    slug = "wrong-topic"


def partition_of(key: str, partitions: int) -> int:
    """The partition of a key, the same on every log: CRC-32 of its UTF-8 bytes, modulo the partitions."""
    return zlib.crc32(key.encode()) % partitions


def open_log(settings: Settings, clock: Clock | None = None, *, name: str | None = None) -> Log:
    """The log `name`; by default the one that the settings name, at the beginning the embedded one.

    Raises `BadSettings` when the settings do not say how to reach it.
    """
    name = name or settings.log or "embedded"
    if name == "embedded":
        from shared.log.postgres import EmbeddedLog

        return EmbeddedLog(settings.database_urls["log"], clock or SystemClock())
    if settings.kafka is None:
        raise BadSettings(
            "The log is Kafka, and HEARBACK_KAFKA_BOOTSTRAP is not set: give it the brokers' addresses."
        )
    from shared.log.kafka import KafkaLog

    return KafkaLog(settings.kafka)
