"""`hearback secrets` and `hearback setup`: what has to be there before the services start, made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_urlsafe
from typing import TypeVar
from urllib.parse import quote, unquote, urlsplit

import click
import psycopg2
import structlog

from shared import telemetry
from shared.channels import credentials
from shared.db import is_transient
from shared.embedded.files import write_private
from shared.embedded.installation import first_admin
from shared.errors import HearbackError
from shared.log import in_use
from shared.logins import create_databases
from shared.migrate import migrate
from shared.settings import DATABASES, SECRET_FILE, SERVICES, BadSettings, Settings, load

T = TypeVar("T")
_log = structlog.get_logger("hearback.setup")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--host", default="postgres", show_default=True, help="Where PostgreSQL will be.")
def secrets(folder: Path, host: str) -> None:
    """Make the secrets that FOLDER lacks: one folder for each part, so that each can be given only its own.

    What is there is left as it is. Each database's address is in NAME/database_url, with its password.
    """
    made = [str(path.relative_to(folder)) for path in _missing(folder, host)]
    click.echo(f"Made {', '.join(made)}." if made else "All secrets are there.")


def _missing(folder: Path, host: str) -> Iterator[Path]:
    """Makes the files that are not there; yields each."""
    wanted: dict[str, Callable[[], str]] = {f"common/{SECRET_FILE}": lambda: token_urlsafe(48)}
    for name in DATABASES:
        wanted[f"{name}/database_url"] = lambda name=name: _url(name, token_urlsafe(32), host)  # type: ignore[misc]
    wanted["postgres/password"] = lambda: token_urlsafe(32)
    wanted["postgres/database_url"] = lambda: _url(
        "postgres", (folder / "postgres/password").read_text().strip(), host
    )
    for name, make in wanted.items():
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, make() + "\n")
        if name == "postgres/password":
            path.chmod(0o644)  # read by the server's own user; nobody else's container has this folder
        yield path


def _url(name: str, password: str, host: str) -> str:
    return f"postgresql://{name}:{quote(password, safe='')}@{host}:5432/{name}"


@click.command()
@click.option(
    "--patience",
    default=120.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait for PostgreSQL and the log.",
)
def setup(patience: float) -> None:
    """Make databases, logins, tables, topics and the first administrator, where they are missing.

    Databases and logins are made when HEARBACK_ADMIN_DATABASE_URL tells a superuser's address, and are the
    ones in HEARBACK_SURVEY_DATABASE_URL and its like. Run it before the services start, and again with
    each new version.
    """
    telemetry.set_up("setup")
    settings = load()
    until = time.monotonic() + patience
    if settings.admin_database_url:
        _patiently(lambda: _make_databases(settings), until)
    for name in DATABASES:
        # The version before this one may still run: what takes something away is for `hearback migrate`.
        changed = _patiently(
            lambda name=name: migrate(name, settings.database_urls[name], expand_only=True),  # type: ignore[misc]
            until,
        )
        click.echo(f"{name}: {'migrated' if changed else 'up to date'}")
    for service in SERVICES:
        db = in_use.service_database(settings, service)
        try:
            in_use.require(db, settings)
        finally:
            db.close()
    _patiently(lambda: _make_topics(settings), until)
    click.echo("topics: there")
    admin = first_admin(settings)
    rows = [("Hearback", settings.public_url)]
    if admin:
        rows += [("Log in as", admin[0]), ("one-time password", f"{admin[1]}  (shown this once)")]
    if settings.uses_mailbox:
        rows.append(("Mailbox", f"{settings.public_url}/mailbox/"))
    for name, value in rows:
        click.echo(f"{name:>17}  {value}")
    # All that was asked for is there; the senders will say the same, be unready, and keep their messages.
    for one in credentials.check(settings):
        if one.problem:
            click.echo(f"{one.name}: {one.problem}.", err=True)


def _patiently(step: Callable[[], T], until: float) -> T:
    """Does `step`, again each second while a part that it needs is late."""
    while True:
        try:
            return step()
        except (HearbackError, psycopg2.Error) as error:
            if not is_transient(error) or time.monotonic() > until:
                raise
            _log.warning("waiting", reason=str(error).strip().splitlines()[0])
            time.sleep(1)


def _make_topics(settings: Settings) -> None:
    log = in_use.open_in_use(settings)
    try:
        log.ensure_topics()
    finally:
        log.close()


def _make_databases(settings: Settings) -> None:
    connection = psycopg2.connect(settings.admin_database_url, connect_timeout=5)
    connection.autocommit = True
    try:
        with connection.cursor() as cur:
            create_databases(cur, {name: _password(name, settings) for name in DATABASES})
    finally:
        connection.close()


def _password(name: str, settings: Settings) -> str:
    """The password of the login `name`, out of its own address."""
    parts = urlsplit(settings.database_urls[name])
    if parts.username != name or parts.path != f"/{name}" or not parts.password:
        raise BadSettings(
            f"HEARBACK_{name.upper()}_DATABASE_URL is not of the login {name} and the database {name} with a "
            "password, so it cannot be made: make it yourself and leave HEARBACK_ADMIN_DATABASE_URL unset."
        )
    return unquote(parts.password)


commands: list[click.Command] = [secrets, setup]
