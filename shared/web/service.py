"""What a request stands on: the service, its database, and a transaction that may span the whole request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import psycopg2
from flask import current_app

from shared.clock import Clock
from shared.db import Database, Tx
from shared.errors import HearbackError
from shared.ids import Ids
from shared.settings import Settings

_ambient: ContextVar[tuple[WebDatabase, Tx] | None] = ContextVar("hearback_ambient", default=None)
_committed: ContextVar[bool] = ContextVar("hearback_committed", default=False)


class WebDatabase(Database):
    """A database whose transactions join the one that spans the request, when there is one.

    An idempotent write needs its reply stored in the very transaction that did the work; commands
    keep opening theirs as always, and become savepoints of it.
    """

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """As `Database.transaction`; inside `spanning` a savepoint of the spanning transaction."""
        outer = _ambient.get()
        if outer is None or outer[0] is not self:
            with super().transaction() as tx:
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
        with super().transaction() as tx:
            yield tx

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
