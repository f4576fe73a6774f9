"""One short sentence to be shown on the next page, kept in a signed cookie until then."""

from __future__ import annotations

from flask import Response, g, request
from itsdangerous import BadData

from shared.web.service import service
from shared.web.session import is_secure
from shared.web.signing import serializer

COOKIE = "hearback_flash"


def flash(text: str, kind: str = "done") -> None:
    """Shows `text` on top of the next page; `kind` is "done", "note" or "problem"."""
    g.setdefault("new_flashes", []).append([kind, text[:500]])


def flashes() -> list[tuple[str, str]]:
    """What is to be shown now, as (kind, text); it is not shown again."""
    found: list[tuple[str, str]] = [(kind, text) for kind, text in g.pop("new_flashes", [])]
    value = request.cookies.get(COOKIE)
    if value and not g.get("flashes_read"):
        g.flashes_read = True
        here = service()
        try:
            kept = serializer(here.settings, "flash", here.clock).loads(value, max_age=300)
            found = [(str(kind), str(text)) for kind, text in kept] + found
        except (BadData, ValueError, TypeError):
            pass
    return found


def carry_over(response: Response) -> Response:
    """After each request: keeps what was not shown, forgets what was."""
    here = service()
    waiting = g.pop("new_flashes", [])
    if waiting:
        value = serializer(here.settings, "flash", here.clock).dumps(waiting)
        response.set_cookie(
            COOKIE,
            value if isinstance(value, str) else value.decode(),
            max_age=300,
            path="/",
            httponly=True,
            samesite="Lax",
            secure=is_secure(here),
        )
    elif g.get("flashes_read"):
        response.delete_cookie(COOKIE, path="/", httponly=True, samesite="Lax", secure=is_secure(here))
    return response
