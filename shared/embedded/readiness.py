"""Whether each running part can do its own work, and what is wrong with it when not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import urllib3

from shared.embedded.supervisor import WEB, Supervisor
from shared.log import open_log
from shared.roles import read_report
from shared.settings import SERVICES, Settings


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
    """Each service's other roles, by what their process reports of them."""
    states = supervisor.states()
    return [_worker(settings, service, states) for service in SERVICES]


def _worker(settings: Settings, service: str, states: dict[str, dict[str, Any]]) -> Part:
    name = f"{service} worker"
    report = read_report(settings.home, service)
    pid = states.get(f"{service}-worker", {}).get("pid")
    if report is None or report.get("pid") != pid:
        return Part(name, "does not report")
    roles: dict[str, Any] = report["roles"]
    wrong = [f"{role}: {how['error'] or 'not ready yet'}" for role, how in roles.items() if not how["ready"]]
    return Part(name, "; ".join(wrong), {"pid": pid, "roles": roles})


def mailbox(settings: Settings) -> Part:
    """The local stand-in for the providers of mail and SMS."""
    pool = urllib3.PoolManager(retries=False, timeout=3.0)
    try:
        status = pool.request("GET", f"{settings.mailbox_url}/mailbox/api/messages?limit=1").status
        return Part("mailbox", "" if status == 200 else f"answers {status}")
    except urllib3.exceptions.HTTPError:
        return Part("mailbox", f"does not answer on {settings.mailbox_url}")
    finally:
        pool.clear()


def replicas(settings: Settings) -> list[Part]:
    """Whether what each service published has reached the others: no outbox and no consumer is behind."""
    found = []
    for service in SERVICES:
        name = f"{service} outbox"
        try:
            waiting = _outbox(settings.database_urls[service])
        except psycopg2.Error as error:
            found.append(Part(name, f"cannot be read: {type(error).__name__}"))
            continue
        said = f"{waiting} events wait to be published" if waiting else ""
        found.append(Part(name, said, {"waiting": waiting}))
    return [*found, _log(settings)]


def _log(settings: Settings) -> Part:
    log = open_log(settings)
    try:
        lags = log.lag()
    except Exception as error:  # whatever the adapter raises, the log is what is wrong
        return Part("log", f"cannot be read: {type(error).__name__}")
    finally:
        log.close()
    behind: dict[str, int] = {}
    for lag in lags:
        behind[lag.consumer] = behind.get(lag.consumer, 0) + lag.unread
    late = [f"{consumer} has {unread} events to read" for consumer, unread in behind.items() if unread]
    return Part("log", ", ".join(late), {"waiting": sum(behind.values()), "lag": behind})


def _outbox(url: str) -> int:
    connection = psycopg2.connect(url, connect_timeout=5)
    try:
        with connection.cursor() as cur:
            cur.execute("SELECT count(*) FROM outbox")
            row = cur.fetchone()
            return int(row[0]) if row else 0
    finally:
        connection.close()
