"""`hearback staff` and `hearback apikey`: logins and keys from the command line, on the database itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import click

from services.followup.commands import keys, staff
from services.followup.domain.roles import ROLES, SCOPES
from services.followup.queries import staff as people
from shared.clock import SystemClock
from shared.db import Database, Tx
from shared.errors import HearbackError
from shared.ids import SystemIds
from shared.settings import load


@click.group("staff")
def staff_group() -> None:
    """People who log in."""


@staff_group.command("add")
@click.argument("email")
@click.option("--name", required=True, help="As colleagues and customers know them.")
@click.option("--role", type=click.Choice(list(ROLES)), default="agent", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(email: str, name: str, role: str, as_json: bool) -> None:
    """Add EMAIL; prints a one-time password, once."""
    with _transaction() as (tx, key):
        staff_id, password = staff.add(tx, key, email=email, name=name, role=role)
    _told(as_json, {"id": staff_id, "email": email, "one_time_password": password})


@staff_group.command("reset")
@click.argument("login")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def reset(login: str, as_json: bool) -> None:
    """Give LOGIN (an e-mail address, or "admin" before the first login) a new one-time password."""
    with _transaction() as (tx, key):
        staff_id = tx.value("SELECT id FROM staff WHERE email = %s", (login.strip().casefold(),))
        if staff_id is None:
            raise click.ClickException(f"Nobody logs in as {login}.")
        password = staff.reset_password(tx, key, staff_id)
    _told(as_json, {"id": staff_id, "email": login, "one_time_password": password})


@staff_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List everybody with a login."""
    with _transaction() as (tx, _):
        rows = [
            {name: row[name] for name in ("id", "email", "name", "role", "disabled")}
            for row in people.people(tx)
        ]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False))
    for row in [] if as_json else rows:
        click.echo(f"{row['email']}  {row['role']}  {row['name']}{'  (disabled)' if row['disabled'] else ''}")


@click.group("apikey")
def apikey_group() -> None:
    """Keys for programs."""


@apikey_group.command("create")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(list(SCOPES)),
    help="May be repeated.",
)
@click.option("--name", default="made on the command line", show_default=True, help="What it is for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(scopes: tuple[str, ...], name: str, as_json: bool) -> None:
    """Make a key with these scopes; prints it, once."""
    with _transaction() as (tx, _):
        key_id, secret = keys.create(tx, name=name, scopes=scopes, created_by=None)
    _told(as_json, {"id": key_id, "scopes": sorted(set(scopes)), "key": secret}, plain=secret)


@contextmanager
def _transaction() -> Iterator[tuple[Tx, bytes]]:
    settings = load(databases=["followup"])
    db = Database(settings.database_urls["followup"], SystemClock(), SystemIds(), name="cli", pool_size=1)
    try:
        with db.transaction() as tx:
            yield tx, settings.key("one-time-password")
    except HearbackError as error:
        details = "".join(f"\n  {name}: {text}" for name, text in error.fields.items())
        raise click.ClickException(error.message + details) from error
    finally:
        db.close()


def _told(as_json: bool, facts: dict[str, object], plain: str | None = None) -> None:
    if as_json:
        click.echo(json.dumps(facts))
    elif plain is not None:
        click.echo(plain)
    else:
        click.echo(f"Login: {facts['email']}\nOne-time password: {facts['one_time_password']}")


commands: list[click.Command] = [staff_group, apikey_group]
