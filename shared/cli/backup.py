"""`hearback backup` and `restore`: the installation on this machine kept in a folder, and taken from it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from shared.channels import ledger
from shared.cli import show
from shared.cli.owner import become_owner
from shared.cli.work import arrive, consumed, database, fill_again, rebuilding
from shared.embedded import backup as backups
from shared.embedded import restore as restoring
from shared.embedded.restore import Restored
from shared.events.catalog import TOPICS
from shared.migrate import has_ledger
from shared.settings import SERVICES, Settings, home_folder, load

_FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER, metavar="DIR")
def backup(folder: Path) -> None:
    """Back everything up into the new folder DIR, while everything runs.

    All databases at one point, and the secret. The copy is started and read back before this ends; what is
    in DIR is whole. It holds all that was acknowledged before this began.
    """
    target = folder.expanduser().absolute()
    made = backups.make(load(), target, show.Steps())
    click.echo(f"Backed up into {target}: all until {made.began_at}, {made.answers} answers.")


@click.command()
@click.argument("folder", type=_FOLDER, metavar="DIR")
@click.option(
    "--replace", is_flag=True, help="Although there is data: moves it aside (with --only: drops it)."
)
@click.option(
    "--only", "service", type=click.Choice(SERVICES), help="One service's database, while all runs."
)
def restore(folder: Path, replace: bool, service: str | None) -> None:
    """Make the data folder what it was when DIR was backed up; `hearback up` goes on from there.

    Messages that were due by then may have been sent since: they are listed as uncertain, and a person may
    send one again. Of what came after the backup nothing is known: answers, opt-outs and erasures neither.
    """
    home, source = home_folder(), folder.expanduser().absolute()
    become_owner(home)
    steps = show.Steps()
    if service:
        _one(source, service, replace, steps)
        return
    done = restoring.everything(home, source, steps, replace=replace)
    _tell(done, steps)
    if done.aside:
        steps.note(f"What was there before is in {done.aside}; no erasure reaches it: delete it in the end.")
    click.echo(f"Restored what was there at {done.backup.began_at}. Go on with `hearback up`.")


@click.command()
def restored() -> None:
    """Say that databases were put back by their server's own programs, before any sender starts.

    Messages that were due by now may have been sent since the backup: they become uncertain, so that
    nothing sends them again by itself. `restore` does this by itself.
    """
    owners = [service for service in SERVICES if has_ledger(service)]
    settings = load(databases=owners)
    for service in owners:
        with closing(database(settings, service)) as db, db.transaction() as tx:
            count = ledger.restored(tx)
        click.echo(f"{service}: {count} messages may have been sent since")


def _one(source: Path, service: str, replace: bool, steps: show.Steps) -> None:
    if not replace:
        raise click.ClickException(
            f"The present database of {service} would be dropped: back it up first, then add --replace."
        )
    settings = load()
    done = restoring.one_service(settings, source, service, steps)
    _tell(done, steps)
    if done.gap:
        steps.note("The log no longer has all that came since: its replicas are filled from the owners.")
    # What came of the life that was taken back is read before its replicas are filled anew.
    arrive(settings, steps)
    if service == "survey":
        with steps.step("Erasing again who was erased since"):
            _erase_again(settings)
    for other in SERVICES:
        if done.gap if other == service else _hears(other, service):
            fill_again(settings, other, steps)
    arrive(settings, steps)
    click.echo(f"Restored {service} to {done.backup.began_at}; it has heard what came since.")


def _erase_again(settings: Settings) -> None:
    """Who asked to be erased after the backup is still known, by an id alone, to whoever heard of it."""
    with closing(database(settings, "survey")) as survey:
        for other in ("followup", "reporting"):
            with closing(database(settings, other)) as heard:
                rebuilding("survey").erase_again(survey, heard, settings)


def _hears(other: str, service: str) -> bool:
    """Whether a service keeps replicas of what another one owns."""
    return any(TOPICS[topic].publisher == service for topic in consumed(load(), other))


def _tell(done: Restored, steps: show.Steps) -> None:
    if done.uncertain:
        steps.note(
            f"{done.uncertain} messages were due then and may have been sent since: they are uncertain, and "
            "nothing sends them again by itself."
        )


commands: list[click.Command] = [backup, restore, restored]
