"""PostgreSQL: a pool of connections, and transactions that carry the clock and the ids."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from shared.clock import Clock
from shared.errors import Unavailable
from shared.ids import Ids

if TYPE_CHECKING:
    from sqlalchemy.pool import QueuePool

Row = dict[str, Any]
Args = Sequence[Any] | Mapping[str, Any]

psycopg2.extras.register_default_jsonb(globally=True)

# Refused connections, a server that goes away or is starting or stopping, lost races for locks: the same
# statement may succeed later (classes 08, 53, 57P, 40 of PostgreSQL's Appendix A, and disk full 53100).
_TRANSIENT_CLASSES = ("08", "53", "57P", "40", "55P03", "25P03", "58030")


def is_transient(error: BaseException) -> bool:
    """Whether `error` comes from a part that may be back soon, rather than from what was asked of it."""
    if isinstance(error, Unavailable | ConnectionError | TimeoutError):
        return True
    if isinstance(error, psycopg2.Error):
        if error.pgcode is None:
            return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
        return error.pgcode.startswith(_TRANSIENT_CLASSES)
    return False


@dataclass(frozen=True, slots=True)
class Tx:
    """One open transaction: its cursor, the ids to use, and the instant it began.

    `now` stays the same throughout, so that everything one transaction writes has one time.
    """

    cur: psycopg2.extensions.cursor
    now: datetime
    ids: Ids

    def execute(self, sql: str, args: Args | None = None) -> int:
        """Runs a statement; returns how many rows it touched."""
        self.cur.execute(sql, args)
        return self.cur.rowcount

    def one(self, sql: str, args: Args | None = None) -> Row | None:
        """The first row of a query, by column name, or None."""
        self.cur.execute(sql, args)
        row = self.cur.fetchone()
        return None if row is None else dict(row)

    def all(self, sql: str, args: Args | None = None) -> list[Row]:
        """All rows of a query, by column name."""
        self.cur.execute(sql, args)
        return [dict(row) for row in self.cur.fetchall()]

    def value(self, sql: str, args: Args | None = None) -> Any:
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
        result = psycopg2.extras.execute_values(
            self.cur, sql, rows, template=template, page_size=len(rows), fetch=fetch
        )
        return [dict(row) for row in result] if fetch else []


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
                    self.connect,  # type: ignore[arg-type]
                    pool_size=self.pool_size,
                    max_overflow=0,
                    timeout=self.pool_wait,
                    use_lifo=True,
                )
            return self._made

    def connect(self) -> psycopg2.extensions.connection:
        """A connection of its own, outside the pool; the caller closes it. Times are UTC.

        Raises `psycopg2.OperationalError` when the server cannot be reached within 5 seconds.
        """
        return psycopg2.connect(
            self.url,
            connect_timeout=5,
            application_name=self.name,
            cursor_factory=psycopg2.extras.RealDictCursor,
            options=(
                f"-c TimeZone=UTC -c statement_timeout={self.statement_timeout}"
                f" -c idle_in_transaction_session_timeout={self.idle_timeout}"
            ),
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """Commits at the end, rolls back on any exception.

        Raises `Unavailable` when no connection is to be had; a connection that broke is thrown away.
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
        try:
            with connection.cursor() as cur:
                yield Tx(cur, self.clock.now(), self.ids)
            connection.commit()
        except BaseException as error:
            broken = connection.closed or isinstance(error, psycopg2.InterfaceError)
            if not broken:
                try:
                    connection.rollback()
                except psycopg2.Error:
                    broken = True
            if broken:
                pooled.invalidate()
            if isinstance(error, psycopg2.Error) and is_transient(error):
                raise Unavailable(
                    "The database had to stop this. Nothing was changed; please try again.", retry_after=2
                ) from error
            raise
        finally:
            pooled.close()

    def close(self) -> None:
        """Closes what the pool holds; the object can be used again afterwards (after a fork, say)."""
        with self._making:
            made, self._made = self._made, None
        if made is not None:
            made.dispose()
