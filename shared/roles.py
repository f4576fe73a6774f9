"""The roles of a service (relay, consumer, sender, clock): how they loop, fail, start again and report."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from shared.clock import Clock
from shared.db import Database
from shared.errors import HearbackError
from shared.ids import Ids
from shared.settings import Settings

ROLES = ("relay", "consumer", "sender", "clock")

Loop = Callable[[threading.Event], None]
"""Works until the event is set. Raising means: start me again after a while."""

_BEAT = 1.0
# The main loop goes round ten times a second; not for so long (s) means that the process hangs.
_HANGS = 30.0
_BACK_OFF = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# A loop that lasted this long (s) had recovered: the next failure starts from the shortest wait again.
_STEADY = 30.0

_log = structlog.get_logger("hearback.roles")


@dataclass(frozen=True)
class RoleContext:
    """What a role is made from. `db` is the service's own database."""

    settings: Settings
    service: str
    clock: Clock
    ids: Ids
    db: Database


Factory = Callable[[RoleContext], Loop]


def load_roles(service: str) -> Mapping[str, Factory]:
    """The roles that `service` has, from `services.NAME.roles`, by name (no import from here to there)."""
    roles: Mapping[str, Factory] = importlib.import_module(f"services.{service}.roles").ROLES
    return roles


class Health:
    """How one role is doing: told by its thread, read by the reporter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ready = False
        self.error = ""
        self.restarts = 0
        self.detail: dict[str, Any] = {}

    def ok(self, **detail: Any) -> None:
        """The role has just done its work, or found none."""
        with self._lock:
            self.ready, self.error = True, ""
            self.detail.update(detail)

    def failed(self, error: str) -> None:
        """The role cannot do its work now."""
        with self._lock:
            self.ready, self.error = False, error

    def as_dict(self) -> dict[str, Any]:
        with self._lock:
            return {"ready": self.ready, "error": self.error, "restarts": self.restarts, **self.detail}


_here = threading.local()


def health() -> Health:
    """The health of the role that runs in this thread; outside of any, one that nobody reads."""
    found: Health | None = getattr(_here, "health", None)
    return found if found is not None else Health()


def every(seconds: float, step: Callable[[], bool], name: str = "") -> Loop:
    """A loop of `step`: at once again while it returns True (there may be more), else after `seconds`."""

    def loop(stop: threading.Event) -> None:
        while not stop.is_set():
            more = step()
            health().ok()
            if not more:
                stop.wait(seconds)

    loop.__name__ = name or "every"
    return loop


def together(*loops: Loop) -> Loop:
    """One loop of several, each in a thread of its own: while one fails and starts again the others go on."""

    def loop(stop: threading.Event) -> None:
        mine = health()
        parts = [Health() for _ in loops]
        threads = [
            threading.Thread(target=_keep, args=(part.__name__, part, stop, its), daemon=True)
            for part, its in zip(loops, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        while not stop.is_set():
            mine.restarts = sum(its.restarts for its in parts)
            worst = next((its for its in parts if its.error), None)
            if worst is not None:
                mine.failed(worst.error)
            elif all(its.ready for its in parts):
                mine.ok()
            stop.wait(0.2)
        for thread in threads:
            thread.join()

    return loop


def _keep(name: str, loop: Loop, stop: threading.Event, mine: Health) -> None:
    """Runs a loop again and again until `stop`, ever slower while it keeps failing."""
    _here.health = mine
    failures = 0
    while not stop.is_set():
        began = time.monotonic()
        try:
            loop(stop)
            failures = 0
            if not stop.is_set():
                stop.wait(_BACK_OFF[0])  # a loop that ends early is not worth a busy wait
        except Exception as error:
            failures = 0 if time.monotonic() - began > _STEADY else failures
            wait = _BACK_OFF[min(failures, len(_BACK_OFF) - 1)]
            failures += 1
            mine.restarts += 1
            mine.failed(brief(error))
            _log.error("role failed", role=name, error=brief(error), again_in=wait, exc_info=failures == 1)
            stop.wait(wait)


class Worker:
    """Runs roles of one service, each in its own thread, and reports how they are.

    The report is `home/run/worker-NAME.json`: `{"service", "pid", "beat", "ready", "roles": {role: {"ready",
    "error", "restarts"}}}`, written each second and when a role's state changes; a `beat` (epoch seconds)
    older than 10 s means that the process hangs or is gone. While it `wait`s its roles are unready.
    """

    def __init__(self, context: RoleContext, loops: Mapping[str, Loop], name: str | None = None) -> None:
        self._threads: list[threading.Thread] = []
        self._ticked = time.monotonic()
        self.context = context
        self.loops = dict(loops)
        self.name = name or context.service
        self.health = {role: Health() for role in loops}
        self.report = report_path(context.settings.home, self.name)

    def wait(self, obstacle: Callable[[], str], stop: threading.Event) -> bool:
        """Returns when `obstacle()` says nothing any more; False when `stop` was set before."""
        while not stop.is_set():
            said = obstacle()
            if not said:
                return True
            for health in self.health.values():
                health.failed(said)
            self._write()
            self._ticked = time.monotonic()
            stop.wait(0.2)
        with contextlib.suppress(OSError):
            self.report.unlink(missing_ok=True)
        return False

    def run(self, stop: threading.Event) -> None:
        """Works until `stop` is set, then waits for the roles to end what they are at."""
        self._threads = [
            threading.Thread(target=_keep, args=(role, loop, stop, self.health[role]), name=role, daemon=True)
            for role, loop in self.loops.items()
        ]
        for thread in self._threads:
            thread.start()
        said = ""
        waited = _BEAT
        while not stop.is_set():
            state = json.dumps({role: health.as_dict() for role, health in self.health.items()})
            if state != said or waited >= _BEAT:
                self._write()
                said, waited = state, 0.0
            self._ticked = time.monotonic()
            stop.wait(0.1)
            waited += 0.1
        for thread in self._threads:
            thread.join(timeout=20)
        with contextlib.suppress(OSError):
            self.report.unlink(missing_ok=True)

    def alive(self) -> bool:
        """Whether the process does not hang: it goes round, and no role's thread has ended by itself.

        How its neighbours are (database, log, providers) has no part in it.
        """
        fresh = time.monotonic() - self._ticked < _HANGS
        return fresh and all(thread.is_alive() for thread in self._threads)

    def as_dict(self) -> dict[str, Any]:
        """The report."""
        roles = {role: health.as_dict() for role, health in self.health.items()}
        return {
            "service": self.context.service,
            "pid": os.getpid(),
            "beat": datetime.now().timestamp(),  # noqa: DTZ005 (epoch seconds, to compare with others' wall clock)
            "ready": all(role["ready"] for role in roles.values()),
            "roles": roles,
        }

    def _write(self) -> None:
        new = self.report.with_suffix(f".{os.getpid()}.new")
        try:
            self.report.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(self.as_dict()))
            new.replace(self.report)
        except OSError as error:  # a full disk must not end the work itself
            _log.warning("worker report not written", error=str(error))


def report_path(home: Path, name: str) -> Path:
    """Where the worker `name` reports."""
    return home / "run" / f"worker-{name}.json"


def read_report(home: Path, name: str) -> dict[str, Any] | None:
    """The last report of the worker `name`, or None when there is none that is fresh (10 s)."""
    try:
        report: dict[str, Any] = json.loads(report_path(home, name).read_text())
    except (OSError, ValueError):
        return None
    age = datetime.now().timestamp() - float(report.get("beat", 0))  # noqa: DTZ005
    return report if age < 10 else None


def brief(error: BaseException) -> str:
    """An error in one line, without the details (they may hold addresses); ours are sentences already."""
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, HearbackError):
        return first.removesuffix(".")[:300]
    return f"{type(error).__name__}: {first}".removesuffix(": ")[:300]
