"""What the log on Kafka does in its own way: topics as they are stated, groups, and who may come in."""

from __future__ import annotations

import contextlib
import gc
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, UserScramCredentialUpsertion
from kafka.structs import OffsetAndMetadata

from shared.errors import Unavailable
from shared.events.catalog import TOPICS
from shared.events.consumer import Consumer
from shared.log import Log, NotTried, Pass, Record, Source, WrongTopic, kafka_source
from shared.log.kafka import KafkaLog
from shared.settings import KafkaSettings
from tests.contract.conftest import GROUP, KEYS, Bench, first_of, only_kafka
from tests.contract.conftest import TOPICS as READ
from tests.support.kafka import Broker, free_port

A, B = KEYS[0], KEYS[1]
PATIENCE = 30.0
DAY = "86400000"
FORTNIGHT = "1209600000"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """As `shared.telemetry` has it. What the library logs holds errors, and those its broken sockets."""
    library = logging.getLogger("kafka")
    before = library.level
    library.setLevel(logging.CRITICAL)
    yield
    library.setLevel(before)


def _settings(log: Log) -> KafkaSettings:
    assert isinstance(log, KafkaLog)
    return log.settings


def _admin(settings: KafkaSettings) -> KafkaAdminClient:
    return KafkaAdminClient(bootstrap_servers=settings.bootstrap)


@only_kafka
def test_every_topic_is_made_with_the_settings_that_are_stated(bench: Bench) -> None:
    kafka = _settings(bench.log)
    admin = _admin(kafka)
    every = {"message.timestamp.type": "LogAppendTime", "segment.ms": DAY}
    compacted = {
        "cleanup.policy": "compact", "max.compaction.lag.ms": DAY, "delete.retention.ms": FORTNIGHT
    }  # fmt: skip
    kept = {"cleanup.policy": "delete", "retention.ms": FORTNIGHT}
    wrong: dict[tuple[str, str], str] = {}
    for topic in TOPICS.values():
        wanted = every | (compacted if topic.compacted else kept)
        names = dict.fromkeys(wanted)
        resource = ConfigResource(ConfigResourceType.TOPIC, kafka.prefix + topic.name, names)
        said = str(admin.describe_configs([resource], config_filter="all"))
        wrong |= {
            (topic.name, name): said
            for name, value in wanted.items()
            if f"'{name}': '{value}'"
            not in said.replace(f"'{name}': {{'value': '{value}'", f"'{name}': '{value}'")
        }
    admin.close()
    assert not wrong


@only_kafka
def test_a_topic_with_another_number_of_partitions_is_refused(bench: Bench) -> None:
    kafka = replace(_settings(bench.log), prefix=_settings(bench.log).prefix + "other.")
    admin = _admin(kafka)
    admin.create_topics(
        {f"{kafka.prefix}responses": {"num_partitions": 3, "replication_factor": 1}}, wait_for_metadata=True
    )
    admin.close()
    log = KafkaLog(kafka)
    needed = TOPICS["responses"].partitions
    with pytest.raises(WrongTopic, match=f"{kafka.prefix}responses has 3 partitions, and needs {needed}"):
        log.ensure_topics()
    log.close()


@only_kafka
def test_lag_counts_unread_records_and_the_age_of_the_oldest(bench: Bench) -> None:
    assert bench.log.lag(GROUP) == []
    source = bench.log.source(GROUP, READ)
    while len(bench.log.lag(GROUP)) < len(READ):
        assert source.poll(1) == []
    bench.say(A, 1, 2)
    began = time.time()
    bench.flush()
    oldest = min(entry.at.timestamp() for entry in bench.on_log("deliveries"))
    bench.say(B, 1)
    bench.flush()
    pause = threading.Event()
    while time.time() < oldest + 1:
        pause.wait(0.05)
    lags = {lag.topic: lag for lag in bench.log.lag(GROUP)}
    assert (lags["customers"].unread, lags["customers"].seconds) == (0, 0.0)
    assert lags["deliveries"].unread == 3
    assert 1 <= lags["deliveries"].seconds <= time.time() - began + 1
    source.close()
    bench.consume()
    assert {(lag.unread, lag.seconds) for lag in bench.log.lag()} == {(0, 0.0)}
    assert bench.log.lag("nobody") == []


@only_kafka
def test_a_partition_that_a_group_has_not_begun_counts_as_unread(bench: Bench) -> None:
    # As when the second of two readers dies before it has noted where it begins.
    kafka = _settings(bench.log)
    for key in KEYS:
        bench.say(key, 1)
    bench.flush()
    place = TopicPartition(f"{kafka.prefix}deliveries", 0)
    reader = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap, group_id=f"{kafka.prefix}{GROUP}", enable_auto_commit=False
    )
    reader.assign([place])
    there = sum(entry.partition == 0 for entry in bench.on_log("deliveries"))
    reader.commit({place: OffsetAndMetadata(there, "", -1)})
    reader.close()
    assert {lag.topic: lag.unread for lag in bench.log.lag(GROUP)} == {"deliveries": len(KEYS) - there}


@only_kafka
def test_a_topic_that_is_made_again_is_read_from_its_beginning(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Brokers forget offsets with their topic; one that kept them, for it was away meanwhile, must not matter.
    kafka = _settings(bench.log)
    create = KafkaAdminClient.create_topics

    def keeping_offsets(admin: KafkaAdminClient, *given: Any, **options: Any) -> Any:
        made = create(admin, *given, **options)
        places = [TopicPartition(f"{kafka.prefix}deliveries", number) for number in range(8)]
        admin.alter_group_offsets(
            kafka.prefix + GROUP, {place: OffsetAndMetadata(3, "", -1) for place in places}
        )
        return made

    bench.consume()
    bench.log.discard()
    monkeypatch.setattr(KafkaAdminClient, "create_topics", keeping_offsets)
    bench.log.ensure_topics()
    for number in range(1, 6):
        bench.say(A, number)
    until = time.monotonic() + 60
    while bench.waiting():  # as a relay does while the brokers still settle who leads a topic
        with contextlib.suppress(Unavailable) if time.monotonic() < until else contextlib.nullcontext():
            bench.flush()
    bench.consume()
    assert bench.effects(A) == [1, 2, 3, 4, 5]


@only_kafka
def test_a_topic_that_one_broker_does_not_know_yet_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(bench.log, KafkaLog)
    described = bench.log._described
    monkeypatch.setattr(
        bench.log, "_described", lambda admin: {k: v for k, v in described(admin).items() if k != "tasks"}
    )
    with pytest.raises(Unavailable, match="tasks"):
        bench.log.ensure_topics()
    monkeypatch.undo()
    bench.log.ensure_topics()


def test_a_new_cluster_says_that_nobody_reads() -> None:
    broker = Broker().start()
    log = KafkaLog(broker.settings())
    log.ensure_topics()
    assert log.lag() == []
    log.close()
    broker.close()


@only_kafka
def test_a_consumer_joins_although_that_takes_longer_than_a_poll(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "_WAIT_MS", 1)
    bench.say(A, 1)
    bench.flush()
    for number in range(3):
        source = bench.log.source(f"{GROUP}{number}", READ)
        assert len(first_of(source, 1)) == 1
        source.close()


@only_kafka
def test_two_consumers_of_a_group_share_its_partitions(bench: Bench) -> None:
    sources = [bench.log.source(GROUP, READ) for _ in range(2)]
    until = time.monotonic() + PATIENCE
    number = 0

    def shares() -> list[set[int]]:
        """Who reads which partitions, of a message of everybody."""
        nonlocal number
        number += 1
        for key in KEYS:
            bench.say(key, number)
        bench.flush()
        shared: list[set[int]] = [set(), set()]
        while True:
            for source, mine in zip(sources, shared, strict=True):
                try:
                    mine |= {entry.partition for entry in source.poll(500)}
                    source.commit()
                except Unavailable:
                    continue  # they are being shared out
            if bench.log.lag(GROUP) and not bench.unread():
                return shared
            assert time.monotonic() < until

    while not all(shares()):
        assert time.monotonic() < until
    first, second = shares()
    assert first and second and not first & second
    assert first | second == {entry.partition for entry in bench.on_log("deliveries")}
    for source in sources:
        source.close()


class _Late:
    """A source whose reader falls asleep between the database's commit and the log's."""

    def __init__(self, source: Source, bench: Bench) -> None:
        self.source = source
        self.bench = bench
        self.overtaken = False

    def poll(self, limit: int) -> list[object]:
        return list(self.source.poll(limit))

    def commit(self) -> None:
        if not self.overtaken:
            self.overtaken = True
            self.bench.consume()
        self.source.commit()

    def release(self) -> None:
        self.source.release()

    def close(self) -> None:
        self.source.close()


@only_kafka
def test_a_batch_that_was_taken_over_is_refused_at_the_commit_and_applied_once(bench: Bench) -> None:
    impatient = KafkaLog(replace(_settings(bench.log), poll_seconds=2))
    late = _Late(impatient.source(GROUP, READ), bench)
    consumer = Consumer(GROUP, bench.reader, late, bench.apply)  # type: ignore[arg-type] # as good as a source
    bench.say(A, 1, 2)
    bench.say(B, 1)
    bench.flush()
    with pytest.raises(Unavailable, match="took these partitions back"):
        while True:
            consumer.run_once()
    assert late.overtaken
    bench.say(A, 3)
    bench.flush()
    while bench.unread():
        consumer.run_once()
    assert bench.effects(A) == [1, 2, 3] and bench.effects(B) == [1]
    late.close()
    impatient.close()


@only_kafka
@pytest.mark.parametrize("size", [3_000, 1_500_000], ids=["for_the_broker", "for_any_request"])
@pytest.mark.parametrize("place", ["first", "amid", "last"])
def test_beside_a_record_that_is_too_large_each_is_confirmed_that_is_there(
    bench: Bench, size: int, place: str
) -> None:
    settings = _settings(bench.log)
    admin = _admin(settings)
    topic = f"{settings.prefix}tasks"
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": "2000"})])
    admin.close()
    fine = [Record("tasks", key, b"{}", {}) for key in KEYS[:20]]
    large = Record("tasks", A, secrets.token_bytes(size), {})
    records = {
        "first": [large, *fine],
        "amid": [*fine[:10], large, *fine[10:]],
        "last": [*fine, large],
    }[place]
    sink = bench.log.sink()
    until = time.monotonic() + PATIENCE
    while sink.send([large], Pass("followup/0", 1)) == [None]:  # it does not know its new limit yet
        assert time.monotonic() < until
    before = len(bench.on_log("tasks"))
    whys = sink.send(records, Pass("followup/0", 2))
    sink.close()
    [why] = [str(why) for record, why in zip(records, whys, strict=True) if record is large]
    assert f"does not take an event for {topic}" in why, why
    there = [record.key for record, why in zip(records, whys, strict=True) if why is None]
    assert sorted(entry.key for entry in bench.on_log("tasks")[before:]) == sorted(there)
    # What is not there came behind it in its partition.
    assert {type(why) for record, why in zip(records, whys, strict=True) if record is not large and why} <= {
        NotTried
    }
    assert len(there) >= len(fine) - 10


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_is_left_behind_while_no_broker_answers() -> None:
    nobody = KafkaSettings(f"127.0.0.1:{free_port()}")

    def knock(number: int) -> str:
        log = KafkaLog(nobody)
        sink, source = log.sink(), log.source(GROUP, READ)
        record = Record("customers", A, b"{}", {})
        attempts: list[Callable[[], object]] = [
            log.ping,
            lambda: sink.send([record], Pass("survey/0", 1)),
            lambda: source.poll(1),
        ]
        with pytest.raises(Unavailable) as error:
            attempts[number % 3]()
        return str(error.value)

    with ThreadPoolExecutor(6) as pool:
        before = set(threading.enumerate())
        said = list(pool.map(knock, range(6)))
    assert all(text.startswith(f"Kafka at {nobody.bootstrap} does not answer") for text in said), said
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.is_alive() and thread not in before]


@dataclass
class Guarded:
    """A broker that lets in only whom it knows."""

    broker: Broker
    sasl: str
    mutual: str
    ca: trustme.CA

    def settings(self, **options: str) -> KafkaSettings:
        given = {"security": "sasl_ssl", "ca": _pem(self.ca), "user": "hearback", "password": "open sesame"}
        return KafkaSettings(self.sasl, prefix="guarded.", **(given | options))  # type: ignore[arg-type]


def _pem(ca: trustme.CA) -> str:
    return ca.cert_pem.bytes().decode()


def _key(cert: trustme.LeafCert) -> str:
    """The private key as Java reads it."""
    key = load_pem_private_key(cert.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    ca = trustme.CA()
    cert = ca.issue_cert("127.0.0.1")
    sasl, mutual = (f"127.0.0.1:{free_port()}" for _ in range(2))
    login = "org.apache.kafka.common.security"
    lines = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": "".join(part.bytes().decode() for part in cert.cert_chain_pems),
        "ssl.keystore.key": _key(cert),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": _pem(ca),
        "listener.name.ssl.ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.sasl_ssl.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required "
        'user_hearback="open sesame";',
        "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
    }
    more = "".join(f"{name}={value}".replace("\n", "\\n") + "\n" for name, value in lines.items())
    broker = Broker(more=more, listeners=(f"SASL_SSL://{sasl}", f"SSL://{mutual}")).start()
    admin = _admin(broker.settings())
    for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
        said = admin.alter_user_scram_credentials(
            [UserScramCredentialUpsertion("hearback", mechanism, "open sesame")]
        )
        assert set(said.values()) == {None}, said
    admin.close()
    yield Guarded(broker, sasl, mutual, ca)
    broker.close()


def _goes_through(settings: KafkaSettings) -> None:
    """A record is sent and read."""
    log = KafkaLog(settings)
    log.ensure_topics()
    sink = log.sink()
    assert sink.send([Record("tasks", A, b"{}", {})], Pass("followup/0", 1)) == [None]
    source = log.source(GROUP, ["tasks"])
    assert first_of(source, 1)[0].key == A
    source.commit()
    for part in (sink, source, log):
        part.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_user_with_a_password_comes_in_over_tls(guarded: Guarded, mechanism: str) -> None:
    _goes_through(guarded.settings(mechanism=mechanism))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_certificate_comes_in_without_a_password(guarded: Guarded) -> None:
    cert = guarded.ca.issue_cert("hearback.example")
    mine = KafkaSettings(
        guarded.mutual,
        prefix="mutual.",
        security="ssl",
        ca=_pem(guarded.ca),
        certificate="".join(part.bytes().decode() for part in cert.cert_chain_pems),
        key=cert.private_key_pem.bytes().decode(),
    )
    _goes_through(mine)
    _is_refused(replace(mine, certificate="", key=""), "does not answer")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_refused(guarded: Guarded, mechanism: str) -> None:
    _is_refused(guarded.settings(mechanism=mechanism, password="open barley"), "uthentication")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broker_that_nobody_vouches_for_is_refused(guarded: Guarded) -> None:
    _is_refused(guarded.settings(ca=_pem(trustme.CA())), "certificate verify failed")


def _is_refused(settings: KafkaSettings, why: str) -> None:
    log = KafkaLog(settings)
    record = Record("tasks", A, b"{}", {})
    for attempt in (
        log.ping,
        lambda: log.sink().send([record], Pass("followup/0", 1)),
        lambda: log.source(GROUP, ["tasks"]).poll(1),
    ):
        said = _refusal(attempt)
        assert said.startswith(f"Kafka at {settings.bootstrap} does not answer") and why in said, said
        assert "open barley" not in said
    log.close()
    # The library leaves the sockets of attempts that failed to the collector: now, not in another test.
    gc.collect()


def _refusal(attempt: Callable[[], object]) -> str:
    # Nothing but the text comes back: the error holds the frames that hold the sockets.
    with pytest.raises(Unavailable) as error:
        attempt()
    return str(error.value)
