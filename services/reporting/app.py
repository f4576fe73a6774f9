"""Reporting's web role: reports, the rows behind them, status, and the API of the same numbers."""

from __future__ import annotations

from typing import Any

from flask import Flask

from services.reporting.api.reports import blp
from services.reporting.freshness import LagWatch
from services.reporting.pages import chart, report, rows, status
from shared.clock import Clock, SystemClock
from shared.ids import Ids, SystemIds
from shared.log.in_use import Following
from shared.settings import Settings
from shared.web import create_service, finish


def create_app(settings: Settings, *, clock: Clock | None = None, ids: Ids | None = None) -> Flask:
    """The app for the paths under `/reporting/`."""
    clock, ids = clock or SystemClock(), ids or SystemIds()
    app = create_service("reporting", settings, clock=clock, ids=ids, package="services.reporting")
    app.extensions["hearback_lag"] = LagWatch(
        Following(settings, app.extensions["hearback"].db, clock), clock
    )
    for page in (report, rows, chart, status):
        app.register_blueprint(page.bp)
    api: Any = app.extensions["hearback_api"]
    api.register_blueprint(blp)
    return finish(app)
