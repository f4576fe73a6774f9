"""The terminal's part of survey: importing customers, and the company's settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from marshmallow import ValidationError

from services.survey.cli_ask import ask_command
from shared.clock import SystemClock
from shared.db import Database
from shared.errors import HearbackError, Invalid
from shared.ids import SystemIds
from shared.settings import Settings, load


@contextmanager
def opened() -> Iterator[tuple[Settings, Database]]:
    """The settings and survey's database, closed at the end."""
    settings = load(databases=["survey"])
    db = Database(
        settings.database_urls["survey"], SystemClock(), SystemIds(), name="survey-cli", pool_size=2
    )
    try:
        yield settings, db
    finally:
        db.close()


class ImportFailed(HearbackError):
    """The file was not imported to its end; the message says why."""

    slug = "import-failed"


@click.group("import")
def import_group() -> None:
    """Bring data in from files."""


@import_group.command("customers")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.option("--region", metavar="CC", help="Country of phone numbers without a country code, like DE.")
@click.option(
    "--errors",
    "errors_to",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write all bad lines to this CSV file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def import_customers(file: Path, region: str | None, errors_to: Path | None, as_json: bool) -> int:
    """Import customers from a CSV FILE; its first line names the columns.

    Good lines are kept, bad ones are reported with their line, column and reason. The same file again
    changes nothing. The exit code is 0 when every line was taken, 1 when some were not.
    """
    from services.survey import uploads
    from services.survey.terminal import run_import

    with opened() as (settings, db):
        region = uploads.checked_region(region)
        run, errors = run_import(settings, db, file, region, quiet=as_json)
        if errors_to is not None:
            _write_errors(errors_to, db, run["id"])
        _report(run, errors, as_json)
    if run["state"] in ("failed", "stopped"):
        raise ImportFailed(run["message"] or "The import was stopped. What is in stays in.")
    return 1 if run["failed"] else 0


def _write_errors(path: Path, db: Database, run_id: str) -> None:
    import csv

    from services.survey.queries import imports

    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(("line", "column", "reason"))
        cursor = None
        while True:
            with db.transaction() as tx:
                rows, cursor = imports.errors(tx, run_id, cursor, 1_000)
            writer.writerows((row["line"], row["column_name"] or "", row["reason"]) for row in rows)
            if cursor is None:
                return


def _report(run: dict[str, Any], errors: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        from services.survey.schemas import ImportRun

        click.echo(json.dumps(ImportRun().dump({**run, "errors": errors}), ensure_ascii=False))
        return
    click.echo(
        f"{run['created']:,} new, {run['updated']:,} changed, {run['unchanged']:,} as before,"
        f" {run['failed']:,} left out"
        f" ({run['rows']:,} lines read as {run['encoding']})."
    )
    if run["unknown_managers"]:
        names = ", ".join(run["unknown_managers"][:10])
        more = len(run["unknown_managers"]) - 10
        click.echo(f"Account managers without a login: {names}{f' and {more} more' if more > 0 else ''}.")
    for error in errors[:20]:
        column = f", {error['column_name']}" if error["column_name"] else ""
        click.echo(f"  line {error['line']}{column}: {error['reason']}")
    if run["failed"] > 20:
        click.echo(f"  … and {run['failed'] - 20:,} more; --errors FILE writes them all.")


@click.group("config", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def config_group(ctx: click.Context, as_json: bool) -> None:
    """Show or change the company's settings (no arguments: show all)."""
    if ctx.invoked_subcommand is not None:
        return
    with opened() as (_, db):
        values = _settings(db)
    if as_json:
        click.echo(json.dumps(values, ensure_ascii=False))
        return
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {_said(name, value)}")


@config_group.command("get")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config_get(name: str, as_json: bool) -> None:
    """Print one setting."""
    with opened() as (_, db):
        values = _settings(db)
    if name not in values:
        raise Invalid(f"There is no setting {name!r}. There are: {', '.join(values)}.")
    click.echo(json.dumps(values[name], ensure_ascii=False) if as_json else _said(name, values[name]))


@config_group.command("set")
@click.argument("name")
@click.argument("value")
def config_set(name: str, value: str) -> None:
    """Change one setting; checked as on the settings page.

    Business hours are written like "mon-fri 09:00-17:00, sat 10:00-14:00"; an empty value for
    fallback_owner takes it away.
    """
    from services.survey import schemas
    from services.survey.commands import company
    from shared.web.problems import flatten

    with opened() as (_, db):
        known = _settings(db)
        if name not in known:
            raise Invalid(f"There is no setting {name!r}. There are: {', '.join(known)}.")
        try:
            changes = schemas.Company(partial=True).load({name: value})
            with db.transaction() as tx:
                row = company.change(tx, changes)
        except ValidationError as error:
            raise Invalid(" ".join(flatten(error.messages).values())) from None
        except Invalid as error:
            raise Invalid(" ".join((error.message, *error.fields.values()))) from None
    click.echo(f"{name}  {_said(name, row[name])}")


def _settings(db: Database) -> dict[str, Any]:
    from services.survey.queries.company import FIELDS, company

    with db.transaction() as tx:
        row = company(tx)
    return {name: row[name] for name in FIELDS}


def _said(name: str, value: Any) -> str:
    from services.survey.domain import hours

    if name == "business_hours":
        return hours.text(value)
    return "" if value is None else str(value).replace("\n", " · ")


commands: list[click.Command] = [import_group, config_group, ask_command]
