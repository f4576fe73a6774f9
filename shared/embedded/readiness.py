"""Whether each running part can do its own work, and what is wrong with it when not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import urllib3

from shared.embedded import processes
from shared.embedded.supervisor import WEB, Supervisor
from shared.errors import HearbackError
from shared.log import Log
from shared.log.in_use import open_in_use
from shared.roles import read_report
from shared.settings import SERVICES, Settings

# So little free space (bytes) is worth a warning; and PostgreSQL stops without the next segment of its WAL.
LOW, FULL = 500 * 2**20, 16 * 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the installation. `problem` is a sentence without its full stop, empty when it is fine."""

    name: str
    problem: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.problem


def programs(supervisor: Supervisor, names: Sequence[str]) -> list[Part]:
    """The processes, as the process manager sees them."""
    states = supervisor.states()
    return [_program(name, states.get(name)) for name in names]


def _program(name: str, info: dict[str, Any] | None) -> Part:
    if info is None:
        return Part(name, "not running")
    facts = {"state": info["statename"], "pid": info["pid"], "since": info["start"]}
    if info["statename"] in ("RUNNING", "STARTING"):
        return Part(name, "", facts)
    words = {"BACKOFF": "fails to start and is tried again", "STOPPED": "stopped", "FATAL": "gave up"}
    said = f" ({info['spawnerr']})" if info.get("spawnerr") else ""
    return Part(name, words.get(info["statename"], info["statename"].lower()) + said, facts)


def manager(supervisor: Supervisor) -> Part:
    """What keeps all others alive. Without it they may go on for long, which is no reason to be quiet."""
    name = "process manager"
    if supervisor.alive():
        return Part(name, "", {"said": "supervisord answers"})
    if not processes.noted(supervisor.home):
        return Part(name, "not running: start everything with `hearback up`")
    return Part(
        name,
        "gone: what it started goes on, but nobody starts again what ends; `hearback up` mends that",
        {"left_alone": True},
    )


def disk(home: Path, least: int = LOW) -> Part:
    """Whether at least so many bytes are left in the data folder for what PostgreSQL writes."""
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < min(FULL, least):
        return Part("disk", f"{place} is full: nothing can be saved until you make room; then all goes on")
    if free < least:
        return Part(
            "disk", f"only {free // 2**20} MB are free in {place}: make room before PostgreSQL has to stop"
        )
    return Part("disk", "", {"said": f"{free // 2**30} GB free"})


def web(settings: Settings, services: Sequence[str] = SERVICES) -> list[Part]:
    """Each service's web role, by its `/readyz`."""
    pool = urllib3.PoolManager(retries=False, timeout=3.0)
    try:
        return [_readyz(pool, settings, service) for service in services]
    finally:
        pool.clear()


def _readyz(pool: urllib3.PoolManager, settings: Settings, service: str) -> Part:
    name = f"{service} {WEB}"
    try:
        reply = pool.request("GET", f"{settings.local_url}/{service}/readyz")
    except urllib3.exceptions.HTTPError:
        return Part(name, f"does not answer on {settings.local_url}")
    try:
        facts = json.loads(reply.data)
    except ValueError:
        facts = {}
    facts = facts if isinstance(facts, dict) else {}
    if reply.status == 200:
        return Part(name, "", facts)
    return Part(name, str(facts.get("problem") or facts.get("detail") or f"answers {reply.status}"), facts)


def workers(settings: Settings, supervisor: Supervisor) -> list[Part]:
    """Each service's other roles, by what their process reports of them.

    Whoever reports counts when the process manager cannot say who should.
    """
    states = supervisor.states()
    return [_worker(settings, service, states) for service in SERVICES]


def _worker(settings: Settings, service: str, states: dict[str, dict[str, Any]]) -> Part:
    name = f"{service} worker"
    report = read_report(settings.home, service)
    pid = states.get(f"{service}-worker", {}).get("pid") if states else (report or {}).get("pid")
    if report is None or report.get("pid") != pid:
        return Part(name, "does not report")
    roles: dict[str, Any] = report["roles"]
    wrong = [f"{role}: {how['error'] or 'not ready yet'}" for role, how in roles.items() if not how["ready"]]
    return Part(name, "; ".join(wrong), {"pid": pid, "roles": roles})


def only_sender(part: Part) -> bool:
    """Whether a worker is unready for its sender alone."""
    roles = part.facts.get("roles", {})
    unready = [role for role, how in roles.items() if not how["ready"]]
    return unready == ["sender"]


def mailbox(settings: Settings) -> Part:
    """The local stand-in for the providers of mail and SMS."""
    pool = urllib3.PoolManager(retries=False, timeout=3.0)
    try:
        status = pool.request("GET", f"{settings.mailbox_url}/mailbox/api/messages?limit=1").status
        # On an address of the network it asks for a login, and is there all the same.
        return Part("mailbox", "" if status < 500 else f"answers {status}")
    except urllib3.exceptions.HTTPError:
        return Part("mailbox", f"does not answer on {settings.mailbox_url}")
    finally:
        pool.clear()


# A busy installation always has something on its way; what has waited longer (s) than this is stuck.
LATE = 30.0


def replicas(settings: Settings, *, late: float = 0.0) -> list[Part]:
    """Whether what each service published has reached the others: no outbox and no consumer is behind.

    What has waited for less than `late` seconds is no problem: it is on its way.
    """
    found = []
    for service in SERVICES:
        name = f"{service} outbox"
        try:
            waiting, age = _outbox(settings.database_urls[service])
        except psycopg2.Error as error:
            found.append(Part(name, f"cannot be read: {type(error).__name__}"))
            continue
        said = f"{waiting} events wait to be published"
        found.append(_behind(name, said, waiting, age, late, {"waiting": waiting}))
    return [*found, _log(settings, late)]


class Arrival:
    """Whether all that had been published when this was made has reached the `readers`.

    Whatever has come since does not matter: under traffic there is always something on its way.
    """

    def __init__(self, settings: Settings, readers: Sequence[str] = SERVICES) -> None:
        self.settings = settings
        self.readers = readers
        self._last = {
            name: self._outbox(name, "SELECT coalesce(max(id), 0) FROM outbox") for name in SERVICES
        }
        self._left_at: float | None = None

    def missing(self) -> list[Part]:
        """The outboxes and the log, as far as they still hold any of it."""
        found = []
        for name, last in self._last.items():
            waiting = self._outbox(name, "SELECT count(*) FROM outbox WHERE id <= %s", last)
            if waiting:
                said = f"{waiting} events wait to be published"
                found.append(Part(f"{name} outbox", said, {"waiting": waiting}))
        if found:
            return found
        now = time.monotonic()
        self._left_at = now if self._left_at is None else self._left_at
        # What was appended since then is younger than this.
        return [part for part in [_log(self.settings, now - self._left_at, self.readers)] if not part.ok]

    def _outbox(self, service: str, query: str, *args: int) -> int:
        connection = psycopg2.connect(self.settings.database_urls[service], connect_timeout=5)
        try:
            with connection.cursor() as cur:
                cur.execute(query, args)
                return int(cur.fetchall()[0][0])
        finally:
            connection.close()


def _behind(name: str, said: str, waiting: int, age: float, late: float, facts: dict[str, Any]) -> Part:
    """A part that is behind: a problem when it has been for long, else a fact."""
    if not waiting:
        return Part(name, "", facts)
    if age >= late:
        return Part(name, said, facts)
    return Part(name, "", {**facts, "said": f"{said}, on their way"})


def _log(settings: Settings, late: float, readers: Sequence[str] = SERVICES) -> Part:
    log: Log | None = None
    try:
        log = open_in_use(settings)
        lags = [lag for lag in log.lag() if lag.consumer in readers]
    except HearbackError as error:
        return Part("log", error.message.rstrip("."))
    except Exception as error:  # whatever the adapter raises, the log is what is wrong
        return Part("log", f"cannot be read: {type(error).__name__}")
    finally:
        if log is not None:
            log.close()
    behind: dict[str, int] = {}
    for lag in lags:
        behind[lag.consumer] = behind.get(lag.consumer, 0) + lag.unread
    unread = [f"{consumer} has {count} events to read" for consumer, count in behind.items() if count]
    waiting, age = sum(behind.values()), max((lag.seconds for lag in lags if lag.unread), default=0.0)
    facts = {"waiting": waiting, "seconds": age, "lag": behind}
    return _behind("log", ", ".join(unread), waiting, age, late, facts)


def _outbox(url: str) -> tuple[int, float]:
    """How many events wait in an outbox, and for how many seconds the oldest has."""
    connection = psycopg2.connect(url, connect_timeout=5)
    try:
        with connection.cursor() as cur:
            cur.execute(
                "SELECT count(*), coalesce(extract(epoch FROM now() - min(occurred_at)"
                " FILTER (WHERE NOT replay)), 0) FROM outbox"
            )
            row = cur.fetchone()
            return (int(row[0]), float(row[1])) if row else (0, 0.0)
    finally:
        connection.close()
