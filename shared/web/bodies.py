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

from flask import request
from werkzeug.wsgi import get_input_stream

from shared.errors import Unavailable

SMALL_BYTES = 2 << 20
"""Up to here a route's body is read whole before anything else; a file is read by the route itself."""
WAITING = 16
"""So many of a process's requests may wait for small bodies at a time; its other threads answer the rest."""
TURN_SECONDS = 1.5
"""How long a request waits for its turn to be read."""

_waiting = threading.BoundedSemaphore(WAITING)


def receive(away: Callable[[], AbstractContextManager[None]]) -> None:
    """Reads the present request's body into memory if its route takes a small one.

    A larger one is read by its route as if it came from the connection, but within `away()` for as long as it
    is waited for. Raises `Unavailable` when too many wait for theirs already.
    """
    if not (request.content_length or request.headers.get("Transfer-Encoding")):
        return
    limit = request.max_content_length
    if limit is not None and limit > SMALL_BYTES:
        request.environ["wsgi.input"] = _File(request.environ["wsgi.input"], away)
        return
    if limit is not None and (request.content_length or 0) > limit:
        return  # refused where it is read
    if not _waiting.acquire(timeout=TURN_SECONDS):
        raise Unavailable(
            "More is asked just now than can be done. Nothing was changed; please try again.", retry_after=2
        )
    try:
        body = get_input_stream(request.environ, max_content_length=limit).read()
    finally:
        _waiting.release()
    request.environ["wsgi.input"] = io.BytesIO(body)


class _File(io.RawIOBase):
    """A file that is being sent."""

    def __init__(self, source: Any, away: Callable[[], AbstractContextManager[None]]) -> None:
        self.source, self.away = source, away

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self.away():
            piece = self.source.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)
