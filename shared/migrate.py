"""Brings a database's tables to the version this program needs, and says when they are newer than that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from shared.errors import HearbackError, Unavailable

_ROOT = Path(__file__).resolve().parent.parent
_LOCK = 0x6865_6172_0001  # any number, the same for everybody who migrates

# Tables that several databases have, made before a service's own.
SHARED_SQL = {
    "survey": ("events/tables.sql", "web/tables.sql", "channels/tables.sql"),
    "followup": ("events/tables.sql", "web/tables.sql", "channels/tables.sql"),
    "reporting": ("events/tables.sql", "web/tables.sql"),
    "log": ("log/tables.sql", "mailbox/tables.sql"),
}


class NewerDatabase(HearbackError):
    """The tables were made by a newer version of the program."""

    slug = "newer-database"


def migrate(service: str, url: str) -> bool:
    """Migrates the database of `service` (or of "log"); returns whether it changed.

    Two at once wait for each other. Raises `NewerDatabase` and changes nothing when the tables are
    newer than this program, and `Unavailable` when the database does not answer.
    """
    with _connection(service, url) as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
        connection.commit()
        try:
            before = _check(service, connection)
            if before == head(service):
                return False
            config = _config(service)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
            return True
        finally:
            connection.rollback()
            connection.exec_driver_sql(f"SELECT pg_advisory_unlock({_LOCK})")
            connection.commit()


def head(service: str) -> str:
    """The version of the tables that this program needs."""
    revision = ScriptDirectory.from_config(_config(service)).get_current_head()
    if revision is None:
        raise LookupError(f"{service} has no migrations")
    return revision


def version(service: str, url: str) -> str | None:
    """The version of the tables there are, or None when there are none yet.

    Raises `NewerDatabase` when this program does not know it, `Unavailable` when nobody answers.
    """
    with _connection(service, url) as connection:
        return _check(service, connection)


def run() -> None:
    """What each `migrations/env.py` does: all steps in one transaction on the connection it is given."""
    from alembic import context

    context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


def execute_sql(service: str) -> None:
    """For the first migration: the shared tables of `service`, then its own `0001_initial.sql`."""
    from alembic import op

    files = [_ROOT / "shared" / name for name in SHARED_SQL[service]]
    if service != "log":
        files.append(_ROOT / "services" / service / "migrations" / "versions" / "0001_initial.sql")
    connection: Any = op.get_bind().connection.dbapi_connection
    with connection.cursor() as cur:
        for file in files:
            cur.execute(file.read_text())


def _folder(service: str) -> Path:
    return (
        _ROOT / "shared/log/migrations" if service == "log" else _ROOT / "services" / service / "migrations"
    )


def _config(service: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_folder(service)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _check(service: str, connection: sqlalchemy.Connection) -> str | None:
    current = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    known = {script.revision for script in ScriptDirectory.from_config(_config(service)).walk_revisions()}
    if current is not None and current not in known:
        raise NewerDatabase(
            f"The database of {service} is at version {current}, which this program does not know: "
            "it was made by a newer one. Run that version, or restore a backup from before the update."
        )
    return current


@contextmanager
def _connection(service: str, url: str) -> Iterator[sqlalchemy.Connection]:
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg2")
    engine = sqlalchemy.create_engine(address, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        connection = engine.connect()
    except OperationalError as error:
        said = str(error.orig).strip().splitlines()
        raise Unavailable(
            f"The database of {service} does not answer: {said[-1] if said else 'no reason given'}"
        ) from error
    try:
        yield connection
    finally:
        connection.close()
        engine.dispose()
