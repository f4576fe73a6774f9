"""The staff's session cookie: followup starts and ends it, every service reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from flask import Request, Response
from itsdangerous import BadData

from shared.ids import is_id
from shared.web.service import Service, service
from shared.web.signing import serializer

COOKIE = "hearback_session"
LIFETIME = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Session:
    """A session whose signature and age are good; whether its staff member may come in is in `staff`.

    `must_change` is set for somebody whose password was given to them: they may change it, and nothing else.
    """

    staff_id: str
    epoch: int
    issued_at: datetime
    must_change: bool
    digest: bytes


def start(response: Response, staff_id: str, epoch: int, *, must_change: bool = False) -> None:
    """Logs `staff_id` in on this browser, for at most 12 hours."""
    here = service()
    value = serializer(here.settings, "session", here.clock).dumps([staff_id, epoch, int(must_change)])
    response.set_cookie(
        COOKIE,
        value if isinstance(value, str) else value.decode(),
        max_age=int(LIFETIME.total_seconds()),
        path="/",
        httponly=True,
        samesite="Lax",
        secure=is_secure(here),
    )


def end(response: Response) -> None:
    """Logs this browser out."""
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="Lax", secure=is_secure(service()))


def read(request: Request, here: Service) -> Session | None:
    """The request's session, or None when there is none, it is too old, or it was tampered with."""
    value = request.cookies.get(COOKIE)
    if not value or len(value) > 1000:
        return None
    try:
        data, issued_at = serializer(here.settings, "session", here.clock).loads(
            value, max_age=int(LIFETIME.total_seconds()), return_timestamp=True
        )
        staff_id, epoch, must_change = data
        if not is_id(staff_id):
            return None
        digest = hashlib.sha256(value.encode()).digest()
        return Session(staff_id, int(epoch), issued_at, bool(must_change), digest)
    except (BadData, ValueError, TypeError):
        return None


def is_secure(here: Service) -> bool:
    """Whether browsers reach us over TLS, so that cookies may be kept to it."""
    return here.settings.public_url.startswith("https://")


def safe_next(url: str | None, default: str = "/") -> str:
    """`url` when it leads to a page of our own, else `default`: a login must not send people elsewhere."""
    if not url or not url.startswith("/") or url.startswith(("//", "/\\")) or "\\" in url:
        return default
    parts = urlsplit(url)
    if parts.scheme or parts.netloc or any(ord(c) < 32 for c in url):
        return default
    return url
