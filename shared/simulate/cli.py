"""`hearback simulate FILE`: plays customers from a file of answers; its tally must be equal everywhere."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from shared.cli import show
from shared.clock import SystemClock
from shared.db import Database
from shared.errors import Invalid
from shared.ids import SystemIds
from shared.settings import Settings, load
from shared.simulate import rows
from shared.simulate.http import Client
from shared.simulate.run import cast, play

SCOPES = (
    "customers:read",
    "customers:write",
    "programs:read",
    "programs:write",
    "responses:read",
    "tasks:read",
    "mailbox:read",
    "reports:read",
)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--date-format",
    default=rows.DEFAULT_DATE_FORMAT,
    show_default=True,
    help="How answered_at is written, as for strptime.",
)
@click.option(
    "--sms-share",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Share of customers who are asked by SMS and answer in one text.",
)
@click.option("--seed", default=1, show_default=True, help="Draws who is asked by SMS.")
@click.option(
    "--patience",
    default=60.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds without any progress after which it gives up.",
)
def simulate(file: Path, date_format: str, sms_share: float, seed: int, patience: float) -> None:
    """Play customers from FILE (CSV: answered_at, touchpoint, score, comment) and check every count.

    Imports a customer per row, has them asked, opens each message in the mailbox, clicks as the answer
    page does, and comments. Exit code 0 only when survey, followup and reporting count the same.
    """
    settings = load()
    if (settings.mail, settings.sms) != ("mailbox", "mailbox"):
        raise Invalid(
            "A simulation writes to made-up people: it only runs where the mailbox is the provider."
        )
    run = cast(rows.read(file, date_format, sms_share, seed), patience)
    steps = show.Steps()
    with _key(settings, f"simulation {run.name}") as key:
        client = Client(settings.local_url, {"Authorization": f"Bearer {key}"})
        tally = play(run, client, steps)
    _show(steps, tally)


@contextmanager
def _key(settings: Settings, name: str) -> Iterator[str]:
    """A key for as long as the simulation lasts."""
    keys: Any = importlib.import_module("services.followup.commands.keys")
    database = Database(
        settings.database_urls["followup"], SystemClock(), SystemIds(), name="hearback-simulate"
    )
    try:
        with database.transaction() as tx:
            key_id, secret = keys.create(tx, name=name, scopes=SCOPES, created_by=None)
        try:
            yield secret
        finally:
            with database.transaction() as tx:
                keys.disable(tx, key_id)
    finally:
        database.close()


def _show(steps: show.Steps, tally: Counter[str]) -> None:
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column(justify="right", style="bold")
    table.add_column()
    for name in ("asked", "answered", "detractors", "passives", "promoters", "tasks", "opt-outs"):
        table.add_row(f"{tally[name]:,}", name)
    steps.console.print()
    steps.console.print(table)
    steps.console.print()
    steps.note("Every count is equal in survey, followup and reporting.")


commands: list[click.Command] = [simulate]
