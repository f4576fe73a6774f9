"""Wires survey: its pages and its APIs on top of what every service has."""

from __future__ import annotations

from flask import Flask

from services.survey import asking
from services.survey.api import company as company_api
from services.survey.api import customers as customers_api
from services.survey.api import imports as imports_api
from services.survey.pages import customer, customers, imports, welcome
from services.survey.pages import settings as settings_page
from shared.clock import Clock
from shared.ids import Ids
from shared.settings import Settings
from shared.web import create_service, finish

PAGES = (customers.bp, customer.bp, imports.bp, settings_page.bp, welcome.bp, *asking.PAGES)
APIS = (customers_api.bp, imports_api.bp, company_api.bp, *asking.APIS)


def create_app(settings: Settings, *, clock: Clock | None = None, ids: Ids | None = None) -> Flask:
    """The survey service as a WSGI application."""
    app = create_service("survey", settings, clock=clock, ids=ids, package="services.survey")
    for page in PAGES:
        app.register_blueprint(page)
    for api in APIS:
        app.extensions["hearback_api"].register_blueprint(api)
    return finish(app)
