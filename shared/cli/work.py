"""`hearback run`, `migrate`, `rebuild`: the work of single services, wherever their databases are."""

from __future__ import annotations

import importlib
import signal
import threading
import time
from typing import Any

import click
import structlog

from shared import telemetry
from shared.cli import show
from shared.cli.owner import become_owner
from shared.clock import SystemClock
from shared.db import Database, is_transient
from shared.embedded import processes, readiness
from shared.embedded.app import MAILBOX
from shared.events.catalog import TOPICS
from shared.events.workers import brief
from shared.ids import SystemIds
from shared.log import in_use
from shared.migrate import head, version
from shared.migrate import migrate as migrate_database
from shared.roles import ROLES, RoleContext, Worker, load_roles
from shared.settings import DATABASES, SERVICES, Settings, home_folder, load

_SERVICE = click.Choice(SERVICES)
_log = structlog.get_logger("hearback.roles")


@click.command()
@click.argument("service", type=click.Choice((*SERVICES, MAILBOX)))
@click.argument("roles", nargs=-1, type=click.Choice(("web", *ROLES)), metavar="[ROLE]…")
def run(service: str, roles: tuple[str, ...]) -> None:
    """Run ROLES of SERVICE in the foreground: web, or any of relay, consumer, sender, clock.

    Without a role all but web. SIGTERM ends it when what it is at is done. The mailbox, the stand-in for
    providers of mail and SMS, is served by `run mailbox web`.
    """
    become_owner(home_folder())
    if "web" in roles:
        if len(roles) > 1:
            raise click.UsageError("web runs in processes of its own; start the other roles beside it.")
        from shared.embedded.web import serve

        serve([service], name=f"{service}-web")
        return
    if service == MAILBOX:
        raise click.UsageError("The mailbox has one role: web.")
    settings = load(databases=[service])
    if settings.log != "kafka":
        settings.database_urls["log"]  # it is where the embedded log is, and missing it is said now
    telemetry.set_up(f"{service}-worker")
    known = load_roles(service)
    missing = [role for role in roles if role not in known]
    if missing:
        raise click.UsageError(f"{service} has no {missing[0]}; it has: {', '.join(known)}.")
    wanted = [role for role in known if not roles or role in roles]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    context = RoleContext(settings, service, SystemClock(), SystemIds(), database(settings, service))
    if not _tables_are_there(context, stop):
        return
    name = service if not roles else "-".join([service, *wanted])
    with processes.pid_file(settings.home, f"worker-{name}"):
        Worker(context, {role: known[role](context) for role in wanted}, name).run(stop)


def _tables_are_there(context: RoleContext, stop: threading.Event) -> bool:
    """Waits until the database answers with the tables that this program needs; False when told to stop.

    Raises `WrongLog` when events are on another log than the settings name.
    """
    service, said = context.service, ""
    while not stop.is_set():
        try:
            found = version(service, context.settings.database_urls[service])
            if found == head(service):
                in_use.require(context.db, context.settings)
                return True
            waits_for = f"its tables are at version {found or 'none'}, and {head(service)} is needed"
        except Exception as error:
            if not is_transient(error):
                raise
            waits_for = brief(error)
        if waits_for != said:
            _log.warning("waiting for the database", reason=waits_for)
            said = waits_for
        stop.wait(0.5)
    return False


def database(settings: Settings, service: str) -> Database:
    """The database of a service, named after it in PostgreSQL's own views."""
    return Database(settings.database_urls[service], SystemClock(), SystemIds(), name=f"{service}-worker")


@click.command()
def migrate() -> None:
    """Bring the tables of all databases to the version this program needs."""
    settings = load()
    for name in DATABASES:
        changed = migrate_database(name, settings.database_urls[name])
        click.echo(f"{name}: {'migrated' if changed else 'up to date'}")
    in_use.open_in_use(settings).ensure_topics()


@click.command()
@click.argument("service", type=_SERVICE)
@click.option("--wait/--no-wait", default=True, help="Return when everything has arrived.", show_default=True)
def rebuild(service: str, wait: bool) -> None:
    """Empty what SERVICE took from the log, and have the owners tell it again.

    Nothing that SERVICE owns is touched, nobody is written to, no task is opened.
    """
    settings = load()
    steps = show.Steps()
    topics = consumed(settings, service)
    with steps.step(f"Emptying the replicas of {service}"):
        db = database(settings, service)
        try:
            with db.transaction() as tx:
                _rebuild(service).clear(tx)
        finally:
            db.close()
    for owner in SERVICES:
        theirs = [topic for topic in topics if TOPICS[topic].publisher == owner]
        if theirs:
            with steps.step(f"Having {owner} tell {', '.join(theirs)} again"):
                db = database(settings, owner)
                try:
                    _rebuild(owner).republish(db, theirs)
                finally:
                    db.close()
    if wait:
        _arrive(settings, steps)


def consumed(settings: Settings, service: str) -> list[str]:
    """The topics that the consumer of `service` reads."""
    context = RoleContext(settings, service, SystemClock(), SystemIds(), database(settings, service))
    consumer: Any = load_roles(service)["consumer"](context)
    return list(consumer.topics)


def _arrive(settings: Settings, steps: show.Steps) -> None:
    """Waits while events still arrive; says so when nobody moves them."""
    with steps.step("Waiting until everything has arrived") as told:
        best, since = -1, time.monotonic()
        while left := [part for part in readiness.replicas(settings) if not part.ok]:
            waiting = sum(int(part.facts.get("waiting", 1)) for part in left)
            if waiting < best or best < 0:
                best, since = waiting, time.monotonic()
            if time.monotonic() - since > 60:
                raise click.ClickException(
                    f"{waiting} events wait and nobody moves them: see `hearback status`. "
                    "Everything is published; it arrives when relay and consumer run."
                )
            told(f"{waiting} events to go")
            time.sleep(0.2)


def _rebuild(service: str) -> Any:
    return importlib.import_module(f"services.{service}.rebuild")


commands: list[click.Command] = [run, migrate, rebuild]
