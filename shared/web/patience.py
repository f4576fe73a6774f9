"""How long a request's transactions may keep it waiting for the database."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import psycopg2

STATEMENT_SECONDS = 1.3
"""What the server is told to allow a statement for a customer, a provider or another service."""
TRANSACTION_SECONDS = 1.45
"""What a transaction for them may wait for the server in all; then its connection is closed."""
CONNECT_SECONDS = 1.4
"""How long a connection is waited for."""
REQUEST_SECONDS = 1.6
"""How long after its beginning such a request still has the times above, for all that it waits for."""
LAST_SECONDS = 0.25
"""What it has after that for each step: a long list of quick ones (a provider's reports) is none of a slow
database, and the first slow one ends it."""
STAFF_STATEMENT_SECONDS = 30
"""Staff's lists and figures may take longer; but for a lock they wait no longer than customers."""
STAFF_TRANSACTION_SECONDS = 150
ASK_SECONDS, ANSWER_SECONDS = 0.5, 1.0
"""When a statement of theirs makes the server suspect, and how long it then has to say anything at all."""
_ASK_AGAIN_SECONDS = 5.0

for_staff: ContextVar[bool] = ContextVar("hearback_for_staff", default=False)
"""Whether the present request is staff's, or an API key's."""

until: ContextVar[float | None] = ContextVar("hearback_until", default=None)
"""When the times of the present request are over (`time.monotonic`); staff's has no such end."""


def left(seconds: float) -> float:
    """How much of `seconds` the present request still has."""
    end = until.get()
    return seconds if end is None else min(seconds, max(end - time.monotonic(), LAST_SECONDS))


@dataclass
class _Waiting:
    """A connection that waits for the server; `answers` tells whether that is there at all."""

    connection: Any
    until: float
    answers: Callable[[], bool] | None
    ask_at: float


class Watch:
    """Closes connections that still wait for the server when their time is over.

    A server that is frozen, or out of reach, keeps no time-out of its own, and libpq waits without end.
    Where much time is allowed the server is asked meanwhile whether it is there; is it not, that ends it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[int, _Waiting] = {}
        self._process = 0

    def begin(self, connection: Any, seconds: float, answers: Callable[[], bool] | None = None) -> None:
        """From now on `connection` has so long."""
        now = time.monotonic()
        with self._changed:
            self._waiting[id(connection)] = _Waiting(connection, now + seconds, answers, now + ASK_SECONDS)
            if self._process != os.getpid():  # a fork has no threads
                self._process = os.getpid()
                threading.Thread(target=self._run, name="database-watch", daemon=True).start()
            elif len(self._waiting) == 1:
                self._changed.notify()

    def end(self, connection: Any) -> None:
        """The server has answered."""
        with self._changed:
            self._waiting.pop(id(connection), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._changed.wait()
                now = time.monotonic()
                for key, one in list(self._waiting.items()):
                    if one.until <= now:
                        del self._waiting[key]
                        _hang_up(one.connection)
                    elif one.answers is not None and one.ask_at <= now:
                        one.ask_at = now + _ASK_AGAIN_SECONDS
                        threading.Thread(target=self._ask, args=(key, one), daemon=True).start()
            time.sleep(0.1)

    def _ask(self, key: int, one: _Waiting) -> None:
        if one.answers is None or one.answers():
            return
        with self._changed:
            if self._waiting.get(key) is one:
                del self._waiting[key]
                _hang_up(one.connection)


_watch = Watch()


class Budget:
    """What one transaction may still wait for the server; time spent elsewhere does not count."""

    def __init__(self, connection: Any, seconds: float, answers: Callable[[], bool] | None = None) -> None:
        self.connection, self.left, self.answers = connection, seconds, answers

    @contextlib.contextmanager
    def spend(self) -> Iterator[None]:
        """The server works within; when it takes too long this fails as if it had gone away."""
        began = time.monotonic()
        _watch.begin(self.connection, max(self.left, 0.1), self.answers)
        try:
            yield
        finally:
            _watch.end(self.connection)
            self.left -= time.monotonic() - began


def _hang_up(connection: Any) -> None:
    # It may be closed by now, by who has the answer.
    with (
        contextlib.suppress(OSError, psycopg2.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)
