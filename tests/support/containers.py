"""PostgreSQL and Kafka from their public images, where the tests are to run on containers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from secrets import token_urlsafe

import psycopg2
import psycopg2.extensions
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from shared.errors import Unavailable
from shared.log.kafka import KafkaLog
from shared.logins import create_databases
from shared.settings import DATABASES
from tests.support.kafka import PATIENCE, Broker

POSTGRES, KAFKA = "postgres:18", "apache/kafka:4.3.1"
# Its cleaner would be one more image to pull; the fixtures remove what they start.
testcontainers_config.ryuk_disabled = True


class PostgresServer:
    """PostgreSQL in a container, with the services' logins and databases; it forgets on a crash."""

    def __init__(self) -> None:
        self.passwords = {name: token_urlsafe(24) for name in ("postgres", *DATABASES)}
        self.container = PostgresContainer(
            POSTGRES, 5432, "postgres", self.passwords["postgres"], "postgres", driver=None
        ).with_command("postgres -c max_connections=300 -c fsync=off -c full_page_writes=off")
        self.container.start()
        self.port = int(self.container.get_exposed_port(5432))
        connection = self.connect()
        try:
            with connection.cursor() as cur:
                create_databases(cur, {name: self.passwords[name] for name in DATABASES})
        finally:
            connection.close()

    def connect(self) -> psycopg2.extensions.connection:
        connection = psycopg2.connect(self.url("postgres"))
        connection.autocommit = True
        return connection

    def url(self, role: str, database: str | None = None) -> str:
        return f"postgresql://{role}:{self.passwords[role]}@127.0.0.1:{self.port}/{database or role}"

    def close(self) -> None:
        self.container.stop()


@dataclass
class ContainerBroker(Broker):
    """Apache Kafka in a container, for tests that do not stop it."""

    container: DockerContainer = field(default_factory=lambda: DockerContainer(KAFKA))

    def start(self) -> Broker:
        self.container.with_bind_ports(9092, self.port).with_envs(**_environment(self.port)).start()
        self._wait()
        return self

    def _wait(self) -> None:
        # The engine takes connections before the broker does, and that one before it knows of groups.
        log, until = KafkaLog(self.settings()), time.monotonic() + PATIENCE
        try:
            while True:
                try:
                    log.lag()
                    return
                except Unavailable as error:
                    if time.monotonic() > until:
                        raise AssertionError(f"the broker did not start:\n{self.said()}") from error
                    time.sleep(0.1)
        finally:
            log.close()

    def said(self) -> str:
        return b"".join(self.container.get_logs()).decode(errors="replace")[-3000:]

    def close(self) -> None:
        self.container.stop()
        self.folder.rmdir()


def _environment(port: int) -> dict[str, str]:
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "4",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_HEAP_OPTS": "-Xmx384m",
        "KAFKA_JVM_PERFORMANCE_OPTS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
    }
