"""Wires followup: its pages and its API on top of what every service has."""

from __future__ import annotations

from flask import Flask
from flask_smorest import Api

from services.followup.api import changes as changes_api
from services.followup.api import tasks as tasks_api
from services.followup.api import themes as themes_api
from services.followup.pages import (
    change_answers,
    changes,
    inbox,
    keys,
    login,
    notice_answer,
    previews,
    staff,
    task,
    themes,
)
from shared.clock import Clock
from shared.ids import Ids
from shared.settings import Settings
from shared.web import create_service, finish

PAGES = (
    login.bp,
    staff.bp,
    keys.bp,
    inbox.bp,
    task.bp,
    changes.bp,
    change_answers.bp,
    previews.bp,
    themes.bp,
    notice_answer.bp,
)
APIS = (tasks_api.bp, changes_api.bp, themes_api.bp)


def create_app(settings: Settings, *, clock: Clock | None = None, ids: Ids | None = None) -> Flask:
    """The followup service as a WSGI application."""
    app = create_service("followup", settings, clock=clock, ids=ids, package="services.followup")
    for blueprint in PAGES:
        app.register_blueprint(blueprint)
    api: Api = app.extensions["hearback_api"]
    for described in APIS:
        api.register_blueprint(described)
    return finish(app)
