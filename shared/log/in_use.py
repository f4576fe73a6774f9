"""Which log an installation's events are on: a row in each service's database says it, a move changes it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg2

from shared.clock import Clock, SystemClock
from shared.db import Database, Tx
from shared.errors import HearbackError
from shared.ids import SystemIds
from shared.log import Lag, Log, open_log
from shared.settings import SERVICES, Settings

NAMES: Mapping[str, str] = {"embedded": "the embedded log", "kafka": "Kafka"}


class WrongLog(HearbackError):
    """Events are on another log than was asked for; to leave them there would lose them."""

    slug = "wrong-log"


@dataclass(frozen=True, slots=True)
class InUse:
    """A service's log. While events are `moving_to` another one, its relay stands still."""

    log: str
    moving_to: str | None = None


def read(tx: Tx) -> InUse | None:
    """What the database says, or None before the first start."""
    row = tx.one("SELECT log, moving_to FROM log_in_use")
    return InUse(row["log"], row["moving_to"]) if row else None


def begin(db: Database, chosen: str | None) -> InUse:
    """The service's log; the first start decides, by what was `chosen` (None: the embedded one)."""
    log = chosen or "embedded"
    with db.transaction() as tx:
        tx.execute("INSERT INTO log_in_use (log) VALUES (%s) ON CONFLICT DO NOTHING", (log,))
        return read(tx) or InUse(log)


def require(db: Database, settings: Settings) -> None:
    """For a role that is about to start: raises `WrongLog` when its settings name another log than in use."""
    with db.transaction() as tx:
        found = read(tx)
    if found is not None and settings.log is not None and settings.log != found.log:
        raise WrongLog(refusal(settings, found.log, settings.log))


def refusal(settings: Settings, present: str, wanted: str) -> str:
    """A sentence on why nothing starts on the log `wanted`, with what is unread on the `present` one."""
    return (
        f"HEARBACK_LOG is {wanted}, but events are on {NAMES[present]}{_unread(settings, present)}. "
        f"Start with HEARBACK_LOG={present} (or without it), and move them: hearback log move --to {wanted}."
    )


def _unread(settings: Settings, name: str) -> str:
    try:
        log = open_log(settings, name=name)
    except HearbackError as error:
        return f" ({error.message})"
    try:
        behind = unread(log)
    except (HearbackError, psycopg2.Error) as error:
        return f", which does not answer ({type(error).__name__})"
    finally:
        log.close()
    return f", where {said(behind)}" if behind else ""


def unread(log: Log) -> dict[str, int]:
    """How many events each service has still to read, of those that have any."""
    lags = {(lag.consumer, lag.topic): lag.unread for lag in log.lag()}
    # Who has never read a topic has all of it before them.
    whole = {topic.name: topic.records for topic in log.topics()}
    found = {}
    for service in SERVICES:
        topics = importlib.import_module(f"services.{service}.handlers").TOPICS
        found[service] = sum(lags.get((service, topic), whole.get(topic, 0)) for topic in topics)
    return {service: count for service, count in found.items() if count}


def said(behind: Mapping[str, int]) -> str:
    """What `unread` found, in words."""
    return " and ".join(f"{service} has {count} to read" for service, count in sorted(behind.items()))


class Following:
    """The log in use, for whoever only looks: asked for anew each time, opened again when it has changed."""

    def __init__(self, settings: Settings, db: Database, clock: Clock) -> None:
        self.settings = settings
        self.db = db
        self.clock = clock
        self._name = ""
        self._log: Log | None = None

    def log(self) -> Log:
        """The log. Raises what the database or the settings have against it."""
        with self.db.transaction() as tx:
            found = read(tx)
        name = found.log if found else self.settings.log or "embedded"
        if self._log is None or name != self._name:
            self.close()
            self._log, self._name = open_log(self.settings, self.clock, name=name), name
        return self._log

    def lag(self) -> list[Lag]:
        """How far every consumer is behind on the log in use. Raises like `log`, and what the log raises."""
        return self.log().lag()

    def close(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            log.close()


def open_in_use(settings: Settings, clock: Clock | None = None) -> Log:
    """The log that the installation's events are on, for commands; survey's database says which."""
    db = service_database(settings, SERVICES[0])
    try:
        return Following(settings, db, clock or SystemClock()).log()
    finally:
        db.close()


def service_database(settings: Settings, service: str) -> Database:
    """The database of a service, for a command."""
    return Database(
        settings.database_urls[service], SystemClock(), SystemIds(), name="hearback-log", pool_size=1
    )
