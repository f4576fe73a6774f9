"""`hearback demo`: fills a new installation with made-up accounts and three months of history."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

from shared import telemetry
from shared.cli import show
from shared.cli.owner import become_owner
from shared.clock import SystemClock
from shared.db import Database
from shared.demo import play, stage
from shared.embedded.installation import Installation
from shared.embedded.supervisor import WEB, WORKERS
from shared.errors import Conflict
from shared.ids import SystemIds
from shared.settings import Settings, home_folder, load


@click.command()
def demo() -> None:
    """Fill this installation with made-up customers and three months of history.

    Only where nobody has been imported yet. Takes a few minutes; the messages are in the mailbox.
    """
    home = home_folder()
    become_owner(home)
    settings = load()
    if (settings.mail, settings.sms) != ("mailbox", "mailbox"):
        raise Conflict("Made-up customers are only written to where the mailbox is the provider.")
    _refuse_unless_new(settings)
    telemetry.set_up("demo", level=logging.ERROR)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would set a lower level of its own
    steps = show.Steps()
    now = SystemClock().now()
    with _quiet(Installation(home), steps):
        begins = play.begins(now)
        with (
            steps.step(f"Playing what happened since {begins:%d %B}") as told,
            stage.set_up(settings, begins) as played,
        ):
            play.History(played, now, told).play()
    steps.note(f"There is something to see on each page: {settings.public_url}")


def _refuse_unless_new(settings: Settings) -> None:
    database = Database(settings.database_urls["survey"], SystemClock(), SystemIds(), name="hearback-demo")
    try:
        with database.transaction() as tx:
            if tx.one("SELECT 1 FROM customer WHERE NOT properties ? 'test_recipient' LIMIT 1"):
                raise Conflict(
                    "This installation has customers already, and made-up ones would mix with them. "
                    "Use an empty one: HEARBACK_HOME=./var-demo HEARBACK_PORT=8090 make demo."
                )
    finally:
        database.close()


@contextmanager
def _quiet(installation: Installation, steps: show.Steps) -> Iterator[None]:
    """Stops workers and web meanwhile: they would date what happened then by today's clock."""
    if not installation.supervisor.alive():
        raise Conflict("Nothing runs here. Start it first: make up.")
    with steps.step("Stopping web and workers meanwhile"):
        for name in (WEB, *WORKERS):
            installation.supervisor.stop_program(name)
    try:
        yield
    finally:
        with steps.step("Starting them again"):
            for name in (*WORKERS, WEB):
                installation.supervisor.start_program(name)


commands: list[click.Command] = [demo]
