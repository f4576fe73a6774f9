"""One installation on one machine: brought up, brought down, and found again after a crash."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from shared.channels import credentials
from shared.clock import SystemClock
from shared.db import Database
from shared.embedded import home as folder
from shared.embedded import processes, readiness
from shared.embedded import supervisor as manager
from shared.embedded.files import write_private
from shared.embedded.owner import CannotRunHere, Owner
from shared.embedded.postgres import Postgres, is_free
from shared.embedded.readiness import Part
from shared.embedded.supervisor import POSTGRES, WEB, Supervisor
from shared.errors import HearbackError
from shared.ids import SystemIds
from shared.log import move
from shared.migrate import GONE_SECONDS, head, migrate, version
from shared.provider_settings import PREFIXES
from shared.settings import DATABASES, SERVICES, Settings, load, reachable

_ROOT = Path(__file__).resolve().parent.parent.parent
_STARTED = "started"
# A process that has been ending at once for so many seconds will not mend itself.
_HOPELESS = 20.0
_SOURCES = (".py", ".sql", ".html", ".txt", ".css", ".js", ".mjml", ".json", ".toml", ".svg")


class Progress(Protocol):
    """Shows what is being done."""

    def step(self, text: str) -> AbstractContextManager[Callable[[str], None]]:
        """A step that lasts as long as its block; the function it gives adds a word on how far it is."""
        ...

    def note(self, text: str) -> None:
        """A sentence that stays."""
        ...


@dataclass(frozen=True, slots=True)
class Started:
    """What `up` has to say at its end. `admin` is (login, one-time password), at the first start only.

    `refused` are sentences on providers that do not accept us: everything runs, and nothing can be sent.
    """

    settings: Settings
    admin: tuple[str, str] | None
    refused: tuple[str, ...] = ()


class Installation:
    """The processes and files of the data folder `home`; all methods are run as its owner."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.supervisor = Supervisor(home)
        self.postgres = Postgres(home, Owner(os.geteuid(), os.getegid()))

    @property
    def own_postgres(self) -> bool:
        """Whether any of the databases is ours to run."""
        return not all(setting(f"{name.upper()}_DATABASE_URL") for name in DATABASES)

    def up(self, progress: Progress, *, timeout: float = 120) -> Started:
        """Starts everything that does not run, and returns when every part is ready.

        Raises a `HearbackError` with a sentence that says what is wrong and what to do.
        """
        load(first_start=True)

        def waiting() -> None:
            progress.note("Another `hearback up` or `down` is at work; waiting for it.")

        folder.prepare(self.home, own_secret=not setting("SECRET"), waiting=waiting)
        with folder.locked(self.home, waiting):
            settings = self._start(progress)
            refused = self._refused(settings, progress)
            with progress.step("Waiting until every part is ready") as told:
                self._wait(
                    lambda: [p for p in self.unready(settings) if not (refused and readiness.only_sender(p))],
                    timeout,
                    told,
                )
            admin = first_admin(settings)
            try:
                with progress.step("Letting all parts know of each other") as told:
                    self._wait(readiness.Arrival(settings).missing, timeout, told)
            except CannotRunHere as error:
                if admin is None:
                    raise
                progress.note(error.message)  # the password below is said only once: it must not get lost
            return Started(settings, admin, refused)

    def _refused(self, settings: Settings, progress: Progress) -> tuple[str, ...]:
        """What is certainly wrong with the providers' credentials; who cannot be reached is only noted.

        Neither keeps anything from starting: answers are to be heard although nothing can be sent.
        """
        if settings.mail == settings.sms == "mailbox":
            return ()
        with progress.step("Asking the providers whether they accept us"):
            found = credentials.check(settings)
        for one in found:
            if one.problem and not one.wrong:
                progress.note(f"{one.name}: {one.problem}. Its messages wait until that is mended.")
        return tuple(one.problem for one in found if one.wrong)

    def _start(self, progress: Progress) -> Settings:
        if self.supervisor.alive():
            self._load_postgres()
            settings, print_ = load(), self._fingerprint()
            if self.own_postgres:
                self.supervisor.start_program(POSTGRES)
                self.postgres.wait(_HOPELESS)
                make_lost(self.postgres, settings, progress)
            if print_ == _read(self.home / "run" / _STARTED):
                for name in self.names():
                    self.supervisor.start_program(name)
                progress.note("Already running.")
                return settings
            progress.note("Settings or program changed since the last start: starting again.")
            # Refused before anything is stopped, when that can be known without changing tables.
            if all(version(name, settings.database_urls[name]) == head(name) for name in SERVICES):
                move.start_with(settings, progress.note)
            self._stop(progress)
        self._clean(progress)
        check_port(load(first_start=True))
        if self.own_postgres:
            with progress.step(
                "Setting up PostgreSQL" if not self.postgres.data.exists() else "Checking PostgreSQL"
            ):
                self.postgres.initialise()
        settings = load()
        with progress.step("Starting the process manager"):
            path = self.home / "run" / "supervisord.conf"
            write_private(path, manager.configuration(self.home, self._programs()))
            self.supervisor.start(path)
        if self.own_postgres:
            with progress.step("Starting PostgreSQL"):
                self.supervisor.start_program(POSTGRES)
                self.postgres.wait(120, lambda: self._state(POSTGRES) not in ("BACKOFF", "FATAL"))
            # When this refuses, PostgreSQL goes on: the restore that it asks for needs it.
            make_lost(self.postgres, settings, progress)
        with progress.step("Preparing the tables") as told:
            for name in DATABASES:
                told(name)
                # On our own server nobody is left now; elsewhere those we killed count as gone in a moment.
                ours = not setting(f"{name.upper()}_DATABASE_URL")
                migrate(name, settings.database_urls[name], alone=ours, wait=GONE_SECONDS + 10)
        try:
            move.start_with(settings, progress.note)
        except HearbackError:
            self._stop(progress)
            raise
        folder.note_secret(settings)
        with progress.step("Starting the services"):
            for name in self.names():
                self.supervisor.start_program(name)
        write_private(self.home / "run" / _STARTED, self._fingerprint())
        return settings

    def _wait(self, missing: Callable[[], list[Part]], timeout: float, told: Callable[[str], None]) -> None:
        began = time.monotonic()
        failing_since = began
        while left := missing():
            told(", ".join(part.name for part in left))
            now = time.monotonic()
            if all(info["statename"] == "RUNNING" for info in self.supervisor.states().values()):
                failing_since = now
            if now > min(began + timeout, failing_since + _HOPELESS):
                raise CannotRunHere(
                    f"Not ready after {now - began:.0f} seconds: "
                    + "; ".join(f"{part.name} ({part.problem}{self._last_words(part.name)})" for part in left)
                    + f". `hearback logs` shows more; the files are in {self.home / 'log'}."
                )
            time.sleep(0.2)

    def _last_words(self, program: str) -> str:
        lines = [line for line in _read(self.home / "log" / f"{program}.log").splitlines() if line.strip()]
        return f": {lines[-1].strip()[:300]}" if lines else ""

    def unready(self, settings: Settings) -> list[Part]:
        """The parts that cannot do their work yet; each step is looked at when the one before is fine."""
        looks: Sequence[Callable[[], list[Part]]] = (
            lambda: readiness.programs(self.supervisor, self.names()),
            lambda: [*readiness.web(settings), *readiness.workers(settings, self.supervisor)],
            lambda: [readiness.mailbox(settings)] if settings.uses_mailbox else [],
        )
        for look in looks:
            if wrong := [part for part in look() if not part.ok]:
                return wrong
        return []

    def down(self, progress: Progress) -> bool:
        """Stops everything, in order; returns whether anything ran."""
        if not (self.home / "run").is_dir():
            return False
        with folder.locked(
            self.home, lambda: progress.note("Another `hearback up` or `down` is at work; waiting for it.")
        ):
            ran = self.supervisor.alive()
            if ran:
                self._stop(progress)
            return self._clean(progress) or ran

    def _stop(self, progress: Progress) -> None:
        """What takes requests first, what keeps the data last."""
        process = processes.supervisord(self.home)
        for what, names in (("the web", [WEB]), ("the workers", manager.WORKERS), ("PostgreSQL", [POSTGRES])):
            if what != "PostgreSQL" or self.own_postgres:
                with progress.step(f"Stopping {what}"):
                    self.supervisor.stop_programs(names)
        self.supervisor.shut_down()
        if process is not None:
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(30)

    def _clean(self, progress: Progress) -> bool:
        """Ends what an earlier, killed start left behind, and removes its pid and socket files."""
        manager_left = processes.supervisord(self.home)
        left = processes.noted(self.home)
        backends = processes.backends(self.postgres.data)
        if manager_left or left or backends:
            with progress.step("Ending what an earlier start left behind"):
                if manager_left:
                    processes.end([manager_left], patience=90)
                processes.end([*left, *processes.noted(self.home)], patience=25)
                postmaster = self.postgres.pid()
                if postmaster:
                    processes.end([psutil.Process(postmaster)], by=signal.SIGINT, patience=60)
                # Without a postmaster its children end by themselves; wait until they have.
                processes.end(processes.backends(self.postgres.data), by=signal.SIGQUIT, patience=15)
        for path in (self.home / "run").glob("*"):
            if path.suffix in (".pid", ".json", ".new") or path.name.startswith("supervisor.sock"):
                path.unlink(missing_ok=True)
        manager.socket_path(self.home).unlink(missing_ok=True)
        # The number in it may belong to another program by now, which PostgreSQL would take for itself.
        (self.postgres.data / "postmaster.pid").unlink(missing_ok=True)
        return bool(manager_left or left or backends)

    def _state(self, name: str) -> str:
        return str(self.supervisor.states().get(name, {}).get("statename", ""))

    def names(self) -> list[str]:
        """The programs that run here, in the order they are started."""
        return [name for name in manager.PROGRAMS if name != POSTGRES or self.own_postgres]

    def _programs(self) -> Sequence[manager.Program]:
        return manager.programs(self.postgres.command() if self.own_postgres else None)

    def _load_postgres(self) -> None:
        if self.own_postgres:
            self.postgres.load()

    def _fingerprint(self) -> str:
        """Changes when the running processes would be others if they were started now."""
        said = hashlib.sha256(manager.configuration(self.home, self._programs()).encode())
        for name in sorted(os.environ):
            if name.startswith(PREFIXES) and name != "HEARBACK_HOME":
                value = os.environ[name]
                # A key that was replaced in its file is another key.
                kept = _read(Path(value)) if name.endswith("_FILE") else ""
                said.update(f"{name}={value}\0{kept}\0".encode())
        for package in ("shared", "services"):
            for path, _, files in sorted(os.walk(_ROOT / package)):
                for name in sorted(files):
                    if name.endswith(_SOURCES):
                        found = os.stat(os.path.join(path, name))  # noqa: PTH116 (hundreds of files)
                        said.update(f"{path}/{name} {found.st_mtime_ns} {found.st_size}\0".encode())
        return said.hexdigest()


def make_lost(postgres: Postgres, settings: Settings, progress: Progress, but: str = "") -> list[str]:
    """Makes the databases that were lost, and their tables, while the others are at work; returns which.

    Says what is empty now. The caller holds the data folder's lock, and puts `but` back itself. Raises
    `CannotRunHere` when another one was lost that only a backup can bring back.
    """
    elsewhere = [name for name, url in settings.database_urls.items() if not postgres.holds({name: url})]
    lost = [name for name in postgres.create_databases([but, *elsewhere]) if name not in elsewhere]
    for name in lost:
        if name != but:
            migrate(name, settings.database_urls[name], alone=True)
            filled = "reporting`" if name == "reporting" else "SERVICE` for each service"
            progress.note(
                f"The database {name} was gone and is new and empty: run `hearback rebuild {filled}."
            )
    return lost


def check_port(settings: Settings) -> None:
    """Raises `CannotRunHere` when the web process could not listen on its port."""
    host = settings.host or "0.0.0.0"  # noqa: S104 (what an empty host asks for)
    if settings.port < 1024 and os.geteuid() != 0 and not is_free(settings.port, host):
        raise CannotRunHere(
            f"Port {settings.port} cannot be opened by an ordinary user, or is taken. Choose another "
            "from 1024 on: HEARBACK_PORT=8080 make up."
        )
    if not is_free(settings.port, host):
        other = next(
            (port for port in range(settings.port + 1, min(settings.port + 200, 65_536)) if is_free(port)), 0
        )
        raise CannotRunHere(
            f"Port {settings.port} on {reachable(settings.host)} is taken{_taken_by(settings.port)}. "
            f"Free it, or choose another: HEARBACK_PORT={other or 8080} make up."
        )


def _taken_by(port: int) -> str:
    try:
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr[1:] == (port,) and found.pid:
                return f" by {psutil.Process(found.pid).name()} (process {found.pid})"
    except (psutil.Error, OSError):
        pass
    return ""


def first_admin(settings: Settings) -> tuple[str, str] | None:
    """The first administrator's login and one-time password when they are made now, else None."""
    db = Database(settings.database_urls["followup"], SystemClock(), SystemIds(), name="up", pool_size=1)
    try:
        with db.transaction() as tx:
            if tx.value("SELECT 1 FROM staff LIMIT 1"):
                return None  # as at every start but the first: not worth loading followup for
        staff = importlib.import_module("services.followup.commands.staff")
        with db.transaction() as tx:
            made: tuple[str, str] | None = staff.ensure_admin(tx)
            return made
    finally:
        db.close()


def setting(name: str) -> str:
    """What the environment says of HEARBACK_`name`: the value, or the file it is in; empty for nothing."""
    return os.environ.get(f"HEARBACK_{name}") or os.environ.get(f"HEARBACK_{name}_FILE") or ""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
