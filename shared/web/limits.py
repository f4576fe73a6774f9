"""Limits on what one asker may do: how often, and how much at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from flask import current_app, g, request

from shared.errors import TooMany
from shared.web.service import service

# Pages and JSON are small; routes that take files say how much with `body_limit`.
DEFAULT_BODY_BYTES = 1_048_576
_MARK = "__hearback_body_limit__"
F = TypeVar("F", bound=Callable[..., Any])


def rate_limit(key: str, limit: int, seconds: int) -> None:
    """Counts one more under `key`; raises `TooMany` when it is beyond `limit` in the present `seconds`.

    Windows are fixed and shared by all processes. The key is stored hashed: it may name an address.
    """
    here = service()
    now = here.clock.now()
    start = int(now.timestamp()) // seconds * seconds
    wait = start + seconds - int(now.timestamp())
    until = now.replace(microsecond=0) + timedelta(seconds=wait)
    digest = hashlib.sha256(f"{seconds}|{key}".encode()).digest()
    with here.db.separate() as tx:
        count = tx.value(
            "INSERT INTO rate (key, until, count) VALUES (%s, %s, 1)"
            " ON CONFLICT (key, until) DO UPDATE SET count = rate.count + 1 RETURNING count",
            (digest, until),
        )
        if count == 1:  # a new window pays for the removal of some old ones
            tx.execute(
                "DELETE FROM rate WHERE (key, until) IN"
                " (SELECT key, until FROM rate WHERE until < %s LIMIT 100)",
                (now,),
            )
    if count > limit:
        raise TooMany(
            f"Too many tries. Please wait {_words(wait)}, then try again.", retry_after=max(1, wait)
        )


def body_limit(size: int, *, needs_length: bool = True) -> Callable[[F], F]:
    """Lets this route take a body of up to `size` bytes (1 MiB elsewhere).

    Without `needs_length` also one that does not say how long it is (chunked), and could be a part of itself:
    where a part is refused anyway, by its signature for example.
    """

    def mark(view: F) -> F:
        setattr(view, _MARK, (size, needs_length))
        return view

    return mark


def apply_body_limit() -> None:
    """Before each request: the limit of its route, and in `g.needs_length` whether a body must have one."""
    view: Any = current_app.view_functions.get(request.endpoint or "")
    owner = getattr(view, "view_class", None)
    handler = getattr(owner, request.method.lower(), None) if owner else None
    size, needs_length = getattr(handler, _MARK, None) or getattr(view, _MARK, None) or (None, True)
    if size is not None:
        request.max_content_length = int(size)
    # Half of a JSON object is none; half of a form is another form.
    g.needs_length = needs_length and request.mimetype != "application/json"


def _words(seconds: int) -> str:
    return f"{seconds} seconds" if seconds < 90 else f"{round(seconds / 60)} minutes"
