"""The terminal's `ask`: whom, why not the others, and progress while it works."""

from __future__ import annotations

import getpass
import json
from typing import Any

import click

from shared.db import Database, Row, Tx
from shared.errors import Invalid, NotFound


@click.command("ask")
@click.argument("program")
@click.option("--all", "everybody", is_flag=True, help="Everybody who may be asked.")
@click.option(
    "--customer", "customers", multiple=True, metavar="ID", help="An id or external id; may be repeated."
)
@click.option("--account", metavar="NAME", help="The customers of one account.")
@click.option("--touchpoint", metavar="NAME", help="Customers at this touchpoint.")
@click.option("--property", "property_", metavar="NAME=VALUE", help="Customers with this property.")
@click.option("--at", metavar="TOUCHPOINT", help="Record this touchpoint instead of the customer's own.")
@click.option("--channel", type=click.Choice(["email", "sms"]), help="Only this channel.")
@click.option("--dry-run", is_flag=True, help="Only count; ask nobody.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def ask_command(
    program: str,
    everybody: bool,
    customers: tuple[str, ...],
    account: str | None,
    touchpoint: str | None,
    property_: str | None,
    at: str | None,
    channel: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask customers with PROGRAM (its name or id); say whom: --all, --customer, or a filter.

    The messages are queued; the sender hands them over. Stopping with Ctrl-C ends the ask, who was
    asked by then stays asked.
    """
    from services.survey.cli import opened
    from services.survey.queries import programs as queries

    audience: dict[str, Any] = {
        "all": everybody,
        "customers": list(customers),
        "account": account,
        "touchpoint": touchpoint,
        "property": _property(property_),
    }
    with opened() as (_, db):
        with db.transaction() as tx:
            row = _program(tx, program)
            if dry_run:
                found = queries.reach(tx, row, audience, touchpoint=at, channel=channel, limit=10_000_000)
        if dry_run:
            result = {"total": found.total, "asked": found.asked, "channels": dict(found.channels)}
            _print(result | {"reasons": dict(found.reasons)}, as_json, "would be asked")
            return
        _print(_run(db, str(row["id"]), audience, at, channel, quiet=as_json), as_json, "asked")


def _run(
    db: Database,
    program_id: str,
    audience: dict[str, Any],
    at: str | None,
    channel: str | None,
    *,
    quiet: bool,
) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from services.survey.commands import ask
    from services.survey.queries import programs as queries

    with db.transaction() as tx:
        run = ask.start(
            tx, program_id, audience, f"{getpass.getuser()} (terminal)", touchpoint=at, channel=channel
        )
    columns = (TextColumn("Asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("Asking", total=run["total"])
        try:
            while run["state"] == "running":
                with db.transaction() as tx:
                    run = ask.step(tx, str(run["id"]))
                progress.update(bar, completed=run["asked"] + run["skipped"], total=run["total"])
        except KeyboardInterrupt:
            with db.transaction() as tx:
                ask.stop(tx, str(run["id"]))
            raise
    with db.transaction() as tx:
        found = queries.run(tx, str(run["id"]))
    return {
        "id": found["id"],
        "state": found["state"],
        "total": found["total"],
        "asked": found["asked"],
        "reasons": {row["reason"]: row["count"] for row in found["reasons"]},
    }


def _program(tx: Tx, program: str) -> Row:
    """The program of this name or id. Raises `NotFound`, naming those there are."""
    from services.survey.queries import programs as queries

    try:
        return queries.program(tx, program)
    except NotFound as error:
        names = ", ".join(row["name"] for row in queries.programs(tx))
        raise NotFound(f"There is no program '{program}'. There are: {names}.") from error


def _property(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise Invalid("Write a property as NAME=VALUE.")
    return {"name": name.strip(), "value": value.strip()}


def _print(result: dict[str, Any], as_json: bool, verb: str) -> None:
    from services.survey.queries.programs import REASONS

    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{result['asked']:,} of {result['total']:,} customers {verb}.")
    for reason, count in sorted(result["reasons"].items(), key=lambda item: -item[1]):
        click.echo(f"  {count:,} not: {REASONS.get(reason, reason)}")
