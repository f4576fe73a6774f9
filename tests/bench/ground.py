"""What measurements stand on: a PostgreSQL that really writes (fsync on), databases, installations."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from shared.log import open_log
from tests.support.kafka import JARS, Broker
from tests.support.postgres import EmbeddedServer, FreshDatabases, TestPostgres
from tests.support.running import Running, running

# The fixed share of answers: of ten customers, one on each of these scores.
SCORES = (10, 9, 3, 8, 10, 7, 9, 6, 10, 8)

_SLEEPER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static void wait_a_moment(void) {
    const char *switched = getenv("SLOW_WHILE");
    struct timespec pause = {0, 1000000};
    if (switched && access(switched, F_OK) == 0) nanosleep(&pause, 0);
}
int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    wait_a_moment();
    return real(fd);
}
int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    wait_a_moment();
    return real(fd);
}
"""


class Ground:
    """One server for a whole run; every measurement has databases of its own."""

    def __init__(self) -> None:
        self.postgres = TestPostgres(fsync=True)
        self._broker: Broker | None = None
        self._numbers = itertools.count(1)

    def close(self) -> None:
        if self._broker is not None:
            self._broker.close()
        self.postgres.close()

    def logs(self) -> list[str]:
        """The logs that can be measured here."""
        there = shutil.which("java") and (JARS / ".installed").exists()
        return ["embedded", "kafka"] if there else ["embedded"]

    @contextlib.contextmanager
    def installation(self, log: str = "embedded") -> Iterator[Running]:
        """Migrated, empty databases and a data folder; processes are started by whoever measures."""
        with _installation(self.postgres) as found:
            if log == "kafka":
                kafka = self._kafka().settings(f"bench{next(self._numbers)}.")
                found.settings = replace(found.settings, log="kafka", kafka=kafka)
                topics = open_log(found.settings)
                topics.ensure_topics()
                topics.close()
            yield found

    def postgres_pid(self) -> int:
        """The postmaster's process id; its children do the work."""
        server = self.postgres.server
        assert isinstance(server, EmbeddedServer)
        pid = server.pid()
        assert pid is not None
        return pid

    def broker_pid(self) -> int | None:
        """The broker's process id, once there is one."""
        process = self._broker.process if self._broker else None
        return process.pid if process else None

    def _kafka(self) -> Broker:
        """One broker, started when it is first asked for."""
        if self._broker is None:
            self._broker = Broker().start()
        return self._broker


@contextlib.contextmanager
def _installation(postgres: TestPostgres) -> Iterator[Running]:
    urls = FreshDatabases(postgres)
    try:
        with running(urls) as found:
            yield found
    finally:
        urls.drop()


class SlowDisk:
    """A server whose fsync and fdatasync take a millisecond longer while `slow` says so."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hearback-slow-"))
        self.folder.chmod(0o755)
        source, library = self.folder / "sleeper.c", self.folder / "sleeper.so"
        source.write_text(_SLEEPER)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        self._switch = self.folder / "on"
        with _environment(LD_PRELOAD=str(library), SLOW_WHILE=str(self._switch)):
            self.postgres = TestPostgres(fsync=True)

    @staticmethod
    def possible() -> bool:
        """Whether there is a C compiler to make it with."""
        return shutil.which("cc") is not None

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        self._switch.touch()
        try:
            yield
        finally:
            self._switch.unlink()

    @contextlib.contextmanager
    def installation(self) -> Iterator[Running]:
        with _installation(self.postgres) as found:
            yield found

    def close(self) -> None:
        self.postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
