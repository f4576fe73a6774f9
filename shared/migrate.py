"""Brings a database's tables to the version this program needs, while older programs still run on them.

A migration says its `phase`. One that expands only adds: the version before it goes on working on the new
tables. One that contracts takes away what an older version uses, so it waits until none of those runs:
each process notes itself in the database (`shared.presence`) with the newest migration that it knows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from shared.db import HOST_GONE, lasting
from shared.errors import HearbackError, Unavailable

_ROOT = Path(__file__).resolve().parent.parent
_LOCK = 0x6865_6172_0001  # any number, the same for everybody who migrates
# Held by who contracts, and shared for a moment by who begins to run: neither overlooks the other.
CONTRACT_LOCK = 0x6865_6172_0002
# A process says each `BEAT_SECONDS` that it lives; after `GONE_SECONDS` of silence it counts as gone.
BEAT_SECONDS, GONE_SECONDS = 10.0, 60.0
_POLL_SECONDS = 1.0
_LOCK_MS, _TRIES = 3_000, 20
_PHASE = re.compile(r"^phase = \"(expand|contract)\"$", re.MULTILINE)

# Tables that several databases have, made before a service's own.
SHARED_SQL = {
    "survey": ("events/tables.sql", "web/tables.sql", "channels/tables.sql"),
    "followup": ("events/tables.sql", "web/tables.sql", "channels/tables.sql"),
    "reporting": ("events/tables.sql", "web/tables.sql"),
    "log": ("log/tables.sql", "mailbox/tables.sql"),
}

# What decides about migrations cannot be made by one; like Alembic's own table it is there before the first.
_BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS schema_floor (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    oldest text NOT NULL                        -- programs that do not know this migration cannot work here
);
CREATE TABLE IF NOT EXISTS running_process (
    id uuid PRIMARY KEY,
    name text NOT NULL,                         -- 'survey web', 'followup consumer', …
    host text NOT NULL,
    version text NOT NULL,                      -- the program's
    knows text NOT NULL,                        -- the newest migration that it knows
    seen_at timestamptz NOT NULL DEFAULT now()
)
"""


def has_ledger(service: str) -> bool:
    """Whether the database of `service` keeps a ledger of messages."""
    return "channels/tables.sql" in SHARED_SQL[service]


class NewerDatabase(HearbackError):
    """The tables were made by a newer version of the program, and do not serve this one any more."""

    slug = "newer-database"


class OldVersionRuns(HearbackError):
    """A migration would take away what a running process of an older version uses."""

    slug = "old-version-runs"


@dataclass(frozen=True, slots=True)
class _Step:
    version: str
    contracts: bool


def migrate(
    service: str, url: str, *, expand_only: bool = False, alone: bool = False, wait: float = 0.0
) -> bool:
    """Migrates the database of `service` (or of "log"); returns whether it changed.

    Two at once wait for each other. With `expand_only` the last steps stay undone when they contract.
    `alone`: the caller knows that no other process runs. Raises `OldVersionRuns`, with all steps before
    done, when a step contracts and processes that do not know it still run after `wait` seconds;
    `NewerDatabase` with nothing changed when the tables are of a newer program and do not serve this one
    any more; `Unavailable` when the database does not answer.
    """
    with connection_to(service, url) as connection, connection.cursor() as cur:
        cur.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))  # given back with the connection
        before = _check(service, cur)
        cur.execute(_BOOKKEEPING)
        steps = _steps(service)
        todo = [step for step in steps if before is None or step.version > before]
        if before is None:
            # Nobody can be running on tables that are not there.
            return _upgrade(service, url, steps[-1].version)
        if expand_only:
            while todo and todo[-1].contracts:
                todo.pop()
        until = time.monotonic() + wait
        for step in _last_of_each(todo):
            while not _upgrade(service, url, step.version, contracts=step.contracts and not alone):
                if time.monotonic() >= until:
                    raise OldVersionRuns(_refusal(service, cur, step))
                time.sleep(_POLL_SECONDS)
        return bool(todo)


def _last_of_each(steps: Sequence[_Step]) -> Iterator[_Step]:
    """Expanding steps in a row are done in one go: their last one; each contracting one by itself."""
    for place, step in enumerate(steps):
        following = steps[place + 1 : place + 2]
        if step.contracts or not following or following[0].contracts:
            yield step


def _refusal(service: str, cur: psycopg2.extensions.cursor, step: _Step) -> str:
    running = [
        f"{name} on {host} (version {version}, tables {knows})"
        for name, host, version, knows in _older(cur, step.version)
    ]
    return (
        f"Migration {step.version} of {service} takes away what an older version uses, and of such these "
        f"run: {', '.join(running) or 'one that has just ended'}. Nothing was taken away. Let the new "
        "version replace them, or end them, and run `hearback migrate` again (one that was killed counts as "
        f"gone after {GONE_SECONDS:.0f} seconds)."
    )


def _older(cur: psycopg2.extensions.cursor, version: str) -> list[tuple[str, str, str, str]]:
    """The live processes that do not know the migration `version`: name, host, version, what they know."""
    cur.execute(
        "SELECT name, host, version, knows FROM running_process"
        " WHERE knows < %s AND seen_at > now() - %s * interval '1 second' ORDER BY name, host",
        (version, GONE_SECONDS),
    )
    return [(row[0], row[1], row[2], row[3]) for row in cur.fetchall()]


def head(service: str) -> str:
    """The newest migration that this program knows."""
    return _steps(service)[-1].version


def needed(service: str) -> str:
    """The migration that this program cannot do without: the last one that expands."""
    return next(step.version for step in reversed(_steps(service)) if not step.contracts)


def version(service: str, url: str) -> str | None:
    """The version of the tables there are, or None when there are none yet.

    Raises `NewerDatabase` when they do not serve this program, `Unavailable` when nobody answers.
    """
    with connection_to(service, url) as connection, connection.cursor() as cur:
        return _check(service, cur)


def unfit(service: str, cur: psycopg2.extensions.cursor) -> str:
    """Why this program cannot work on the tables there are, in a sentence; empty when it can."""
    found = _state(cur)
    if found is None:
        return f"The database of {service} has no tables yet: run `hearback migrate`."
    current, oldest, kept = found
    if _outgrown(service, current, oldest, kept):
        return _newer(service, current)
    if not kept or current < needed(service):
        return (
            f"The tables of {service} are those of an older version ({current}; this one needs "
            f"{needed(service)}): run `hearback migrate`. Until then this process waits."
        )
    return ""


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


def _steps(service: str) -> list[_Step]:
    """All migrations this program knows, oldest first: the files' numbers are their revisions."""
    found = []
    for path in sorted((_folder(service) / "versions").glob("[0-9]*_*.py")):
        phase = _PHASE.search(path.read_text())
        if phase is None:
            raise LookupError(f'{path} does not say its phase: phase = "expand" or phase = "contract"')
        found.append(_Step(path.name.split("_")[0], phase[1] == "contract"))
    if not found or found[0].contracts:
        raise LookupError(f"{service} has no migrations, or the first one contracts")
    return found


def _upgrade(service: str, url: str, target: str, *, contracts: bool = False) -> bool:
    """Goes to `target`. When that contracts: only if nobody runs who does not know it; returns whether."""
    for _ in range(_TRIES):
        try:
            return _try_upgrade(service, url, target, contracts)
        except psycopg2.errors.LockNotAvailable:
            time.sleep(_POLL_SECONDS)
    raise Unavailable(
        f"The tables of {service} are in use all the time, by a long transaction perhaps: nothing was "
        "changed in them. Try again later."
    )


def _try_upgrade(service: str, url: str, target: str, contracts: bool) -> bool:
    # Alembic is loaded only when there is something to do: most starts have nothing.
    import sqlalchemy
    from alembic import command
    from alembic.config import Config
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_folder(service)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    # By libpq, as everybody connects: it also knows addresses of several hosts.
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg2://",
        poolclass=NullPool,
        creator=lambda: psycopg2.connect(url, connect_timeout=5, **HOST_GONE),
    )
    floor = max(
        (step.version for step in _steps(service) if step.contracts and step.version <= target), default=""
    )
    try:
        with engine.connect() as connection:
            # Whoever waits for a table's lock holds up all who come after: not for long.
            connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))
            raw: Any = connection.connection.dbapi_connection
            if contracts:
                connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({CONTRACT_LOCK})"))
                with raw.cursor() as cur:
                    if _older(cur, target):
                        return False
            config.attributes["connection"] = connection
            command.upgrade(config, target)
            if floor:
                connection.execute(
                    sqlalchemy.text(
                        "INSERT INTO schema_floor (oldest) VALUES (:floor)"
                        " ON CONFLICT (only_one) DO UPDATE SET oldest = excluded.oldest"
                    ),
                    {"floor": floor},
                )
            connection.commit()
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg2.errors.LockNotAvailable):
            raise error.orig from error
        raise
    finally:
        engine.dispose()
    return True


def _check(service: str, cur: psycopg2.extensions.cursor) -> str | None:
    found = _state(cur)
    if found is None:
        return None
    current, oldest, kept = found
    if _outgrown(service, current, oldest, kept):
        raise NewerDatabase(_newer(service, current))
    return current


def _state(cur: psycopg2.extensions.cursor) -> tuple[str, str | None, bool] | None:
    """The version of the tables, the oldest migration a program has to know, and whether that is kept."""
    found = _row(
        cur,
        "SELECT to_regclass('alembic_version') IS NOT NULL AS there, to_regclass('schema_floor') IS NOT NULL"
        " AND to_regclass('running_process') IS NOT NULL AS kept",
    )
    if found is None or not found[0]:
        return None
    kept = bool(found[1])
    oldest = "(SELECT oldest FROM schema_floor)" if kept else "NULL"
    row = _row(cur, f"SELECT version_num, {oldest} AS oldest FROM alembic_version")  # noqa: S608 (ours)
    return (str(row[0]), row[1], kept) if row else None


def _row(cur: psycopg2.extensions.cursor, sql: str) -> list[Any] | None:
    """The first row of a query, whether the cursor gives tuples or rows by name."""
    cur.execute(sql)
    row: Any = cur.fetchone()
    return None if row is None else list(row.values() if isinstance(row, dict) else row)


def _outgrown(service: str, current: str, oldest: str | None, kept: bool) -> bool:
    """Whether the tables are of a newer version and have lost what this program uses, or may have."""
    if current in {step.version for step in _steps(service)}:
        return False
    return not kept or (oldest is not None and oldest > head(service))


def _newer(service: str, current: str) -> str:
    return (
        f"The database of {service} is at version {current}, which this program does not know, and has lost "
        "what it uses: it was made by a newer one. Run that version, or restore a backup from before the "
        "update."
    )


@contextmanager
def connection_to(service: str, url: str) -> Iterator[psycopg2.extensions.connection]:
    """A connection for a moment, committing each statement. Raises `Unavailable` when nobody answers."""
    try:
        connection = psycopg2.connect(url, connect_timeout=5, **HOST_GONE)
    except psycopg2.OperationalError as error:
        said = (str(error).strip() or "no reason given").splitlines()[0]
        raise Unavailable(lasting(error) or f"The database of {service} does not answer: {said}") from error
    connection.autocommit = True
    try:
        yield connection
    finally:
        connection.close()
