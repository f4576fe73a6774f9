"""The `hearback` command: its groups, found by name when they are called for, and its one way of failing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from shared.errors import HearbackError

# Where the commands are: a module's list `commands`, or the one command that is named.
_OURS = ("shared.cli.machine", "shared.cli.backup", "shared.cli.work", "shared.cli.setup")
_OTHERS = (
    "shared.log.cli:log",
    "shared.simulate.cli",
    "shared.demo.cli",
    "services.survey.cli",
    "services.followup.cli",
    "services.reporting.cli",
)

_NO_TABLE = "42P01"  # undefined_table, in PostgreSQL's Appendix A


class Commands(click.Group):
    """Our own commands first; the others' modules are only loaded when none of ours is meant."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for module in (*_OURS, *_OTHERS):
            found = {command.name: command for command in _commands(module)}.get(cmd_name)
            if found is not None:
                return found
        return None

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = [command.name or "" for module in (*_OURS, *_OTHERS) for command in _commands(module)]
        return list(dict.fromkeys(names))


def _commands(place: str) -> Iterator[click.Command]:
    module, _, name = place.partition(":")
    try:
        if importlib.util.find_spec(module) is None:
            return
    except ModuleNotFoundError:
        return
    found = getattr(importlib.import_module(module), name or "commands")
    yield from [found] if isinstance(found, click.Command) else found


@click.command(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="hearback", message="%(version)s")
def cli() -> None:
    """Ask one question. Hear every answer. Let every customer hear back."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs a command. Exit code 0 only when it did what was asked; an error is one sentence on stderr."""
    try:
        result: Any = cli.main(args=arguments, prog_name="hearback", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader (`| head`) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        click.echo(f"Error: {_sentence(error)}", err=True)
        sys.exit(1)


def _sentence(error: Exception) -> str:
    """What to tell about `error`; with HEARBACK_DEBUG set, where it comes from as well."""
    if os.environ.get("HEARBACK_DEBUG"):
        traceback.print_exc()
    from shared.db import lasting  # only now: it takes its time to load

    if said := lasting(error):
        return said
    if isinstance(error, HearbackError):
        return "\n".join([error.message, *(f"  {name}: {wrong}" for name, wrong in error.fields.items())])
    if type(error).__module__.startswith("psycopg2"):
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if getattr(error, "pgcode", None) == _NO_TABLE:
            return (
                f"A table is not there: {said}. If it was never made, `hearback migrate` makes it. If it was "
                "lost: `hearback rebuild reporting` makes reporting's again, and another's come back with "
                "`hearback restore DIR --only SERVICE --replace`."
            )
        return f"The database refused this or does not answer: {said}. `hearback doctor` tells more."
    if isinstance(error, OSError) and error.filename:
        return f"{Path(str(error.filename))}: {error.strerror}."
    return (
        f"This should not have happened: {type(error).__name__}: {error}. "
        "Run it again with HEARBACK_DEBUG=1 to see where."
    )
