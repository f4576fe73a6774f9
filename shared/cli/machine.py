"""`hearback up`, `down`, `status`, `logs`, `doctor`: the installation on this machine."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from shared.cli import show
from shared.cli.owner import become_owner
from shared.embedded import readiness
from shared.embedded.doctor import examine
from shared.embedded.installation import Installation, Started
from shared.embedded.readiness import LATE, Part
from shared.settings import home_folder, load


@click.command()
def up() -> None:
    """Start everything, and return when every part is ready."""
    home = home_folder()
    become_owner(home)
    steps = show.Steps()
    started = Installation(home).up(steps)
    _welcome(steps.console, started)
    if started.refused:
        raise click.ClickException(
            f"Everything runs, but messages wait: {'; '.join(started.refused)}. "
            "Mend that, then run `hearback up` again."
        )


def _welcome(console: Console, started: Started) -> None:
    settings = started.settings
    rows = [("Hearback", settings.public_url)]
    if started.admin:
        login, password = started.admin
        rows += [("Log in as", login), ("one-time password", f"{password}  (shown this once)")]
    if settings.uses_mailbox:
        rows.append(("Mailbox", f"{settings.mailbox_url}/mailbox/"))
    console.print()
    for name, value in rows:
        console.print(f"  [dim]{name:>17}[/dim]  [bold]{escape(value)}[/bold]")
    console.print()


@click.command()
def down() -> None:
    """Stop everything, in order."""
    home = home_folder()
    if not home.exists():
        click.echo(f"Nothing runs: {home} is not there.")
        return
    become_owner(home)
    steps = show.Steps()
    steps.note("Everything is stopped." if Installation(home).down(steps) else "Nothing was running.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def status(as_json: bool) -> None:
    """What runs, and whether it is ready."""
    installation = Installation(home_folder())
    parts = list(_parts(installation))
    if as_json:
        body = [{"name": part.name, "ok": part.ok, "problem": part.problem, **part.facts} for part in parts]
        click.echo(json.dumps({"ready": all(part.ok for part in parts), "parts": body}, default=str))
    else:
        _lines(parts)
    sys.exit(0 if all(part.ok for part in parts) else 1)


def _parts(installation: Installation) -> list[Part]:
    keeper = readiness.manager(installation.supervisor)
    if not keeper.ok and not keeper.facts:
        return [Part("hearback", "not running: start it with `hearback up`")]
    settings = load()
    # What it kept may go on without it: then it is the answers of each that tell.
    found = readiness.programs(installation.supervisor, installation.names()) if keeper.ok else [keeper]
    now = time.time()
    for part in found:
        if part.ok:
            part.facts["said"] = f"process {part.facts['pid']}, up {_span(now - part.facts['since'])}"
    if not (room := readiness.disk(installation.home, readiness.FULL)).ok:
        found.insert(0, room)  # which explains the rest
    ready = (*readiness.web(settings), *readiness.workers(settings, installation.supervisor))
    for part in ready:
        part.facts["said"] = "ready"
    behind = readiness.replicas(settings, late=LATE)
    for part in behind:
        part.facts.setdefault("said", "nothing waits")
    return [*found, *ready, *behind]


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _lines(parts: list[Part]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(part.name) for part in parts)
    for part in parts:
        show.line(console, part, width=width)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def doctor(as_json: bool) -> None:
    """Check each part, and say in one line what is wrong with it."""
    home = home_folder()
    if home.exists():
        become_owner(home)
    parts = list(examine(Installation(home)))
    if as_json:
        body = [{"name": part.name, "ok": part.ok, "problem": part.problem, **part.facts} for part in parts]
        click.echo(json.dumps({"ok": all(part.ok for part in parts), "parts": body}))
    else:
        _lines(parts)
    wrong = sum(not part.ok for part in parts)
    if wrong and not as_json:
        click.echo(f"{wrong} of {len(parts)} checks failed.")
    sys.exit(1 if wrong else 0)


@click.command()
@click.argument("parts", nargs=-1)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("-n", "--lines", default=20, show_default=True, type=click.IntRange(0), help="Of each part.")
def logs(parts: tuple[str, ...], follow: bool, lines: int) -> None:
    """The last log lines of all parts, or of PARTS (web, survey-worker, postgres, …)."""
    folder = home_folder() / "log"
    names = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if not names:
        raise click.ClickException(f"There are no logs in {folder} yet: start with `hearback up`.")
    unknown = [part for part in parts if part not in names]
    if unknown:
        raise click.ClickException(f"There is no log of {unknown[0]}; there are: {', '.join(names)}.")
    tails = [_Tail(name, path) for name, path in names.items() if not parts or name in parts]
    width = max(len(tail.name) for tail in tails)
    for tail in tails:
        for text in tail.last(lines):
            click.echo(f"{tail.name.ljust(width)} | {text}")
    while follow:
        sys.stdout.flush()
        time.sleep(0.3)
        for tail in tails:
            for text in tail.new():
                click.echo(f"{tail.name.ljust(width)} | {text}")


class _Tail:
    """A log file that grows, and is now and then moved away and begun anew."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.position, self.inode = 0, 0

    def last(self, count: int) -> list[str]:
        """The last `count` lines there are; `new` goes on from here."""
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 400 * max(count, 1) - 4096))
            lines = file.read().decode(errors="replace").splitlines()
            self.position, self.inode = file.tell(), os.fstat(file.fileno()).st_ino
        return lines[-count:] if count else []

    def new(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self.inode or found.st_size < self.position:
                    self.position, self.inode = 0, found.st_ino
                file.seek(self.position)
                data = file.read()
        except OSError:
            return []
        whole = data[: data.rfind(b"\n") + 1]  # the rest of a line comes later
        self.position += len(whole)
        return whole.decode(errors="replace").splitlines()


commands: list[click.Command] = [up, down, status, logs, doctor]
