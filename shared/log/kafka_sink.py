"""Appends to Kafka: an idempotent producer, given up and made anew after any error."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from shared.events.catalog import TOPICS
from shared.faults import crash_at
from shared.log import Fenced, Pass, Record, UnknownTopic, partition_of
from shared.log.kafka_client import REQUEST_MS, answering, connect, unavailable
from shared.settings import KafkaSettings

# Less than a relay's lock lasts while it waits for us.
_FLUSH_SECONDS = 7.0
_BATCH_BYTES = 512 * 1024


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

    def send(self, records: Sequence[Record], who: Pass) -> list[bool]:
        if not records:
            return []
        places = [(record, self.settings.prefix + record.topic, _partition(record)) for record in records]
        try:
            with answering(self.settings):
                producer = self._made()
                futures = [self._append(producer, place, who) for place in places]
                futures[0].add_callback(lambda _: crash_at("relay.mid_batch"))
                crash_at("relay.let_through")
                self._flush(producer, who)
        except BaseException:
            self._give_up()
            raise
        done = _beginnings([(topic, partition) for _, topic, partition in places], futures)
        if not all(done):
            self._give_up()
        if not any(done):
            error = next((future.exception for future in futures if future.exception), None)
            raise unavailable(self.settings, error or KafkaTimeoutError("no answer in time"))
        return done

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

    def _flush(self, producer: KafkaProducer, who: Pass) -> None:
        with contextlib.suppress(KafkaTimeoutError):  # the futures say what has arrived
            producer.flush(timeout=max(0.1, min(_FLUSH_SECONDS, who.until - time.monotonic())))

    def _give_up(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            _abandon(producer)


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


def _beginnings(places: Sequence[tuple[str, int]], futures: Sequence[Any]) -> list[bool]:
    """Which records are durable, leaving out what was confirmed behind a gap in its partition."""
    broken = set()
    done = []
    for place, future in zip(places, futures, strict=True):
        if not future.succeeded():
            broken.add(place)
        done.append(place not in broken)
    return done
