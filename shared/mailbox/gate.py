"""Who may look into the mailbox: whoever is on this machine, and leads and admins who are logged in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import urllib3
from flask import current_app, request

from shared.errors import Forbidden, Unavailable
from shared.mailbox.poster import Poster
from shared.web import access, is_local, service

F = TypeVar("F", bound=Callable[..., Any])
_http = urllib3.PoolManager(num_pools=2, maxsize=2)
SCOPE = "mailbox:read"


def poster() -> Poster:
    """The poster of the current app."""
    return cast(Poster, current_app.extensions["mailbox_poster"])


def only_here_or_with_login(view: F) -> F:
    """Refuses everybody else. Put it below `public`."""

    @wraps(view)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not is_local():
            _ask_who()
        return view(*args, **kwargs)

    return guarded  # type: ignore[return-value]


def _ask_who() -> None:
    # The mailbox is no part of Hearback and has no staff: it asks with the caller's own credentials.
    carried = {name: request.headers[name] for name in ("Cookie", "Authorization") if name in request.headers}
    if not carried:
        raise access.LogIn("The mailbox is open on its own machine only; elsewhere please log in.")
    try:
        answer = _http.request(
            "GET",
            f"{service().settings.survey_url}/survey/api/me",
            headers=carried,
            timeout=5.0,
            retries=False,
        )
        who = answer.json() if answer.status == 200 else {}
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise Unavailable("Nobody can tell right now who you are.", retry_after=2) from error
    if not who:
        raise access.LogIn("The mailbox is open on its own machine only; elsewhere please log in.")
    if who.get("role") not in ("lead", "admin") and SCOPE not in who.get("scopes", ()):
        raise Forbidden("Only leads and admins may look into the mailbox.")
