"""API writes that may be sent again: the reply is kept in the transaction that did the work."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

from flask import Response, make_response, request
from psycopg2.extras import Json

from shared.errors import Conflict, Invalid
from shared.web.access import actor
from shared.web.service import service

F = TypeVar("F", bound=Callable[..., Any])
KEPT = timedelta(days=2)
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_HEADERS = ("Location", "ETag")


def idempotent(view: F) -> F:
    """Makes a write with an `Idempotency-Key` happen once; its repetition gets the first reply again.

    The view's transactions become part of one that also stores the reply, so there is no moment
    in which the work is done and the reply unknown. Two at once wait for each other. An error stores
    nothing: the same key may be tried again. Without the header the view runs as it is. Raises
    `Conflict` when the key was used with another body, for two days.

    Put it below the route and `allow`, above flask-smorest's `arguments` and `response`, so that what it
    keeps is the finished reply; not for views that stream their body.
    """

    @wraps(view)
    def once(*args: Any, **kwargs: Any) -> Any:
        given = request.headers.get("Idempotency-Key")
        if given is None:
            return view(*args, **kwargs)
        if not _KEY.fullmatch(given):
            raise Invalid(
                "An Idempotency-Key is 1 to 200 visible characters.", fields={"Idempotency-Key": "malformed"}
            )
        return _once(given, lambda: view(*args, **kwargs))

    return once  # type: ignore[return-value]


def _once(given: str, run: Callable[[], Any]) -> Response:
    who = actor()
    key = hashlib.sha256("\n".join((who.kind, who.id, request.method, request.path, given)).encode()).digest()
    body = hashlib.sha256(request.query_string + b"\n" + request.get_data(cache=True)).digest()
    here = service()
    with here.db.spanning() as tx:
        # A second request with the key waits on this insert until the first has committed or failed.
        fresh = tx.execute(
            "INSERT INTO idempotency (key, request, at) VALUES (%s, %s, %s) ON CONFLICT (key) DO NOTHING",
            (key, body, tx.now),
        )
        if not fresh:
            return _again(tx.one("SELECT * FROM idempotency WHERE key = %s", (key,)) or {}, body)
        response = make_response(run())
        if response.status_code >= 400:
            raise _Refused(response)
        headers = {name: response.headers[name] for name in _HEADERS if name in response.headers}
        tx.execute(
            "UPDATE idempotency SET status = %s, content_type = %s, headers = %s, body = %s WHERE key = %s",
            (response.status_code, response.content_type, Json(headers), response.get_data(), key),
        )
        tx.execute(
            "DELETE FROM idempotency WHERE key IN (SELECT key FROM idempotency WHERE at < %s LIMIT 10)",
            (tx.now - KEPT,),
        )
    return response


class _Refused(Exception):
    """Rolls the transaction back and carries the view's own error reply out of it."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def refused(error: _Refused) -> Response:
    """The error reply of a view whose work was rolled back."""
    return error.response


def _again(row: dict[str, Any], body: bytes) -> Response:
    if bytes(row["request"]) != body:
        raise Conflict(
            "This Idempotency-Key was used for another request. Take a new one.",
            slug="idempotency-key-reused",
        )
    response = Response(bytes(row["body"] or b""), row["status"], content_type=row["content_type"])
    response.headers.update(row["headers"])
    response.headers["Idempotency-Replayed"] = "true"
    return response
