"""supervisord, which keeps the processes alive: its configuration, starting it, talking to it."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from shared.embedded.owner import CannotRunHere
from shared.settings import SERVICES

POSTGRES, WEB = "postgres", "web"
WORKERS = tuple(f"{service}-worker" for service in SERVICES)
PROGRAMS = (POSTGRES, *WORKERS, WEB)

# The longest path of a Unix socket (sockaddr_un.sun_path has 108 bytes with its end), less what supervisord
# appends while it makes one.
_LONGEST_SOCKET = 90

_HEAD = """\
; Written by Hearback at each start; changes here are lost.
[supervisord]
logfile={log}/supervisord.log
logfile_maxbytes=5MB
logfile_backups=2
loglevel=info
pidfile={run}/supervisord.pid
childlogdir={log}
directory={home}
identifier=hearback
nocleanup=true
umask=077

[unix_http_server]
file={socket}
chmod=0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl=unix://{socket}
"""

# The log's path is relative to our folder: supervisord would expand this one twice, and stumble over a `%`.
# `startretries` is large because it gives up for good after that many; a database that is away for an hour
# is no reason to stay down.
_PROGRAM = """
[program:{name}]
command={command}
priority={priority}
autostart=false
autorestart=true
startsecs=1
startretries=1000000
stopsignal={signal}
stopwaitsecs={wait}
killasgroup=true
redirect_stderr=true
stdout_logfile=log/{name}.log
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


@dataclass(frozen=True, slots=True)
class Program:
    """A process to keep alive. `wait` is how many seconds it may take to stop before it is killed."""

    name: str
    command: Sequence[str]
    priority: int
    signal: str = "TERM"
    wait: int = 25


def programs(postgres: Sequence[str] | None) -> list[Program]:
    """What runs on one machine: PostgreSQL (given its command when it is ours), the workers, the web."""
    python = [sys.executable, "-m"]
    found = [Program(POSTGRES, postgres, 10, "INT", 60)] if postgres else []
    found += [
        Program(f"{service}-worker", [*python, "shared.cli", "run", service], 20) for service in SERVICES
    ]
    return [*found, Program(WEB, [*python, "shared.embedded.web"], 30)]


def configuration(home: Path, wanted: Iterable[Program]) -> str:
    """The text of supervisord's configuration."""
    places = {
        "home": home,
        "log": home / "log",
        "run": home / "run",
        "socket": socket_path(home),
    }
    escaped = {name: _escape(str(path)) for name, path in places.items()}
    parts = [_HEAD.format(**escaped)]
    parts += [
        _PROGRAM.format(
            name=program.name,
            command=_escape(shlex.join(program.command)),
            priority=program.priority,
            signal=program.signal,
            wait=program.wait,
        )
        for program in wanted
    ]
    return "".join(parts)


def _escape(text: str) -> str:
    # supervisord would take the rest for a comment, and has no way to quote it.
    if "\n" in text or ";" in text:
        raise CannotRunHere(
            f"The path {text!r} has a semicolon or a line break, which the process manager cannot read."
        )
    return text.replace("%", "%%")


def socket_path(home: Path) -> Path:
    """Where supervisord listens: in the data folder, or under a short path when that one is too long."""
    path = home / "run" / "supervisor.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    short = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    # Not what TMPDIR says: another shell has to find it as well.
    return Path("/tmp") / f"hearback-{short}" / "supervisor.sock"  # noqa: S108 (its folder is checked to be ours)


def prepare_socket(home: Path) -> None:
    """Makes the folder of the socket, ours alone. Raises `CannotRunHere` when it is somebody else's."""
    folder = socket_path(home).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise CannotRunHere(
            f"{folder} belongs to somebody else; remove it, or choose a shorter HEARBACK_HOME."
        )
    folder.chmod(0o700)


_ALIVE = ("STARTING", "RUNNING", "STOPPING", "BACKOFF")


class Supervisor:
    """The running supervisord of a data folder, if there is one."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def _rpc(self) -> Any:
        # A proxy per call: one that lost its connection does not find back.
        transport = SupervisorTransport(None, None, f"unix://{socket_path(self.home)}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def alive(self) -> bool:
        """Whether it answers."""
        try:
            return bool(self._rpc.getState()["statename"] == "RUNNING")
        except (OSError, xmlrpc.client.Error, ValueError, _http_error()):
            return False

    def start(self, configuration_file: Path) -> None:
        """Starts it in the background. Raises `CannotRunHere` with its own words when it does not come up."""
        prepare_socket(self.home)
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration_file)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=self.home,
            env=environment(self.home), check=False, timeout=60,
        )  # fmt: skip
        until = time.monotonic() + 30
        while done.returncode == 0 and time.monotonic() < until:
            if self.alive():
                return
            time.sleep(0.02)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("Error")), [*lines, "it does not answer"][-1])
        raise CannotRunHere(
            f"The process manager (supervisord) did not start: {said}. "
            f"See {self.home / 'log' / 'supervisord.log'}."
        )

    def states(self) -> dict[str, dict[str, Any]]:
        """Each program's state as supervisord tells it (`statename`, `pid`, …); {} when it is gone."""
        try:
            return {info["name"]: info for info in self._rpc.getAllProcessInfo()}
        except (OSError, xmlrpc.client.Error, _http_error()):
            return {}

    def start_program(self, name: str) -> None:
        """Starts a program without waiting for it; one that runs already keeps running."""
        try:
            self._rpc.startProcess(name, False)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise CannotRunHere(f"{name} could not be started: {fault.faultString}.") from fault

    def stop_program(self, name: str) -> None:
        """Stops a program and waits until it ended; one that is not there or does not run is fine."""
        self.stop_programs([name])

    def stop_programs(self, names: Sequence[str]) -> None:
        """Stops programs at the same time and waits until all ended; those that take too long are killed."""
        for name in names:
            try:
                self._rpc.stopProcess(name, False)
            except xmlrpc.client.Fault as fault:
                if not any(word in fault.faultString for word in ("NOT_RUNNING", "BAD_NAME")):
                    raise CannotRunHere(f"{name} could not be stopped: {fault.faultString}.") from fault
        # Asking often is also what makes it look often: by itself it would notice an end after a second.
        while any(self.states().get(name, {}).get("statename") in _ALIVE for name in names):
            time.sleep(0.05)

    def shut_down(self) -> None:
        """Ends supervisord itself, and whatever it still keeps alive."""
        try:
            self._rpc.shutdown()
        except (OSError, xmlrpc.client.Error, _http_error()):
            return


def environment(home: Path) -> dict[str, str]:
    """The environment of everything we start: ours, with the data folder by its full name."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = [
        root,
        *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root),
    ]
    return os.environ | {
        "HEARBACK_HOME": str(home),
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
    }


def _http_error() -> type[Exception]:
    import http.client

    return http.client.HTTPException
