"""A request's body, which may come slowly: nobody who waits for it keeps a place in the database.

The server gives a request to a thread before its body is there, and reading cannot be given up: it ends when
the body is there or the connection is not (`shared.embedded.web` notices clients that are gone; how long one
that is there may take says the proxy in front).
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from flask import g, request
from werkzeug.exceptions import ClientDisconnected
from werkzeug.wsgi import get_input_stream

from shared.errors import HearbackError, Unavailable

SMALL_BYTES = 2 << 20
"""Up to here a route's body is read whole before anything else; a file is read by the route itself."""
WAITING = 16
"""So many of a process's requests may wait for small bodies at a time; its other threads answer the rest."""
FILES = 8
"""So many files are taken at a time."""
TURN_SECONDS = 1.5
"""How long a request waits for its turn to be read."""

_waiting = threading.BoundedSemaphore(WAITING)
_files = threading.BoundedSemaphore(FILES)


class NoLength(HearbackError):
    """A file or form of which nobody could tell whether all of it has come: the server ends a body whose
    last piece (chunked) never came like a whole one."""

    status, slug = 411, "length-required"


def receive(away: Callable[[], AbstractContextManager[None]]) -> None:
    """Reads the present request's body into memory if its route takes a small one.

    A larger one is read by its route as if it came from the connection, but within `away()` for as long as it
    is waited for; `done` is to be called at its end. Raises `Unavailable` when too many wait for theirs
    already, `NoLength` for a file or form without a length, and `ClientDisconnected` when it breaks off.
    """
    if not (request.content_length or request.headers.get("Transfer-Encoding")):
        return
    limit, length = request.max_content_length, request.content_length
    if limit is not None and limit > SMALL_BYTES:
        if length is None:
            raise NoLength("Say how long the file is (Content-Length): else half of it would look whole.")
        _take(_files)
        g.file = True
        request.environ["wsgi.input"] = _File(request.environ["wsgi.input"], length, away)
        return
    if limit is not None and (length or 0) > limit:
        return  # refused where it is read
    if length is None and g.needs_length:
        raise NoLength("Say how long the form is (Content-Length): else half of it would look whole.")
    _take(_waiting)
    try:
        body = get_input_stream(request.environ, max_content_length=limit).read()
    finally:
        _waiting.release()
    if length is not None and len(body) < length:
        raise ClientDisconnected
    request.environ["wsgi.input"] = io.BytesIO(body)


def done() -> None:
    """After a request: the next file may come."""
    if g.pop("file", False):
        _files.release()


def _take(turns: threading.BoundedSemaphore) -> None:
    if not turns.acquire(timeout=TURN_SECONDS):
        # Who tells of it must not wait for the body either.
        request.environ["wsgi.input"] = io.BytesIO()
        raise Unavailable(
            "More is asked just now than can be done. Nothing was changed; please try again.", retry_after=2
        )


class _File(io.RawIOBase):
    """A file that is being sent."""

    def __init__(self, source: Any, length: int, away: Callable[[], AbstractContextManager[None]]) -> None:
        self.source, self.left, self.away = source, length, away

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self.away():
            piece = self.source.read(min(len(buffer), self.left))
        if not piece and self.left:
            raise ClientDisconnected
        self.left -= len(piece)
        buffer[: len(piece)] = piece
        return len(piece)
