"""`hearback backup` and `restore`: the installation on this machine kept in a folder, and taken from it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from shared.agreement import besides
from shared.channels import ledger
from shared.cli import show
from shared.cli.owner import become_owner
from shared.cli.work import agree, arrive, consumed, database, fill_again, rebuilding
from shared.embedded import backup as backups
from shared.embedded import restore as restoring
from shared.embedded.restore import Restored
from shared.events.catalog import TOPICS
from shared.migrate import has_ledger
from shared.settings import SERVICES, Settings, home_folder, load


class _Folder(click.ParamType[Path]):
    """A folder by its full name; nothing is not the one we are in."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value).strip():
            self.fail("it is empty: name a folder.", param, ctx)
        # What a link leads to: the link would stand in the way of the folder that is made.
        return Path(value).expanduser().resolve()


_FOLDER = _Folder()


@click.command()
@click.argument("folder", type=_FOLDER, metavar="DIR")
def backup(folder: Path) -> None:
    """Back everything up into the new folder DIR, while everything runs.

    All databases at one point, and the secret. The copy is started and read back before this ends; what is
    in DIR is whole. It holds all that was acknowledged before this began.
    """
    made = backups.make(load(), folder, show.Steps())
    click.echo(f"Backed up into {folder}: all until {made.began_at}, {made.answers} answers.")


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
    home = home_folder()
    become_owner(home)
    steps = show.Steps()
    if service:
        _one(folder, service, replace, steps)
        return
    done = restoring.everything(home, folder, steps, replace=replace)
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
        steps.note("The log no longer has all that came since: answers of that time may have no task.")
    # What came of the life that was taken back is read before its replicas are filled anew.
    arrive(settings, steps)
    gone = _gone_since(settings, service)
    if service == "survey":
        with steps.step("Erasing and opting out again who asked for it since"):
            gone += _asked_again(settings)
    # It as well: the log it hears again has what was taken back by an earlier restore, too.
    fill_again(settings, [one for one in SERVICES if one == service or _hears(one, service)], steps)
    arrive(settings, steps)
    click.echo(
        f"Restored {service} to {done.backup.began_at}; it has heard what the others told since.{gone}"
    )
    agree(settings, steps)


def _gone_since(settings: Settings, service: str) -> str:
    """What had come into being in the service itself since the backup, as far as reporting has heard."""
    if service == "reporting":
        return ""
    with closing(database(settings, service)) as owner, closing(database(settings, "reporting")) as heard:
        counts = besides({service: owner, "reporting": heard}, service, "reporting")
    said = " and ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    if not said:
        return f" {service.capitalize()} itself had nothing newer that reporting knew of."
    return (
        f" What {service} had itself since is gone; reporting knew of {said} that were new or had changed. "
        + ("Nobody knows these answers any more." if service == "survey" else "Look at the tasks again.")
    )


def _asked_again(settings: Settings) -> str:
    """Erases and opts out who asked for it after the backup: whoever heard of it still knows that."""
    with (
        closing(database(settings, "survey")) as survey,
        closing(database(settings, "followup")) as followup,
        closing(database(settings, "reporting")) as reporting,
    ):
        ours, theirs = rebuilding("survey"), rebuilding("followup")
        erased = sum(ours.erase_again(survey, heard, settings) for heard in (followup, reporting))
        opted_out = ours.opt_out_again(survey, theirs.opted_out(followup), settings)
    return (
        f" {erased} erasures and {opted_out} opt-outs since were done again. Of what survey had not told "
        "the others yet nothing is known: look before you write to anybody."
    )


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
