"""Makes a service's Flask app with everything that is the same for all three, and checks it at the end."""

from __future__ import annotations

from typing import Any

from flask import Flask, Request, Response, g, request
from flask.sessions import SessionInterface, SessionMixin
from flask_smorest import Api
from jinja2 import ChoiceLoader, PackageLoader, StrictUndefined
from werkzeug.middleware.proxy_fix import ProxyFix

from shared.clock import Clock, SystemClock
from shared.faults import crash_at
from shared.ids import Ids, SystemIds
from shared.settings import Settings
from shared.web import (
    access,
    assets,
    csrf,
    filters,
    flashes,
    headers,
    health,
    idempotency,
    limits,
    nav,
    observe,
    pressure,
    problems,
    whoami,
)
from shared.web.service import Service, WebDatabase, begin_request, has_committed


class _NoSession(SessionInterface):
    """Flask's own session is not used: staff have ours, customers none. It need not be looked for."""

    def open_session(self, app: Flask, request: Request) -> None:
        return None

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:
        raise AssertionError("nothing is kept in Flask's session")


class UndeclaredRoute(RuntimeError):
    """A route does not say who may use it; the app must not start."""


def create_service(
    name: str,
    settings: Settings,
    *,
    clock: Clock | None = None,
    ids: Ids | None = None,
    package: str,
    database: str | None = None,
    stand_in: bool = False,
) -> Flask:
    """An app for the service `name` whose code is in `package`; add blueprints, then call `finish`.

    `app.extensions["hearback"]` is its `Service`, `app.extensions["hearback_api"]` the flask-smorest
    `Api` to register API blueprints with. `database` names another database than the service's own. A
    `stand_in` (the mailbox) has the same frame, but no staff, no events and no health of its own.
    """
    clock, ids = clock or SystemClock(), ids or SystemIds()
    url = settings.database_urls[database or name]
    db = WebDatabase(url, clock, ids, name=f"{name}-web")
    here = Service(name, settings, db, clock, ids, package)

    app = Flask(package, static_folder=None)
    app.extensions["hearback"] = here
    app.session_interface = _NoSession()
    app.secret_key = settings.key("flask")
    app.config.update(
        MAX_CONTENT_LENGTH=limits.DEFAULT_BODY_BYTES,
        MAX_FORM_MEMORY_SIZE=limits.DEFAULT_BODY_BYTES,
        MAX_FORM_PARTS=2_000,
        TRAP_HTTP_EXCEPTIONS=False,
        PROPAGATE_EXCEPTIONS=False,
        API_TITLE=f"Hearback {name}",
        API_VERSION="v1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX=f"/{name}/api",
        OPENAPI_JSON_PATH="openapi.json",
    )
    app.url_map.strict_slashes = False
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    _pages(app, here)
    observer = observe.install(app, here)
    app.before_request(begin_request)
    app.before_request(limits.apply_body_limit)
    pressure.install(app)
    app.before_request(access.guard)

    api = Api(app, spec_kwargs=_spec_options())
    app.extensions["hearback_api"] = api
    problems.register(app)
    app.register_error_handler(idempotency._Refused, idempotency.refused)
    app.register_blueprint(assets.blueprint(name))
    if not stand_in:
        app.register_blueprint(health.blueprint(here, observer))
        app.register_blueprint(whoami.blueprint(name))

    @app.after_request
    def leave(response: Response) -> Response:
        if request.method not in ("GET", "HEAD", "OPTIONS") and has_committed():
            crash_at("web.after_commit")
        csrf.remember_visit(response)
        flashes.carry_over(response)
        headers.add_headers(response)
        return observer.end(response)

    return app


def finish(app: Flask) -> Flask:
    """The last call of a `create_app`. Raises `UndeclaredRoute` when a route does not say who may use it."""
    # The API's own description holds no data; its view is a bound method, which cannot carry a mark.
    for endpoint, view in list(app.view_functions.items()):
        if endpoint.endswith("api-docs.openapi_json"):
            app.view_functions[endpoint] = access.public(_plain(view))
    missing = access.undeclared(app)
    if missing:
        raise UndeclaredRoute("These routes do not say who may use them: " + ", ".join(missing))
    return app


def _plain(view: Any) -> Any:
    def openapi_json() -> Any:
        return view()

    return openapi_json


def _spec_options() -> dict[str, Any]:
    return {
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key."},
                "session": {"type": "apiKey", "in": "cookie", "name": "hearback_session"},
            }
        },
        "security": [{"key": []}, {"session": []}],
    }


def _pages(app: Flask, here: Service) -> None:
    own = app.jinja_loader
    loaders = [loader for loader in (own, PackageLoader("shared.web", "templates")) if loader is not None]
    app.jinja_loader = ChoiceLoader(loaders)
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.trim_blocks = True
    app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(filters.FILTERS)
    app.jinja_env.globals.update(
        asset=lambda plain: f"/{here.name}/static/{assets.assets()[plain].name}",
        csp_nonce=headers.csp_nonce,
        csrf_field=csrf.csrf_field,
        csrf_token=csrf.token,
        flashes=flashes.flashes,
        icon=assets.icon,
        nav_bar=nav.bar,
        nav_gear=nav.gear,
        may_search=nav.may_search,
    )

    @app.context_processor
    def context() -> dict[str, Any]:
        return {"me": g.get("actor"), "service_name": here.name}
