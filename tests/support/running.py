"""The real thing for fault experiments: the mounted web app and the roles, each a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import urllib3

from shared.clock import Clock, SystemClock
from shared.db import Database
from shared.embedded.owner import find_owner
from shared.errors import Unavailable
from shared.ids import SystemIds
from shared.log import Log
from shared.log.in_use import open_in_use
from shared.provider_settings import PREFIXES
from shared.settings import SERVICES, KafkaSettings, Settings
from tests.support import trial

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90.0
_FOLLOWUP = ("relay", "sender", "clock")
_WEB = "from shared.embedded.web import serve; serve(('survey', 'followup', 'reporting'))"


class Died(AssertionError):
    """A process that should run does not."""


@dataclass
class Process:
    """One process of ours, and what it said."""

    name: str
    popen: subprocess.Popen[bytes]
    output: Path
    marker: Path | None = None

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def crashed(self) -> bool:
        """Whether the crash it was started with has happened."""
        return self.marker is not None and not self.marker.exists()

    def kill(self) -> None:
        """Ends it as a power cut would."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """Asks it to end, and its children with it."""
        if self.alive:
            self.popen.terminate()
            try:
                self.popen.wait(25)
            except subprocess.TimeoutExpired:
                self.kill()

    @property
    def frozen(self) -> bool:
        return psutil.Process(self.popen.pid).status() == psutil.STATUS_STOPPED

    def freeze(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    def said(self) -> str:
        return self.output.read_text(errors="replace")[-4000:]


@dataclass
class Running:
    """An installation in a folder of its own, on databases that are there already.

    Processes are started and killed one by one; nothing starts them again but the test. `crash_at`
    names a point of `shared.faults`, with `:N` the process's N-th pass of it; the first process that does so
    dies, once. One that was started with `freeze_at` freezes there, once, after `arm`. All of them get what
    is in `environment` besides. The program is the one in the folder `root`.
    """

    settings: Settings
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    databases: dict[str, Database] = field(default_factory=dict)
    root: Path = ROOT
    clock: Clock = field(default_factory=SystemClock)
    """What is seeded has its time."""

    @property
    def url(self) -> str:
        return self.settings.public_url

    def db(self, service: str) -> Database:
        """A service's database, for looking and for seeding."""
        if service not in self.databases:
            self.databases[service] = Database(
                self.settings.database_urls[service], self.clock, SystemIds(), name=f"test-{service}"
            )
        return self.databases[service]

    def log(self) -> Log:
        return open_in_use(self.settings)

    def role(self, service: str, *roles: str, crash_at: str = "", freeze_at: str = "") -> Process:
        """Starts roles of a service in one process."""
        command = [sys.executable, "-m", "shared.cli", "run", service, *roles]
        return self._start(f"{service}-{'-'.join(roles)}", command, crash_at, freeze_at)

    def workers(self) -> list[Process]:
        """Starts every role of every service, one process per service."""
        return [self.role(service) for service in SERVICES]

    def web_begins(self, crash_at: str = "") -> Process:
        """Starts the mounted web app, and does not wait for it."""
        return self._start("web", [sys.executable, "-c", _WEB], crash_at)

    def web(self, crash_at: str = "") -> Process:
        """Starts the mounted web app; returns when it answers."""
        process = self.web_begins(crash_at)
        http = urllib3.PoolManager(timeout=2, retries=False)

        def answers() -> bool:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                return all(
                    http.request("GET", f"{self.url}/{service}/healthz").status == 200 for service in SERVICES
                )
            return False

        self.wait(answers, process, "the web app to answer")
        return process

    def killed_command(self, crash_at: str, *words: str) -> Process:
        """Starts `hearback WORDS…`, which dies when it passes `crash_at`."""
        return self._start("-".join(words), [sys.executable, "-m", "shared.cli", *words], crash_at)

    def command(self, *words: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs `hearback WORDS…` to its end, with `env` besides what all processes get."""
        done = subprocess.run(
            [*find_owner(self.settings.home).prefix, sys.executable, "-m", "shared.cli", *words],
            cwd=self.root,
            env=self._environment() | env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def wait(self, done: Callable[[], Any], alive: Process | None = None, what: str = "it") -> None:
        """Returns when `done()` is true. Raises when it takes too long or `alive` is not."""
        until = time.monotonic() + PATIENCE
        while not done():
            if alive is not None and not alive.alive:
                raise Died(f"{alive.name} ended with {alive.popen.returncode}:\n{alive.said()}")
            if time.monotonic() > until:
                outputs = "\n".join(f"--- {process.name}\n{process.said()}" for process in self.processes)
                raise AssertionError(f"waited {PATIENCE:.0f} s for {what}\n{outputs}")
            time.sleep(0.05)

    def arm(self, process: Process) -> None:
        """Lets a process freeze when it next passes its `freeze_at`."""
        assert process.marker is not None
        self._put(process.marker)

    def wait_crash(self, process: Process) -> None:
        """Returns when the process has died of its `crash_at` (of the web app: when a worker of it has)."""
        self.wait(process.crashed, None, f"{process.name} to crash")
        if process.name != "web":
            self.wait(lambda: not process.alive, None, f"{process.name} to be gone")
            assert process.popen.returncode == -signal.SIGKILL, process.said()

    def has_topics(self) -> bool:
        """Whether the log has its topics; they are made, once a broker that has just started is ready."""
        log = self.log()
        try:
            log.ensure_topics()
            return True
        except Unavailable:
            return False
        finally:
            log.close()

    def settle(self) -> None:
        """Returns when every event has been sent and applied, and nothing is to be sent to anybody."""
        log = self.log()
        began = time.monotonic()
        quiet = 0

        def done() -> bool:
            nonlocal quiet
            quiet = quiet + 1 if self._still(log) else 0
            return quiet >= 3

        try:
            self.wait(done, None, "everything to arrive")
            trial.settled(began)
        finally:
            log.close()

    def _still(self, log: Log) -> bool:
        try:
            lags = log.lag()
        except Unavailable:  # groups that are only just being made
            return False
        if {lag.consumer for lag in lags} != set(SERVICES) or any(lag.unread for lag in lags):
            return False
        for service in SERVICES:
            with self.db(service).transaction() as tx:
                if tx.value("SELECT EXISTS (SELECT FROM outbox)"):
                    return False
                if service != "reporting" and tx.value(
                    "SELECT EXISTS (SELECT FROM delivery WHERE state IN ('queued', 'claimed'))"
                ):
                    return False
        with self.db("log").transaction() as tx:
            return not tx.value("SELECT EXISTS (SELECT FROM mailbox.webhook)")

    def close(self) -> None:
        """Ends every process and closes every connection."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.thaw()
            process.stop()
        for db in self.databases.values():
            db.close()

    def _start(self, name: str, command: list[str], crash_at: str, freeze_at: str = "") -> Process:
        folder = self.settings.home
        marker: Path | None = None
        environment = self._environment()
        if crash_at or freeze_at:
            marker = folder / f"crash-{secrets.token_hex(4)}"
            environment["HEARBACK_FREEZE_AT" if freeze_at else "HEARBACK_CRASH_AT"] = (
                f"{crash_at or freeze_at}@{marker}"
            )
            if crash_at:
                self._put(marker)
        output = folder / f"{name}-{len(self.processes)}.out"
        with output.open("wb") as file:
            popen = subprocess.Popen(
                [*find_owner(folder).prefix, *command],
                cwd=self.root,
                env=environment,
                stdout=file,
                stderr=file,
            )
        process = Process(name, popen, output, marker)
        self.processes.append(process)
        return process

    def _put(self, marker: Path) -> None:
        marker.touch()
        find_owner(self.settings.home).own(marker)

    def _environment(self) -> dict[str, str]:
        settings = self.settings
        mine = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
        urls = {f"HEARBACK_{name.upper()}_DATABASE_URL": url for name, url in settings.database_urls.items()}
        return {
            **mine,
            **urls,
            "HEARBACK_HOME": str(settings.home),
            "HEARBACK_SECRET": settings.secret,
            "HEARBACK_PORT": str(settings.port),
            "HEARBACK_MAILBOX_URL": settings.mailbox_url,
            **({"HEARBACK_LOG": settings.log} if settings.log else {}),
            **(brokers(settings.kafka) if settings.kafka else {}),
            "HOME": str(settings.home),
            "PYTHONPATH": str(self.root),
            **self.environment,
        }


class Cast:
    """The processes of an installation: one for each role that an experiment kills, one for the rest."""

    def __init__(self, installation: Running) -> None:
        self.installation = installation
        self.web = installation.web()
        self.relay = installation.role("survey", "relay")
        self.consumers = {service: installation.role(service, "consumer") for service in SERVICES}
        self.others = [
            installation.role("survey", "sender", "clock"),
            installation.role("followup", *_FOLLOWUP),
        ]

    def relay_again(self, crash_at: str = "") -> Process:
        self.relay = self.installation.role("survey", "relay", crash_at=crash_at)
        return self.relay

    def followup_again(self, crash_at: str = "") -> Process:
        """All roles of followup's but its consumer."""
        self.others[1] = self.installation.role("followup", *_FOLLOWUP, crash_at=crash_at)
        return self.others[1]

    def consumer_again(self, service: str, crash_at: str = "") -> Process:
        self.consumers[service] = self.installation.role(service, "consumer", crash_at=crash_at)
        return self.consumers[service]


def brokers(kafka: KafkaSettings) -> dict[str, str]:
    """The environment that leads to them."""
    return {
        "HEARBACK_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "HEARBACK_KAFKA_PREFIX": kafka.prefix,
        "HEARBACK_KAFKA_POLL_SECONDS": str(kafka.poll_seconds),
    }


@contextlib.contextmanager
def running(
    urls: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    *,
    mailbox_url: str = "",
    log: Literal["embedded", "kafka"] | None = None,
    kafka: KafkaSettings | None = None,
    clock: Clock | None = None,
) -> Iterator[Running]:
    """An installation on the databases of `urls`, with a free port and a folder; ended at the end.

    Its processes get `environment` besides. Its senders hand messages over to the provider at
    `mailbox_url`, else to its own mailbox. `log` and `kafka` are as in the settings. What the test seeds has
    the time of `clock`.
    """
    home = Path(tempfile.mkdtemp(prefix="hearback-run-"))
    (home / "run").mkdir()
    find_owner().own(home, deep=True)
    port = free_port()
    here = f"http://127.0.0.1:{port}"
    settings = Settings(
        home=home, secret=secrets.token_urlsafe(32), database_urls=dict(urls), log=log, kafka=kafka
    )
    settings = replace(settings, port=port, public_url=here, survey_url=here, followup_url=here)
    settings = replace(settings, mailbox_url=mailbox_url or here)
    found = Running(settings, environment or {}, clock=clock or SystemClock())
    try:
        found.wait(found.has_topics, None, "the log's topics")
        yield found
    finally:
        found.close()
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


TOKEN = re.compile(r"/a/([\w-]{20,})")
