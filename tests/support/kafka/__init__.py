"""A real Kafka broker for tests: the jars that `.ci/kafka` fetched, run by the installed Java."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shared.settings import KafkaSettings

ROOT = Path(__file__).resolve().parents[3]
JARS = ROOT / "build" / "kafka"
PATIENCE = 60.0

_PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners={listeners},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={listeners}
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL
log.dirs={folder}/data
default.replication.factor={copies}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.retention.minutes=20160
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
background.threads=2
log.cleaner.dedupe.buffer.size=2097152
"""

_LOGGING = """\
log4j.rootLogger=WARN, stdout
log4j.appender.stdout=org.apache.log4j.ConsoleAppender
log4j.appender.stdout.layout=org.apache.log4j.PatternLayout
"""


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Broker:
    """One node in KRaft mode, in a folder of its own, on ports that stay the same through restarts.

    `more` are further lines of its configuration, with `listeners` (`SSL://127.0.0.1:PORT`, …) beside the
    plain one. `voters` are the ports of the controllers of its cluster, its own being number `node`.
    """

    more: str = ""
    listeners: tuple[str, ...] = ()
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="hearback-kafka-")))
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    voters: tuple[int, ...] = field(default_factory=lambda: (free_port(),))
    node: int = 1

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def settings(self, prefix: str = "", *, poll_seconds: int = 60) -> KafkaSettings:
        """How the product reaches it."""
        return KafkaSettings(self.bootstrap, prefix=prefix, poll_seconds=poll_seconds)

    def start(self) -> Broker:
        """Starts it (again) and returns when it takes connections."""
        self.begin()
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if not self.alive or time.monotonic() > until:
                raise AssertionError(f"the broker did not start:\n{self.said()}")
            time.sleep(0.05)
        return self

    def begin(self) -> None:
        """Starts it (again), for `start` to wait for; a cluster's brokers wait for each other first."""
        if self.alive:
            return
        configuration = self.folder / "server.properties"
        if not configuration.exists():
            listeners = ",".join([f"PLAINTEXT://{self.bootstrap}", *self.listeners])
            configuration.write_text(
                _PROPERTIES.format(
                    node=self.node,
                    voters=",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(self.voters, 1)),
                    copies=len(self.voters),
                    in_sync=len(self.voters) // 2 + 1,
                    listeners=listeners,
                    controller=self.voters[self.node - 1],
                    folder=self.folder,
                )
                + self.more
            )
            self._java("kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c",
                       str(configuration)).wait(PATIENCE)  # fmt: skip
        self.process = self._java("kafka.Kafka", str(configuration))

    def _answers(self) -> bool:
        # It listens before it serves; a client's first question waits until it does.
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def _java(self, main: str, *arguments: str) -> subprocess.Popen[bytes]:
        java = shutil.which("java")
        if java is None or not (JARS / ".installed").exists():
            pytest.skip("needs a Kafka broker: run .ci/kafka")
        command = [java, "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{JARS}/*"]
        if setpriv := shutil.which("setpriv"):  # it must not outlive a test run that is killed
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                [*command, main, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def said(self) -> str:
        return (self.folder / "output").read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """Ends it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it keeps its connections and says nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it and removes what it kept."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Cluster:
    """Brokers that keep each record three times; it takes two of them to write one."""

    def __init__(self) -> None:
        voters = (free_port(), free_port(), free_port())
        self.nodes = [Broker(voters=voters, node=node) for node in (1, 2, 3)]

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes)

    def settings(self, prefix: str = "", *, poll_seconds: int = 60) -> KafkaSettings:
        """How the product reaches it."""
        return KafkaSettings(self.bootstrap, prefix=prefix, poll_seconds=poll_seconds)

    def start(self) -> Cluster:
        """Starts those that do not run, and returns when all take connections."""
        for node in self.nodes:
            node.begin()
        for node in self.nodes:
            node.start()
        return self

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def freeze(self) -> None:
        for node in self.nodes:
            node.freeze()

    def thaw(self) -> None:
        for node in self.nodes:
            node.thaw()

    def close(self) -> None:
        for node in self.nodes:
            node.close()
