"""Brings a database's tables to the version this program needs, and says when they are newer than that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions

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


def has_ledger(service: str) -> bool:
    """Whether the database of `service` keeps a ledger of messages."""
    return "channels/tables.sql" in SHARED_SQL[service]


class NewerDatabase(HearbackError):
    """The tables were made by a newer version of the program."""

    slug = "newer-database"


def migrate(service: str, url: str) -> bool:
    """Migrates the database of `service` (or of "log"); returns whether it changed.

    Two at once wait for each other. Raises `NewerDatabase` and changes nothing when the tables are
    newer than this program, and `Unavailable` when the database does not answer.
    """
    with _connection(service, url) as connection, connection.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))  # given back with the connection
        if _check(service, cur) == head(service):
            return False
        _upgrade(service, url)
        return True


def head(service: str) -> str:
    """The version of the tables that this program needs."""
    return _versions(service)[-1]


def version(service: str, url: str) -> str | None:
    """The version of the tables there are, or None when there are none yet.

    Raises `NewerDatabase` when this program does not know it, `Unavailable` when nobody answers.
    """
    with _connection(service, url) as connection, connection.cursor() as cur:
        return _check(service, cur)


def run() -> None:
    """What each `migrations/env.py` does: all steps in one transaction on the connection it is given."""
    from alembic import context

    context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
    with context.begin_transaction():
        context.run_migrations()


def execute_sql(service: str) -> None:
    """For the first migration: the shared tables of `service`, then its own `0001_initial.sql`."""
    for name in SHARED_SQL[service]:
        execute_file(name)
    if service != "log":
        _execute(_folder(service) / "versions" / "0001_initial.sql")


def execute_file(name: str) -> None:
    """For a migration that several services have: a file of SQL under `shared/`."""
    _execute(_ROOT / "shared" / name)


def _execute(file: Path) -> None:
    from alembic import op

    connection: Any = op.get_bind().connection.dbapi_connection
    with connection.cursor() as cur:
        cur.execute(file.read_text())


def _folder(service: str) -> Path:
    return (
        _ROOT / "shared/log/migrations" if service == "log" else _ROOT / "services" / service / "migrations"
    )


def _versions(service: str) -> list[str]:
    """All versions this program knows, oldest first: the files' numbers are their revisions."""
    found = sorted(path.name.split("_")[0] for path in (_folder(service) / "versions").glob("[0-9]*_*.py"))
    if not found:
        raise LookupError(f"{service} has no migrations")
    return found


def _upgrade(service: str, url: str) -> None:
    # Alembic is loaded only when there is something to do: most starts have nothing.
    import sqlalchemy
    from alembic import command
    from alembic.config import Config
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_folder(service)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    address = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg2")
    engine = sqlalchemy.create_engine(address, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    finally:
        engine.dispose()


def _check(service: str, cur: psycopg2.extensions.cursor) -> str | None:
    cur.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
    row = cur.fetchone()
    if not row or not row[0]:
        return None
    cur.execute("SELECT version_num FROM alembic_version")
    row = cur.fetchone()
    current = str(row[0]) if row else None
    if current is not None and current not in _versions(service):
        raise NewerDatabase(
            f"The database of {service} is at version {current}, which this program does not know: "
            "it was made by a newer one. Run that version, or restore a backup from before the update."
        )
    return current


@contextmanager
def _connection(service: str, url: str) -> Iterator[psycopg2.extensions.connection]:
    try:
        connection = psycopg2.connect(url, connect_timeout=5)
    except psycopg2.OperationalError as error:
        said = (str(error).strip() or "no reason given").splitlines()[0]
        raise Unavailable(f"The database of {service} does not answer: {said}") from error
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()
