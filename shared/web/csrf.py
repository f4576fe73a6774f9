"""Forged requests: a token bound to the session (before login: to a cookie of the visit) on every write."""

from __future__ import annotations

import hashlib
import hmac

from flask import Response, g, request
from markupsafe import Markup, escape

from shared.errors import Forbidden
from shared.web.service import service
from shared.web.session import Session, is_secure, read

FIELD = "csrf_token"
HEADER = "X-CSRF-Token"
VISIT_COOKIE = "hearback_visit"


class Forged(Forbidden):
    """The form was not made for this session: it is old, or another site made it."""

    slug = "stale-form"


def token() -> str:
    """The token for forms and scripts of this page."""
    found = g.get("session") or read(request, service())
    return _sign(found.digest if found else _visit().encode())


def csrf_field() -> Markup:
    """The hidden field that every form with method POST carries."""
    return Markup('<input type="hidden" name="{}" value="{}">').format(FIELD, escape(token()))


def check(found: Session | None, *, visit: bool) -> None:
    """Raises `Forged` unless the request brings the token of its session, or (where `visit`) of its visit.

    A visit's cookie can be planted by whoever controls a neighbouring host: it protects public forms only.
    """
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise Forged("This form came from another site, so nothing was done.")
    sent = request.headers.get(HEADER) or _field()
    bound = [found.digest] if found else []
    visited = request.cookies.get(VISIT_COOKIE, "") if visit else ""
    # A login form opened before somebody logged in elsewhere in this browser is still theirs.
    if visited:
        bound.append(visited.encode())
    if not sent or not any(_matches(value, sent) for value in bound):
        raise Forged(
            "This form is too old or was not ours, so nothing was done. Go back, reload it and try again."
        )


def remember_visit(response: Response) -> Response:
    """After a request that showed a form to nobody in particular: binds the form to this browser."""
    visit = g.pop("new_visit", None)
    if visit:
        response.set_cookie(
            VISIT_COOKIE, visit, path="/", httponly=True, samesite="Lax", secure=is_secure(service())
        )
    return response


def _field() -> str:
    # Only forms are parsed here: the body of an upload or of JSON is left to its view.
    if request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return request.form.get(FIELD, "")
    return ""


def _visit() -> str:
    visit = g.get("new_visit") or request.cookies.get(VISIT_COOKIE)
    if not visit or len(visit) > 100:
        visit = g.new_visit = service().ids.token()
    return str(visit)


def _sign(bound: bytes) -> str:
    return hmac.new(service().settings.key("csrf"), bound, hashlib.sha256).hexdigest()


def _matches(bound: bytes, sent: str) -> bool:
    keys = service().settings.keys("csrf")
    return any(
        hmac.compare_digest(hmac.new(key, bound, hashlib.sha256).hexdigest().encode(), sent.encode())
        for key in keys
    )
