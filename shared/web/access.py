"""Who may use a route: every route says so, and is refused to everybody when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload
from urllib.parse import quote, urlsplit

from flask import Flask, current_app, g, redirect, request
from werkzeug.wrappers import Response

from shared.errors import Forbidden, Unauthenticated, Unavailable
from shared.ids import hash_token
from shared.web import csrf, service_auth, session
from shared.web.service import Service, service

ROLES = ("agent", "lead", "admin", "viewer")
ANY_SCOPE = "*"  # a route for every key, whatever its scopes
_MARK = "__hearback_access__"
_UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Access:
    """What a route declared about who may use it."""

    kind: Literal["public", "staff", "service", "operator"]
    roles: tuple[str, ...] = ()
    scope: str | None = None
    csrf: bool = True
    when_new: bool = False
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class Actor:
    """Who is asking: a staff member, an API key, or another of our services."""

    id: str
    name: str
    email: str
    role: str
    kind: Literal["staff", "key", "service"]
    scopes: tuple[str, ...] = ()

    @property
    def is_agent(self) -> bool:
        """Whether only their own and unowned tasks, and those tasks' customers, are theirs to see."""
        return self.kind == "staff" and self.role == "agent"


class StillUnknown(Unavailable):
    """A good session whose staff member (or newest epoch) has not reached this service yet."""

    slug = "one-moment"


class MustChangePassword(Forbidden):
    """A given password is to be replaced by one's own before anything else."""

    slug = "change-password-first"


class LogIn(Unauthenticated):
    """Nobody is logged in; people are led to the login page."""


@overload
def public(view: F) -> F: ...
@overload
def public(view: None = None, *, csrf: bool = True) -> Callable[[F], F]: ...
def public(view: F | None = None, *, csrf: bool = True) -> F | Callable[[F], F]:
    """Anybody may use this route. `csrf=False` where the POST is the proof: webhooks, links in mails."""
    mark = _marking(Access("public", csrf=csrf))
    return mark if view is None else mark(view)


def allow(*roles: str, scope: str | None = None, when_new: bool = False) -> Callable[[F], F]:
    """Staff in one of `roles` (none named: any staff), and API keys with `scope`, when there is one.

    `when_new` also lets in who must still replace a password that was given to them.
    """
    unknown = set(roles) - set(ROLES)
    if unknown:
        raise ValueError(f"no such role: {', '.join(sorted(unknown))}")
    return _marking(Access("staff", roles=roles or ROLES, scope=scope, when_new=when_new))


@overload
def service_call(view: F) -> F: ...
@overload
def service_call(view: None = None, *, purpose: str | None = None) -> Callable[[F], F]: ...
def service_call(view: F | None = None, *, purpose: str | None = None) -> F | Callable[[F], F]:
    """Only another of our services, with a header made by `shared.web.service_auth.header`."""
    mark = _marking(Access("service", csrf=False, purpose=purpose))
    return mark if view is None else mark(view)


def operator_or_key(scope: str) -> Callable[[F], F]:
    """Who is on this machine itself (loopback, through no proxy), or an API key with `scope`."""
    return _marking(Access("operator", scope=scope, csrf=False))


def _marking(access: Access) -> Callable[[F], F]:
    def mark(view: F) -> F:
        setattr(view, _MARK, access)
        return view

    return mark


def declared(app: Flask, endpoint: str, method: str) -> Access | None:
    """What the view behind `endpoint` declared for `method`; a class's methods may each say their own."""
    view: Any = app.view_functions.get(endpoint)
    given: Access | None = getattr(view, _MARK, None)
    owner = getattr(view, "view_class", None)
    if owner is not None:
        # MethodView answers HEAD with `get`.
        handler = getattr(owner, "get" if method == "HEAD" else method.lower(), None)
        given = getattr(handler, _MARK, None) or getattr(owner, _MARK, None) or given
    return given


def undeclared(app: Flask) -> list[str]:
    """The routes that do not say who may use them, as "METHOD path"."""
    missing = []
    for rule in app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"}):
            if declared(app, rule.endpoint, method) is None:
                missing.append(f"{method} {rule.rule}")
    return missing


def actor() -> Actor:
    """Who is asking. Raises `Unauthenticated` when it is nobody known (on a public route)."""
    found = actor_or_none()
    if found is None:
        raise LogIn("Please log in.")
    return found


def actor_or_none() -> Actor | None:
    """Who is asking, or None; a public route is only looked at when it wants to know."""
    if "actor" not in g:
        found = session.read(request, service())
        g.actor = _staff(service(), found) if found else None
    known = g.actor
    return known if isinstance(known, Actor) else None


def guard() -> Response | None:
    """Before each request: refuses who may not, and remembers who may."""
    if request.url_rule is None:  # no such route, or not by this method: answered as such to everybody
        return None
    access = declared(current_app, request.endpoint or "", request.method)
    if request.method == "OPTIONS" and access is None:
        return None
    if access is None:
        raise Forbidden("This page does not say who may see it, so nobody may.")
    if access.kind == "public":
        if access.csrf and request.method in _UNSAFE:
            csrf.check(session.read(request, service()), visit=True)
        return None
    if access.kind == "service":
        _let_service_in(access)
        return None
    if access.kind == "operator":
        if not is_local():
            _let_key_in(access)
        return None
    if request.headers.get("Authorization", "").startswith("Bearer "):
        _let_key_in(access)
        return None
    return _let_staff_in(access)


def is_local() -> bool:
    """Whether the request comes from this very machine, and no proxy brought it here for somebody else.

    The name asked for must be this machine's, too: else a stranger's page could have its own name
    resolved to loopback and read along in a browser that runs here.
    """
    forwarded = any(name in request.headers for name in ("X-Forwarded-For", "Forwarded", "X-Real-Ip", "Via"))
    address = request.remote_addr or ""
    if forwarded or not (address == "::1" or address.startswith("127.")):
        return False
    asked = urlsplit(f"//{request.host}").hostname
    return asked in ("localhost", "127.0.0.1", "::1", urlsplit(service().settings.public_url).hostname)


def _let_service_in(access: Access) -> None:
    here = service()
    purpose = service_auth.check(here.settings, here.clock, request.headers.get("Authorization", ""))
    if purpose is None or access.purpose not in (None, purpose):
        raise Unauthenticated("Only Hearback's own services may call this.")
    g.actor = Actor(purpose, purpose, "", "service", "service")


def _let_key_in(access: Access) -> None:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
    if not token:
        raise Unauthenticated("This needs an API key: send it as `Authorization: Bearer KEY`.")
    with service().db.separate() as tx:
        row = tx.one("SELECT id, name, scopes, disabled FROM apikey WHERE hash = %s", (hash_token(token),))
    if row is None or row["disabled"]:
        raise Unauthenticated("This API key is unknown or disabled.", slug="unknown-key")
    if access.scope is None:
        raise Forbidden("API keys cannot be used here; a person has to log in.")
    if access.scope not in (ANY_SCOPE, *row["scopes"]):
        raise Forbidden(f"This API key lacks the scope {access.scope}.", slug="scope-missing")
    g.actor = Actor(str(row["id"]), row["name"], "", "key", "key", tuple(row["scopes"]))


def _let_staff_in(access: Access) -> Response | None:
    here = service()
    found = session.read(request, here)
    if found is None:
        raise LogIn("Please log in.")
    g.session = found
    who = _staff_soon(here, found)
    g.actor = who
    if request.method in _UNSAFE:
        csrf.check(found, visit=False)
    if found.must_change and not access.when_new:
        raise MustChangePassword("Please choose your own password first.")
    if who.role not in access.roles:
        raise Forbidden("Your role may not use this page. Ask an admin if you need it.")
    return None


def _staff_soon(here: Service, found: session.Session) -> Actor:
    """The staff member of a good session; a form is worth waiting two seconds for, a page reloads itself."""
    give_up = time.monotonic() + (2.0 if request.method in _UNSAFE else 0.0)
    while True:
        try:
            who = _staff(here, found)
            if who is None:
                raise LogIn("You were logged out. Please log in again.")
            return who
        except StillUnknown:
            if time.monotonic() >= give_up:
                raise
            time.sleep(0.1)


def _staff(here: Service, found: session.Session) -> Actor | None:
    """Who a session belongs to, None when it is over; `StillUnknown` when this service does not know yet."""
    with here.db.separate() as tx:
        row = tx.one(
            "SELECT id, email, name, role, disabled, epoch FROM staff WHERE id = %s", (found.staff_id,)
        )
    if row is None or row["epoch"] < found.epoch:
        raise StillUnknown("One moment: your login has not arrived here yet.", retry_after=1)
    if row["disabled"] or row["epoch"] > found.epoch:
        return None
    return Actor(str(row["id"]), row["name"], row["email"], row["role"], "staff")


def login_redirect() -> Response:
    """To the login page, and from there back to the page that was asked for."""
    wanted = request.full_path.rstrip("?") if request.method == "GET" else ""
    query = f"?next={quote(wanted, safe='/')}" if wanted and wanted != "/" else ""
    return redirect(f"/followup/login{query}", 303)
