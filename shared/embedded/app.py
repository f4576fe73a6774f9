"""The three services and the mailbox under one origin: the first part of a path says whose it is."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from shared.clock import Clock, SystemClock
from shared.ids import Ids, SystemIds
from shared.settings import SERVICES, Settings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# The first part of a path, and whose it is.
PREFIXES: Mapping[str, str] = {
    "a": "survey",
    "u": "survey",
    "v1": "survey",
    "webhooks": "survey",
    "survey": "survey",
    "followup": "followup",
    "reporting": "reporting",
    "mailbox": "mailbox",
}
# Who says "there is no such page" for all other paths.
_REST = "survey"
# A stand-in for the providers of mail and SMS; no service, but served like one.
MAILBOX = "mailbox"


def mounted(
    settings: Settings, services: Sequence[str], *, clock: Clock | None = None, ids: Ids | None = None
) -> WSGIApplication:
    """The apps of `services` as one; each keeps its full paths. With all three comes the mailbox, if used."""
    clock, ids = clock or SystemClock(), ids or SystemIds()
    if settings.uses_mailbox and set(SERVICES) <= set(services):
        services = [*services, MAILBOX]
    apps: dict[str, Any] = {
        name: importlib.import_module(module(name)).create_app(settings, clock=clock, ids=ids)
        for name in services
    }
    rest = apps[_REST if _REST in apps else services[0]]

    def dispatch(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path in ("", "/") and "survey" in apps:
            return first_page(apps["survey"], environ, start_response)
        app = apps.get(PREFIXES.get(path.split("/", 2)[1] if path.startswith("/") else "", ""), rest)
        result: Iterable[bytes] = app.wsgi_app(environ, start_response)
        return result

    return dispatch


def module(name: str) -> str:
    """Where the app of a service (or of the mailbox) is."""
    return "shared.mailbox.app" if name == MAILBOX else f"services.{name}.app"


def first_page(app: Any, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Leads whoever opens `/` to their role's first page; who is not logged in goes to the login page.

    A login that survey has not heard of yet gets the page that waits, for a minute; then the inbox, whose
    service owns the logins: survey's trouble keeps nobody from calling customers.
    """
    from werkzeug.utils import redirect

    from shared.errors import HearbackError
    from shared.web.access import StillUnknown, actor_or_none

    with app.request_context(environ):
        try:
            who = actor_or_none()
            role = who.role if who else ""
        except HearbackError as error:
            if isinstance(error, StillUnknown) and _logged_in_just_now(app):
                waits: Iterable[bytes] = app.handle_user_exception(error)(environ, start_response)
                return waits
            role = "agent"
        if role == "":
            target = "/followup/login"
        elif role == "agent":
            target = "/followup/inbox"
        elif role == "admin" and _is_new(app):
            target = "/survey/welcome"
        else:
            target = "/reporting/"
        response = redirect(target, 303)
        response.headers["Cache-Control"] = "no-store"
        result: Iterable[bytes] = response(environ, start_response)
        return result


def _logged_in_just_now(app: Any) -> bool:
    from flask import request

    from shared.web import session

    here = app.extensions["hearback"]
    found = session.read(request, here)
    return found is not None and here.clock.now() - found.issued_at < timedelta(minutes=1)


def _is_new(app: Any) -> bool:
    """Whether an admin has to set things up first: nobody was asked yet, and the set-up was not ended."""
    from shared.errors import HearbackError

    try:
        with app.extensions["hearback"].db.transaction() as tx:
            return bool(
                tx.value(
                    "SELECT NOT EXISTS (SELECT FROM ask_run)"
                    " AND NOT EXISTS (SELECT FROM company WHERE setup_done_at IS NOT NULL)"
                )
            )
    except HearbackError:
        return False
