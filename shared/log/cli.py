"""`hearback log …`: topics, how far consumers are, what passes by, and what is parked."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from shared.db import Database
from shared.errors import HearbackError, NotFound
from shared.events import asyncapi, parking, workers
from shared.events.catalog import TOPICS
from shared.log import Log, UnknownTopic, in_use, move
from shared.roles import RoleContext, load_roles
from shared.settings import LOGS, SERVICES, Settings, load

_SERVICE = click.argument("consumer", type=click.Choice(SERVICES))
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("log")
def log() -> None:
    """The log: topics, lag, and events that were set aside."""


@log.command("topics")
@_AS_JSON
def topics(as_json: bool) -> None:
    """List the topics and how much they hold."""
    rows = [
        {
            "topic": state.name,
            "key": TOPICS[state.name].key if state.name in TOPICS else "",
            "partitions": state.partitions,
            "compacted": state.compacted,
            "records": state.records,
            "appended": state.appended,
        }
        for state in _log(load(databases=())).topics()
    ]
    _show(rows, as_json, "There are no topics yet: nothing was ever started.")


@log.command("lag")
@click.argument("consumer", required=False)
@_AS_JSON
def lag(consumer: str | None, as_json: bool) -> None:
    """Show how far each consumer (or CONSUMER) is behind."""
    settings = load(databases=SERVICES)
    rows = [
        {
            "consumer": lag.consumer,
            "topic": lag.topic,
            "unread": lag.unread,
            "behind": f"{lag.seconds:.0f} s",
        }
        for lag in _log(settings).lag(consumer)
    ]
    for service in SERVICES if consumer is None else ():
        reason = _stopped(settings, service)
        if reason and not as_json:
            click.echo(f"{service} has stopped: {reason}", err=True)
    _show(rows, as_json, "Nobody reads the log yet.")


@log.command("tail")
@click.argument("topic")
@click.option("-n", "--last", default=10, show_default=True, help="How many records to begin with.")
@click.option("-f", "--follow", is_flag=True, help="Go on with each new record until interrupted.")
@click.option("--values", is_flag=True, help="Show the values, too; they may hold personal data.")
@_AS_JSON
def tail(topic: str, last: int, follow: bool, values: bool, as_json: bool) -> None:
    """Show the last records of TOPIC, oldest first."""
    try:
        for entry in _log(load(databases=())).tail(topic, last, follow=follow):
            line: dict[str, Any] = {
                "partition": entry.partition,
                "offset": entry.offset,
                "at": entry.at,
                "key": entry.key,
                **{name: entry.headers.get(name, "") for name in ("type", "version", "replay")},
            }
            if values:
                line["value"] = _text(entry.value)
            click.echo(_json(line) if as_json else "  ".join(str(_plain(value)) for value in line.values()))
    except UnknownTopic as error:
        raise NotFound(f"There is no topic {topic!r}; `hearback log topics` lists them.") from error


@log.command("parked")
@_AS_JSON
def parked(as_json: bool) -> None:
    """List the keys whose events wait, and why."""
    settings = load(databases=SERVICES)
    rows = []
    for service in SERVICES:
        with _database(settings, service) as db:
            rows += [dataclasses.asdict(key) for key in parking.keys(db)]
    _show(rows, as_json, "Nothing is parked.")


@log.command("show")
@_SERVICE
@click.argument("topic")
@click.argument("key")
@click.option("--values", is_flag=True, help="Show the values, too; they may hold personal data.")
@_AS_JSON
def show(consumer: str, topic: str, key: str, values: bool, as_json: bool) -> None:
    """Show the parked events of one KEY, in their order."""
    with _database(load(databases=[consumer]), consumer) as db:
        events = parking.show(db, consumer, topic, key)
    rows = []
    for event in events:
        row = dataclasses.asdict(event)
        if not as_json:
            row["headers"] = event.headers.get("type", "?")
        row["value"] = _text(event.value)
        if not values:
            del row["value"]
        rows.append(row)
    _show(rows, as_json, "Nothing is parked under that key.")


@log.command("replay")
@_SERVICE
@click.argument("topic", required=False)
@click.argument("key", required=False)
def replay(consumer: str, topic: str | None, key: str | None) -> None:
    """Apply what CONSUMER has parked: all of it, one TOPIC, or one KEY. It may be running."""
    settings = load(databases=[consumer])
    with _database(settings, consumer) as db:
        loop = load_roles(consumer)["consumer"](RoleContext(settings, consumer, db.clock, db.ids, db))
        if not isinstance(loop, workers.ConsumerLoop):
            raise HearbackError(f"The consumer of {consumer} cannot replay.")
        applied = left = 0
        for parked in parking.keys(db, limit=None):
            if topic in (None, parked.topic) and key in (None, parked.key):
                result = parking.replay(db, parked.consumer, parked.topic, parked.key, loop.apply)
                applied += result.applied
                left += result.left
                if result.reason:
                    click.echo(f"{parked.topic} {parked.key}: {result.reason}", err=True)
    click.echo(f"{applied} applied, {left} still parked.")
    if left:
        raise SystemExit(1)


@log.command("discard")
@_SERVICE
@click.argument("topic")
@click.argument("key")
@click.confirmation_option(prompt="Drop these events unapplied, for good?")
def discard(consumer: str, topic: str, key: str) -> None:
    """Drop the parked events of one KEY that can never be applied."""
    with _database(load(databases=[consumer]), consumer) as db:
        click.echo(f"{parking.discard(db, consumer, topic, key)} dropped.")


@log.command("resume")
@_SERVICE
def resume(consumer: str) -> None:
    """Let a CONSUMER that stopped by itself try again."""
    with _database(load(databases=[consumer]), consumer) as db:
        stopped = workers.clear_stop(db, consumer)
    click.echo(f"{consumer} tries again." if stopped else f"{consumer} had not stopped.")


@log.command("move")
@click.option("--to", required=True, type=click.Choice(LOGS), help="The log that events shall be on.")
def move_(to: str) -> None:
    """Move all events to another log: stop relays, drain consumers, switch, publish present state again.

    The web goes on all the time, and running workers follow by themselves. Killed half-way, run it again.
    """
    console = Console(highlight=False, soft_wrap=True)
    said = ""
    with console.status("looking") if console.is_terminal else nullcontext() as status:

        def told(step: str) -> None:
            nonlocal said
            if status is not None:
                status.update(step)
            elif step.partition(":")[0] != said:
                said = step.partition(":")[0]
                console.print(f"· {said}")

        moved = move.move(load(), to, told)
    console.print(
        f"Events are on {in_use.NAMES[to]} now. From the next start on let HEARBACK_LOG say {to}, or nothing."
        + (" All processes need HEARBACK_KAFKA_BOOTSTRAP, also those that run." if to == "kafka" else "")
        if moved
        else f"Events are on {in_use.NAMES[to]} already."
    )


@log.command("asyncapi")
@click.option("-o", "--output", type=click.Path(dir_okay=False, writable=True), help="Write here.")
def asyncapi_(output: str | None) -> None:
    """Write the catalog of events as AsyncAPI."""
    if output is None:
        click.echo(asyncapi.text(), nl=False)
    else:
        Path(output).write_text(asyncapi.text(), encoding="utf-8")


class _database:
    """The database of a service, for one command."""

    def __init__(self, settings: Settings, service: str) -> None:
        self.db = in_use.service_database(settings, service)

    def __enter__(self) -> Database:
        return self.db

    def __exit__(self, *_: object) -> None:
        self.db.close()


def _log(settings: Settings) -> Log:
    return in_use.open_in_use(settings)


def _stopped(settings: Settings, service: str) -> str | None:
    with _database(settings, service) as db:
        return workers.stopped(db, service)


def _show(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
    if as_json:
        click.echo(json.dumps([_jsonable(row) for row in rows], indent=2, ensure_ascii=False))
        return
    if not rows:
        click.echo(nothing)
        return
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        right = isinstance(rows[0][name], int) and not isinstance(rows[0][name], bool)
        table.add_column(name.replace("_", " "), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_plain(value) for value in row.values()))
    # A pipe has no width; nothing is to be folded there.
    Console(width=None if sys.stdout.isatty() else 400).print(table)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}Z"
    return str(value)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _jsonable(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()}


def _json(row: Mapping[str, Any]) -> str:
    return json.dumps(_jsonable(row), ensure_ascii=False)


commands: list[click.Command] = [log]
