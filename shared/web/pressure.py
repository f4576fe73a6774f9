"""A slow database costs a clear word within two seconds, and never the whole web.

Each process has a few places for requests at work in the database, and many threads more to answer those that
find no place. Who waits for one gives up when nothing moves. How long those at work may take says `patience`;
who is still sending something is not at work (`bodies`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from flask import Flask, current_app, g, request

from shared.errors import Unavailable
from shared.web import access, bodies, patience

AT_WORK = 4
"""Requests of a process that are at work in a service at a time. The last place is never staff's."""
QUEUE_SECONDS = 1.5
"""How long a request waits for a place while others come and go."""
STUCK_SECONDS = 0.5
"""How long it waits when nobody comes or goes."""
# What needs no database, and what tells how it is.
_WITHOUT = frozenset({"health.healthz", "health.readyz", "static.static"})


class Places:
    """At most `AT_WORK` requests at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = {True: 0, False: 0}
        self._moved = 0.0

    def enter(self, staff: bool) -> None:
        """Takes a place. Raises `Unavailable` when there is none, and none will be soon."""
        with self._changed:
            until = time.monotonic() + QUEUE_SECONDS
            while not self._room(staff):
                left = min(until, self._moved + STUCK_SECONDS) - time.monotonic()
                if left <= 0:
                    raise Unavailable(
                        "More is asked just now than can be done. Nothing was changed; please try again.",
                        retry_after=2,
                    )
                self._changed.wait(left)
            self._taken[staff] += 1
            self._moved = time.monotonic()

    @contextlib.contextmanager
    def away(self, staff: bool) -> Iterator[None]:
        """Gives the place to others while a client is waited for; then waits for one as long as it takes."""
        self.leave(staff)
        try:
            yield
        finally:
            with self._changed:
                self._changed.wait_for(lambda: self._room(staff))
                self._taken[staff] += 1

    def leave(self, staff: bool) -> None:
        """Gives the place back."""
        with self._changed:
            self._taken[staff] -= 1
            self._moved = time.monotonic()
            self._changed.notify_all()

    def _room(self, staff: bool) -> bool:
        return sum(self._taken.values()) < AT_WORK and not (staff and self._taken[True] >= AT_WORK - 1)


def install(app: Flask) -> None:
    """Gives the app places, and each request that needs the database one of them."""
    places = Places()

    @app.before_request
    def enter() -> None:
        if request.url_rule is None or request.endpoint in _WITHOUT:
            return
        declared = access.declared(current_app, request.endpoint or "", request.method)
        staff = declared is not None and declared.kind in ("staff", "operator")
        bodies.receive(lambda: places.away(staff))
        patience.for_staff.set(staff)
        patience.until.set(None if staff else time.monotonic() + patience.REQUEST_SECONDS)
        places.enter(staff)
        g.place = staff

    @app.teardown_request
    def leave(_: BaseException | None) -> None:
        staff = g.pop("place", None)
        bodies.done()
        patience.for_staff.set(False)
        patience.until.set(None)
        if staff is not None:
            places.leave(staff)
