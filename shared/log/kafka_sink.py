"""Appends to Kafka: an idempotent producer, given up and made anew after any error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    BrokerResponseError,
    IllegalStateError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    UnknownError,
)
from kafka.future import Future

from shared.errors import Unavailable
from shared.events.catalog import TOPICS
from shared.faults import crash_at
from shared.log import Fenced, NotTried, Pass, Record, UnknownTopic, partition_of
from shared.log.kafka_client import REQUEST_MS, answering, connect, unavailable
from shared.settings import KafkaSettings

# Less than a relay's lock lasts while it waits for us.
_FLUSH_SECONDS = 7.0
_BATCH_BYTES = 512 * 1024
_GIVE_UP_SECONDS = 1.0


class KafkaSink:
    """Appends. What failed once is never tried again by the same producer: order is kept by giving up.

    One request is under way at a time, so that nothing of a partition is on its way behind a batch that
    fails; a relay's pass fits one request, so that costs nothing. The broker refuses a gap in a producer's
    numbering, so whatever of an abandoned producer still arrives is a beginning of what it was given: a
    duplicate of what its successor sends, and never out of order.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self._producer: KafkaProducer | None = None

    def send(self, records: Sequence[Record], who: Pass) -> list[Exception | None]:
        if not records:
            return []
        places = [(record, self.settings.prefix + record.topic, _partition(record)) for record in records]
        try:
            with answering(self.settings):
                producer = self._made()
                futures = self._append_all(producer, places, who)
                futures[0].add_callback(lambda _: crash_at("relay.mid_batch"))
                crash_at("relay.let_through")
                self._flush(producer, futures, who)
        except BaseException:
            self._give_up()
            raise
        whys = _beginnings([(topic, partition) for _, topic, partition in places], futures)
        if any(whys):
            self._give_up()
        return [why and self._say(why, topic) for (_, topic, _), why in zip(places, whys, strict=True)]

    def close(self) -> None:
        self._give_up()

    def _made(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = connect(
                KafkaProducer,
                self.settings,
                acks="all",
                enable_idempotence=True,
                max_in_flight_requests_per_connection=1,
                compression_type="lz4",
                batch_size=_BATCH_BYTES,
                linger_ms=1_000,  # `flush` does not wait for it; a pass travels in as few requests as can be
                max_block_ms=REQUEST_MS,
                # Giving up is ours to decide: a batch that expired by itself would not stop those behind it.
                delivery_timeout_ms=60_000,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        return self._producer

    def _append_all(
        self, producer: KafkaProducer, places: Sequence[tuple[Record, str, int]], who: Pass
    ) -> list[Any]:
        futures = []
        broken = set()
        for place in places:
            if place[1:] in broken:
                futures.append(Future().failure(NotTried("What was before it cannot be sent.")))
                continue
            try:
                futures.append(self._append(producer, place, who))
            except MessageSizeTooLargeError as error:  # for any request of ours
                broken.add(place[1:])
                futures.append(Future().failure(error))
        return futures

    def _say(self, why: Exception, topic: str) -> Exception:
        if isinstance(why, BrokerResponseError):
            said = f"{type(why).__name__}: {why}"
            return Unavailable(
                f"Kafka at {self.settings.bootstrap} does not take an event for {topic} ({said})."
            )
        return why if isinstance(why, NotTried) else unavailable(self.settings, why)

    def _append(self, producer: KafkaProducer, place: tuple[Record, str, int], who: Pass) -> Any:
        record, topic, partition = place
        if time.monotonic() >= who.until:
            # Frozen or slow: by now another relay may have sent this, and more.
            raise Fenced(f"This pass of {who.producer} took too long; another may have begun.", who.epoch)
        future = producer.send(
            topic,
            value=record.value,
            key=record.key.encode(),
            headers=[(name, value.encode()) for name, value in record.headers.items()],
            partition=partition,
        )
        # In the network thread, before it could send what comes behind.
        return future.add_errback(lambda _: _abandon(producer))

    def _flush(self, producer: KafkaProducer, futures: Sequence[Any], who: Pass) -> None:
        until = min(time.monotonic() + _FLUSH_SECONDS, who.until)
        # What is too large together is sent again in parts, for which its flush does not wait.
        while not all(future.is_done for future in futures) and (left := until - time.monotonic()) > 0:
            with contextlib.suppress(KafkaTimeoutError, UnknownError):  # the futures say what has arrived
                producer.flush(timeout=left)

    def _give_up(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            _abandon(producer)
            producer._sender.join(_GIVE_UP_SECONDS)
            # Nothing is left to be sent: so it ends here, and not in the collector.
            with contextlib.suppress(KafkaError):
                producer.close(timeout=0)


def _abandon(producer: KafkaProducer) -> None:
    """Ends a producer without sending what it still holds; may be called from its own network thread."""
    with contextlib.suppress(KafkaTimeoutError):
        # It flushes first, even with no time to do so, and stops half-way when that fails.
        producer.close(timeout=0)
    producer._sender.force_close()


def _partition(record: Record) -> int:
    try:
        return partition_of(record.key, TOPICS[record.topic].partitions)
    except KeyError:
        raise UnknownTopic(f"There is no topic {record.topic!r}.") from None


def _beginnings(places: Sequence[tuple[str, int]], futures: Sequence[Any]) -> list[Exception | None]:
    """Why records are not durable; also what was confirmed behind a gap in its partition is not."""
    broken = set()
    whys: list[Exception | None] = []
    for place, future in zip(places, futures, strict=True):
        why = None if future.succeeded() else future.exception or KafkaTimeoutError("no answer in time")
        if isinstance(why, IllegalStateError) or (why is None and place in broken):
            why = NotTried("What was before it in its partition was refused.")  # and then all was abandoned
        if why is not None:
            broken.add(place)
        whys.append(why)
    return whys
