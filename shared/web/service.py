"""What a request stands on: the service, its database, and a transaction that may span the whole request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg2
from flask import current_app
from psycopg2.errors import QueryCanceled

from shared.clock import Clock
from shared.db import Database, Tx
from shared.errors import HearbackError, Unavailable
from shared.ids import Ids
from shared.settings import Settings
from shared.web import patience

_ambient: ContextVar[tuple[WebDatabase, Tx] | None] = ContextVar("hearback_ambient", default=None)
_committed: ContextVar[bool] = ContextVar("hearback_committed", default=False)


@dataclass
class WebDatabase(Database):
    """A database whose transactions join the one that spans the request, when there is one.

    An idempotent write needs its reply stored in the very transaction that did the work; commands
    keep opening theirs as always, and become savepoints of it.
    """

    statement_timeout: int = int(patience.STATEMENT_SECONDS * 1000)

    def __post_init__(self) -> None:
        self._connecting = ThreadPoolExecutor(4, "database-connect")

    def _pooled(self) -> psycopg2.extensions.connection:
        return self._within(patience.left(patience.CONNECT_SECONDS))

    def answers(self) -> bool:
        """Whether the server says anything to who comes anew; one that is frozen does not."""
        try:
            self._within(patience.ANSWER_SECONDS).close()
        except psycopg2.OperationalError as error:
            return not isinstance(error.__cause__, FutureTimeout)
        return True

    def _within(self, seconds: float) -> psycopg2.extensions.connection:
        # libpq waits two seconds at the least, and for a frozen server for all five of them.
        made = self._connecting.submit(super()._pooled)
        try:
            return made.result(seconds)
        except FutureTimeout as late:
            if not made.cancel():  # it has begun; the others would only queue up for nobody
                made.add_done_callback(_close)
            raise psycopg2.OperationalError("no connection in time") from late

    def _begin(self, connection: Any) -> None:
        if patience.for_staff.get():
            connection.later.append(
                f"SET LOCAL statement_timeout = {patience.STAFF_STATEMENT_SECONDS * 1000};"
                f" SET LOCAL lock_timeout = {self.statement_timeout}".encode()
            )
            connection.budget = patience.Budget(connection, patience.STAFF_TRANSACTION_SECONDS, self.answers)
            return
        left = patience.left(patience.TRANSACTION_SECONDS)
        # The server ends it a little before we would: that costs no connection.
        statement = int((left - patience.TRANSACTION_SECONDS) * 1000) + self.statement_timeout
        if statement < self.statement_timeout:
            connection.later.append(f"SET LOCAL statement_timeout = {max(statement, 100)}".encode())
        connection.budget = patience.Budget(connection, left)

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """As `Database.transaction`; inside `spanning` a savepoint of the spanning transaction."""
        outer = _ambient.get()
        if outer is None or outer[0] is not self:
            with self.separate() as tx:
                yield tx
            _committed.set(True)
            return
        tx = outer[1]
        tx.execute("SAVEPOINT joined")
        try:
            yield tx
        except BaseException:
            if not tx.cur.connection.closed:
                tx.forget_later()
                tx.execute("ROLLBACK TO SAVEPOINT joined")
            raise
        tx.execute("RELEASE SAVEPOINT joined")

    @contextmanager
    def separate(self) -> Iterator[Tx]:
        """A transaction of its own, whatever spans the request (counters, evidence)."""
        try:
            with super().transaction() as tx:
                yield tx
        except QueryCanceled as error:
            raise Unavailable(
                "The database is slow just now. Nothing was changed; please try again.", retry_after=2
            ) from error

    @contextmanager
    def spanning(self) -> Iterator[Tx]:
        """One transaction that all others opened within become part of."""
        with self.separate() as tx:
            token = _ambient.set((self, tx))
            try:
                yield tx
            finally:
                _ambient.reset(token)
        _committed.set(True)


def _close(made: Future[psycopg2.extensions.connection]) -> None:
    """Nobody waits for this connection any more."""
    if made.exception() is None:
        made.result().close()


def begin_request() -> None:
    """Forgets what an earlier request of this thread committed."""
    _committed.set(False)


def has_committed() -> bool:
    """Whether this request has committed a transaction of its own so far."""
    return _committed.get()


@dataclass
class Service:
    """One service as its pages and APIs see it; `service()` gives the current app's."""

    name: str
    settings: Settings
    db: WebDatabase
    clock: Clock
    ids: Ids
    package: str
    _zone: tuple[float, ZoneInfo] | None = field(default=None, repr=False)

    def zone(self) -> ZoneInfo:
        """The company's time zone, in which staff read times; UTC as long as none is set. Cached for 5 s."""
        now = self.clock.monotonic()
        if self._zone is None or now - self._zone[0] > 5:
            self._zone = (now, self._read_zone())
        return self._zone[1]

    def _read_zone(self) -> ZoneInfo:
        # The owner keeps columns, replicas keep the event's data: both have the name under the same key.
        try:
            with self.db.separate() as tx:
                row = tx.value("SELECT to_jsonb(company) AS row FROM company LIMIT 1") or {}
        except (psycopg2.Error, HearbackError):
            row = {}
        name = row.get("time_zone") or (row.get("data") or {}).get("time_zone") or "UTC"
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError):
            return ZoneInfo("UTC")


def service() -> Service:
    """The service whose app handles the current request (or whose app context is pushed)."""
    return cast(Service, current_app.extensions["hearback"])
