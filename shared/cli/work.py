"""`hearback run`, `migrate`, `rebuild`: the work of single services, wherever their databases are."""

from __future__ import annotations

import importlib
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any

import click
import psycopg2.errors

from shared import presence, telemetry
from shared.agreement import Difference, differences
from shared.cli import show
from shared.cli.owner import become_owner
from shared.clock import SystemClock
from shared.db import Database, is_transient
from shared.embedded import processes, readiness
from shared.embedded.app import MAILBOX
from shared.embedded.home import check_secret, locked
from shared.embedded.installation import make_lost
from shared.embedded.owner import find_owner
from shared.embedded.postgres import Postgres
from shared.errors import HearbackError
from shared.events.catalog import TOPICS
from shared.health_port import health_port
from shared.ids import SystemIds
from shared.log import in_use
from shared.migrate import OldVersionRuns, head, version
from shared.migrate import migrate as migrate_database
from shared.presence import present
from shared.roles import ROLES, RoleContext, Worker, brief, load_roles
from shared.settings import DATABASES, POSTGRES_FILE, SERVICES, Settings, home_folder, load

_SERVICE = click.Choice(SERVICES)


class Outgrown(HearbackError):
    """The tables were taken on to a version that does not serve this process any more."""

    slug = "outgrown"


@click.command()
@click.argument("service", type=click.Choice((*SERVICES, MAILBOX)))
@click.argument("roles", nargs=-1, type=click.Choice(("web", *ROLES)), metavar="[ROLE]…")
def run(service: str, roles: tuple[str, ...]) -> None:
    """Run ROLES of SERVICE in the foreground: web, or any of relay, consumer, sender, clock.

    Without a role all but web. It waits, unready, until the tables are those that it needs. SIGTERM ends it
    when what it is at is done. The mailbox, the stand-in for providers of mail and SMS, is served by
    `run mailbox web`.
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
    _work(settings, service, [role for role in known if not roles or role in roles], whole=not roles)


def _work(settings: Settings, service: str, wanted: list[str], *, whole: bool) -> None:
    """Runs the roles until SIGTERM. Raises `Outgrown` when the tables stopped serving this version."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    refusals: list[str] = []

    def refused(said: str) -> None:
        refusals.append(said)
        stop.set()

    context = RoleContext(settings, service, SystemClock(), SystemIds(), database(settings, service))
    known = load_roles(service)
    name = service if whole else "-".join([service, *wanted])
    worker = Worker(context, {role: known[role](context) for role in wanted}, name)
    with (
        processes.pid_file(settings.home, f"worker-{name}"),
        health_port(settings.host, settings.health_port, worker.alive, worker.as_dict),
        present(f"{service} {' '.join(wanted)}", presence.places(settings, [service]), refused) as here,
    ):
        if worker.wait(lambda: here.refusal(service) or _other_log(context), stop):
            worker.run(stop)
    if refusals:
        raise Outgrown(refusals[0])


def _other_log(context: RoleContext) -> str:
    """Why it cannot be known yet which log is in use. Raises `WrongLog` when it is not the settings' one."""
    try:
        in_use.require(context.db, context.settings)
    except Exception as error:
        if not is_transient(error):
            raise
        return brief(error)
    return ""


def database(settings: Settings, service: str) -> Database:
    """The database of a service, named after it in PostgreSQL's own views."""
    return Database(settings.database_urls[service], SystemClock(), SystemIds(), name=f"{service}-worker")


@click.command()
@click.option(
    "--expand",
    is_flag=True,
    help="Only what the version that runs now can live with; the rest waits for the next `migrate`.",
)
@click.option(
    "--wait",
    default=0.0,
    type=click.FloatRange(0),
    help="Seconds to wait for processes of an older version to end.",
    show_default=True,
)
def migrate(expand: bool, wait: float) -> None:
    """Bring the tables of all databases to the version this program needs.

    What only adds is done at once, under traffic. What takes away something that an older version uses is
    refused while a process of such a version runs (exit code 1).
    """
    settings = load(databases=SERVICES)
    # With Kafka the embedded log's database is needed by the mailbox only.
    names = [name for name in DATABASES if name in settings.database_urls or settings.log != "kafka"]
    changed = [
        name for name in names if migrate_database(name, settings.database_urls[name], expand_only=True)
    ]
    refusals = []
    for name in names:
        url = settings.database_urls[name]
        try:
            if not expand and migrate_database(name, url, wait=wait):
                changed.append(name)
        except OldVersionRuns as error:
            refusals.append(error.message)
        click.echo(f"{name}: {'migrated' if name in changed else 'up to date'}{_left(name, url)}")
    in_use.open_in_use(settings).ensure_topics()
    if refusals:
        raise OldVersionRuns("\n".join(refusals))


def _left(name: str, url: str) -> str:
    """What is still to be done in a database, as the end of a line; empty for nothing."""
    found = version(name, url)
    if found is None or found >= head(name):
        return ""
    return f", at {found}; what takes something away, up to {head(name)}, waits"


@click.command()
@click.argument("service", type=_SERVICE)
@click.option("--wait/--no-wait", default=True, help="Return when everything has arrived.", show_default=True)
def rebuild(service: str, wait: bool) -> None:
    """Empty what SERVICE took from the log, and have the owners tell it again.

    Nothing that SERVICE owns is touched, nobody is written to, no task is opened. On one machine reporting's
    database is made again when it is gone, or lacks tables. In the end what SERVICE has is compared with
    what the owners have.
    """
    settings = load(databases=SERVICES)
    check_secret(settings)
    steps = show.Steps()
    _make_lost(settings, steps)
    try:
        fill_again(settings, [service], steps)
    except psycopg2.errors.UndefinedTable:
        if service != "reporting" or not _make_lost(settings, steps, drop=service):
            raise
        fill_again(settings, [service], steps)
    if wait:
        arrive(settings, steps, [service])
        agree(settings, steps, [service])


def _make_lost(settings: Settings, steps: show.Steps, drop: str = "") -> bool:
    """Makes databases that are gone, when they are this machine's own; returns whether they are.

    One to `drop` is thrown away first.
    """
    if not (settings.home / POSTGRES_FILE).exists():
        return False
    server = Postgres(settings.home, find_owner(settings.home))
    server.load()
    if not server.holds(settings.database_urls):
        return False
    with locked(settings.home, lambda: steps.note("Another `hearback` is at work here; waiting for it.")):
        if drop:
            server.drop_database(drop)
        make_lost(server, settings, steps)
    return True


def fill_again(settings: Settings, services: Sequence[str], steps: show.Steps) -> None:
    """Empties the replicas of services and has the owners publish what they were filled from."""
    topics = {topic for service in services for topic in consumed(settings, service)}
    for service in services:
        with steps.step(f"Emptying the replicas of {service}"), closing(database(settings, service)) as db:
            with db.transaction() as tx:
                tx.execute("SET LOCAL statement_timeout = 0")  # of millions it takes its time
                rebuilding(service).clear(tx)
    for owner in SERVICES:
        theirs = [name for name in TOPICS if name in topics and TOPICS[name].publisher == owner]
        if theirs:
            with steps.step(f"Having {owner} tell {', '.join(theirs)} again"):
                with closing(database(settings, owner)) as db:
                    rebuilding(owner).republish(db, theirs)


def consumed(settings: Settings, service: str) -> list[str]:
    """The topics that the consumer of `service` reads."""
    context = RoleContext(settings, service, SystemClock(), SystemIds(), database(settings, service))
    consumer: Any = load_roles(service)["consumer"](context)
    return list(consumer.topics)


def arrive(settings: Settings, steps: show.Steps, readers: Sequence[str] = SERVICES) -> None:
    """Waits until all that is published by now has reached the `readers`; says so when nobody moves it."""
    with steps.step("Waiting until everything has arrived") as told:
        arrival = readiness.Arrival(settings, readers)
        fewest, newest, since = -1, 0.0, time.monotonic()
        while left := arrival.missing():
            now = time.monotonic()
            waiting = sum(int(part.facts.get("waiting", 1)) for part in left)
            # Under traffic new events may come as fast as others are read: then these are ever later ones.
            oldest = now - max(float(part.facts.get("seconds", now)) for part in left)
            if waiting < fewest or fewest < 0 or oldest > newest + 1:
                fewest, newest, since = waiting, max(oldest, newest), now
            if now - since > 60:
                raise click.ClickException(
                    f"{waiting} events wait and nobody moves them: see `hearback status`. "
                    "Everything is published; it arrives when relay and consumer run."
                )
            told(f"{waiting} events to go")
            time.sleep(0.2)


def agree(settings: Settings, steps: show.Steps, keepers: Sequence[str] = SERVICES) -> None:
    """Compares what services keep of each other with what its owners have. Raises when that differs."""
    if found := disagreements(settings, steps, keepers):
        raise click.ClickException(differ(found))


def disagreements(
    settings: Settings, steps: show.Steps, keepers: Sequence[str] = SERVICES
) -> list[Difference]:
    """What services have otherwise than its owners, though nothing of it is under way."""
    with ExitStack() as stack:
        databases = {name: stack.enter_context(closing(database(settings, name))) for name in SERVICES}
        return differences(databases, keepers, lambda: arrive(settings, steps, keepers))


def differ(found: Sequence[Difference]) -> str:
    """A sentence on what differs, and what to do."""
    commands = " and ".join(
        f"`hearback rebuild {name}`" for name in dict.fromkeys(one.keeper for one in found)
    )
    return f"{'; '.join(map(str, found))}. Run {commands}."


def rebuilding(service: str) -> Any:
    """What a service can tell again and fill again, its module `rebuild`."""
    return importlib.import_module(f"services.{service}.rebuild")


commands: list[click.Command] = [run, migrate, rebuild]
