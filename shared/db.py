"""PostgreSQL: a pool of connections, and transactions that carry the clock and the ids."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import structlog

from shared.clock import Clock
from shared.errors import Unavailable
from shared.ids import Ids

if TYPE_CHECKING:
    from sqlalchemy.pool import QueuePool

Row = dict[str, Any]
Args = Sequence[Any] | Mapping[str, Any]

_NAME = re.compile(r"%\((\w+)\)s")

psycopg2.extras.register_default_jsonb(globally=True)

# Refused connections, a server that goes away or is starting or stopping, lost races for locks: the same
# statement may succeed later (classes 08, 53, 57P, 40 of PostgreSQL's Appendix A, and disk full 53100).
_TRANSIENT_CLASSES = ("08", "53", "57P", "40", "55P03", "25P03", "58030")
_DISK_FULL = "53100"

_log = structlog.get_logger("hearback.db")


# A host that is gone is noticed after 25 s: when its answer is waited for (s), or it is told something (ms).
HOST_GONE: Mapping[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}


def is_transient(error: BaseException) -> bool:
    """Whether `error` comes from a part that may be back soon, rather than from what was asked of it."""
    if isinstance(error, Unavailable | ConnectionError | TimeoutError):
        return True
    if isinstance(error, psycopg2.Error):
        if error.pgcode is None:
            return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
        return error.pgcode.startswith(_TRANSIENT_CLASSES)
    return False


_LOST = re.compile(r'database "(\w+)" (does not exist|is not currently accepting connections)')


def lasting(error: BaseException | None) -> str:
    """What is wrong with a database that will not be back by itself, and what to do; empty for nothing."""
    while error is not None:
        found = _LOST.search(str(error)) if isinstance(error, psycopg2.OperationalError) else None
        if found:
            name, how = found.groups()
            if how != "does not exist":
                return (
                    f"The database {name} is closed: a restore of it is at its last step, or was broken off "
                    "there. `hearback up`, or the same restore again, opens it."
                )
            back = f"put it back with `hearback restore DIR --only {name} --replace`"
            remedy = {
                "reporting": "`hearback rebuild reporting` makes it again and fills it",
                "log": "`hearback up` makes it again",
                "survey": back,
                "followup": back,
            }.get(name, "see Backups in docs/operations.md")
            return f"The database {name} is gone, though its server answers: {remedy}."
        error = error.__cause__
    return ""


_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """`text` with U+FFFD for what PostgreSQL's text cannot hold: NUL, and halves of a surrogate pair."""
    return _UNSTORABLE.sub("\ufffd", text)


class Statement:
    """SQL that each connection parses and plans once: for what every click does.

    Planning a few joins takes longer than running them. Its arguments have names, and are of one type
    wherever they stand. A plan is kept for minutes, in which an empty table can get full: so the first one
    in a transaction forbids plans that read whole tables where an index would do.
    """

    def __init__(self, sql: str) -> None:
        self.sql = sql
        names = list(dict.fromkeys(_NAME.findall(sql)))
        numbered = _NAME.sub(lambda match: f"${names.index(match[1]) + 1}", sql)
        self.name = "hearback_" + hashlib.sha256(numbered.encode()).hexdigest()[:16]
        self.prepare = f"PREPARE {self.name} AS {numbered}"
        given = ", ".join(f"%({name})s" for name in names)
        self.execute = f"EXECUTE {self.name} ({given})" if names else f"EXECUTE {self.name}"


class _Connection(psycopg2.extensions.connection):
    """What a connection has prepared, whether its transaction has begun, and what waits for a statement.

    Nothing waits on a connection outside the pool: nobody would send it along with the commit.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepared: set[str] = set()
        self.prepares = False
        self.begun = True
        self.pooled = False
        self.later: list[bytes] = []
        self.indexed = False
        self.budget: Any = None


class _Cursor(psycopg2.extensions.cursor):
    """Rows by column name; and fewer journeys: BEGIN and what may wait go along with the next statement."""

    def execute(self, query: Any, vars: Any = None) -> None:
        connection: Any = self.connection
        if not connection.begun or connection.later:
            parts = [] if connection.begun else [b"BEGIN"]
            parts += connection.later
            parts.append(self.mogrify(query, vars))
            connection.begun, connection.later = True, []
            query, vars = b"; ".join(parts), None
        if connection.budget is None:
            super().execute(query, vars)
            return
        with connection.budget.spend():
            super().execute(query, vars)

    def fetchone(self) -> Any:
        row = super().fetchone()
        return None if row is None else dict(zip(self._names(), row, strict=True))

    def fetchall(self) -> Any:
        names = self._names()
        return [dict(zip(names, row, strict=True)) for row in super().fetchall()]

    def _names(self) -> list[str]:
        return [column.name for column in self.description or ()]


@dataclass(frozen=True, slots=True)
class Tx:
    """One open transaction: its cursor, the ids to use, and the instant it began.

    `now` stays the same throughout, so that everything one transaction writes has one time.
    """

    cur: psycopg2.extensions.cursor
    now: datetime
    ids: Ids

    def execute(self, sql: str | Statement, args: Args | None = None) -> int:
        """Runs a statement; returns how many rows it touched."""
        self.cur.execute(self._sql(sql), args)
        return self.cur.rowcount

    def one(self, sql: str | Statement, args: Args | None = None) -> Row | None:
        """The first row of a query, by column name, or None."""
        self.cur.execute(self._sql(sql), args)
        row: Row | None = self.cur.fetchone()  # type: ignore[assignment] # see _Cursor
        return row

    def all(self, sql: str | Statement, args: Args | None = None) -> list[Row]:
        """All rows of a query, by column name."""
        self.cur.execute(self._sql(sql), args)
        rows: list[Row] = self.cur.fetchall()  # type: ignore[assignment]
        return rows

    def later(self, sql: str | Statement, args: Args | None = None) -> None:
        """Runs a statement whose result nobody asks for, in its order, but on one journey with the next one
        or with the commit; what it raises is raised there.
        """
        connection: Any = self.cur.connection
        text = self.cur.mogrify(self._sql(sql), args)
        if connection.pooled:
            connection.later.append(text)
        else:
            self.cur.execute(text)

    def forget_later(self) -> None:
        """Drops what waits for the next statement: the savepoint it belongs to is given up."""
        connection: Any = self.cur.connection
        connection.later.clear()

    def value(self, sql: str | Statement, args: Args | None = None) -> Any:
        """The first column of the first row, or None."""
        row = self.one(sql, args)
        return None if row is None else next(iter(row.values()))

    def values(
        self, sql: str, rows: Iterable[Sequence[Any]], template: str | None = None, *, fetch: bool = False
    ) -> list[Row]:
        """Runs `… VALUES %s …` once for many rows; with `fetch` returns what it RETURNs."""
        rows = list(rows)
        if not rows:
            return []
        result: Any = psycopg2.extras.execute_values(
            self.cur, sql, rows, template=template, page_size=len(rows), fetch=fetch
        )
        return result if fetch else []

    def add(
        self,
        table: str,
        columns: Mapping[str, str],
        rows: Iterable[Sequence[Any]],
        alike: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds many rows in their order; `columns` are names and types, values as `_element` knows them.

        `alike` are the columns that are the same in every row.

        One statement, sent as a whole: amid a COPY the server waits for its client, with all its locks and
        without any time-out, however long that stands still.
        """
        arrays = ["{" + ",".join(map(_element, column)) + "}" for column in zip(*rows, strict=True)]
        if arrays:
            alike = alike or {}
            into = f"{table} ({', '.join((*columns, *alike))})"
            types = ", ".join(f"%s::{type}[]" for type in columns.values())
            these = ", ".join(("many.*", *["%s"] * len(alike)))
            sql = f"INSERT INTO {into} SELECT {these} FROM unnest({types}) AS many"  # noqa: S608 (ours)
            self.execute(sql, [*alike.values(), *arrays])

    def _sql(self, sql: str | Statement) -> str:
        if isinstance(sql, str):
            return sql
        connection: Any = self.cur.connection
        if not connection.prepares:
            return sql.sql
        if not connection.indexed:
            connection.later.append(b"SET LOCAL enable_seqscan = off")
            connection.indexed = True
        if sql.name not in connection.prepared:
            self.cur.execute(sql.prepare)
            connection.prepared.add(sql.name)
        return sql.execute


def _element(value: Any) -> str:
    """A text, number, flag, instant, date, some bytes or None as an element of an array's text."""
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return '"\\\\x' + value.hex() + '"'
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass
class Database:
    """A service's database.

    `pool_size` connections at most; a caller waits `pool_wait` seconds for one, then gets
    `Unavailable`. `statement_timeout` (ms; 0 is none) bounds each statement.
    """

    url: str
    clock: Clock
    ids: Ids
    name: str = "hearback"
    pool_size: int = 8
    pool_wait: float = 2.0
    statement_timeout: int = 30_000
    idle_timeout: int = 30_000
    _made: QueuePool | None = field(default=None, init=False, repr=False)
    _making: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def _pool(self) -> QueuePool:
        # Made, and SQLAlchemy loaded, when first needed: commands that only look around start faster.
        with self._making:
            if self._made is None:
                from sqlalchemy.pool import QueuePool

                self._made = QueuePool(
                    self._pooled,  # type: ignore[arg-type]
                    pool_size=self.pool_size,
                    max_overflow=0,
                    timeout=self.pool_wait,
                    use_lifo=True,
                )
            return self._made

    def _pooled(self) -> psycopg2.extensions.connection:
        connection: Any = self.connect()
        # `transaction` begins and ends itself: psycopg2's own BEGIN would be a journey for nothing.
        connection.autocommit = True
        with connection.cursor() as cur:
            cur.execute("SELECT pg_backend_pid()")
            # Whom we were told of is not who answers: a pooler (PgBouncer) is in between. It may give each
            # transaction another of its connections, which would not know what this one has prepared.
            connection.prepares = cur.fetchone()["pg_backend_pid"] == connection.get_backend_pid()
        connection.pooled = True
        return connection  # type: ignore[no-any-return]

    def connect(self) -> psycopg2.extensions.connection:
        """A connection of its own, outside the pool; the caller closes it. Times are UTC.

        Raises `psycopg2.OperationalError` when the server cannot be reached within 5 seconds.
        """
        return psycopg2.connect(
            self.url,
            connect_timeout=5,
            application_name=self.name,
            connection_factory=_Connection,
            cursor_factory=_Cursor,
            options=(
                f"-c TimeZone=UTC -c statement_timeout={self.statement_timeout}"
                f" -c idle_in_transaction_session_timeout={self.idle_timeout}"
            ),
            **HOST_GONE,
        )

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """Commits at the end, rolls back on any exception.

        Raises `Unavailable` when no connection is to be had, or it breaks (it is then thrown away). Nothing
        was changed then; when it breaks at the commit nobody knows, and the message says so.
        """
        pool = self._pool
        from sqlalchemy.exc import TimeoutError as PoolTimeout

        try:
            pooled = pool.connect()
        except (PoolTimeout, psycopg2.OperationalError) as error:
            raise Unavailable(
                "The database does not answer. Nothing was changed; please try again.", retry_after=2
            ) from error
        connection: Any = pooled.dbapi_connection
        connection.begun = connection.indexed = committing = False
        self._begin(connection)
        try:
            with connection.cursor() as cur:
                yield Tx(cur, self.clock.now(), self.ids)
                if connection.begun or connection.later:
                    committing = True
                    cur.execute("COMMIT")
        except BaseException as error:
            connection.later = []
            broken = connection.closed or isinstance(error, psycopg2.InterfaceError)
            if not broken and connection.begun:
                try:
                    with connection.cursor() as cur:
                        cur.execute("ROLLBACK")
                except psycopg2.Error:
                    broken = True
            if broken:
                pooled.invalidate()
                self._give_up(pool)
            if isinstance(error, psycopg2.Error) and is_transient(error):
                if committing and broken:
                    raise Unavailable(
                        "The database broke off while this was being saved, and it is not known whether it"
                        " was. Please look before you try again.",
                        retry_after=2,
                    ) from error
                if error.pgcode == _DISK_FULL:
                    _log.error("the database's disk is full: make room on it", database=self.name)
                    raise Unavailable(
                        "The disk of the database is full. Nothing was changed; please try again later.",
                        retry_after=30,
                    ) from error
                raise Unavailable(
                    "The database had to stop this. Nothing was changed; please try again.", retry_after=2
                ) from error
            raise
        finally:
            pooled.close()

    def _begin(self, connection: Any) -> None:
        """For who bounds a transaction further."""

    def _give_up(self, pool: QueuePool) -> None:
        """The server went away, and with it most likely all that wait in the pool: each would cost a try."""
        with self._making:
            if self._made is pool:
                self._made = None
        pool.dispose()

    def close(self) -> None:
        """Closes what the pool holds; the object can be used again afterwards (after a fork, say)."""
        with self._making:
            made, self._made = self._made, None
        if made is not None:
            made.dispose()
