"""A route that does not say who may use it keeps the whole app from starting."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from flask.views import MethodView

from shared.settings import Settings
from shared.web import UndeclaredRoute, allow, create_service, finish, public, service_call


@pytest.fixture
def app() -> Flask:
    urls = dict.fromkeys(("survey", "followup", "reporting", "log"), "postgresql://nobody@127.0.0.1:1/none")
    settings = Settings(home=Path("/nowhere"), secret="s" * 40, database_urls=urls)
    return create_service("survey", settings, package="services.survey")


def test_an_app_of_declared_routes_starts(app: Flask) -> None:
    app.add_url_rule("/survey/a", "a", public(lambda: ""))
    app.add_url_rule("/survey/b", "b", allow("lead")(lambda: ""), methods=["POST"])
    app.add_url_rule("/survey/c", "c", service_call(purpose="permits")(lambda: ""))
    assert finish(app) is app


def test_an_undeclared_route_is_named_and_refused(app: Flask) -> None:
    app.add_url_rule("/survey/open", "open", lambda: "")
    with pytest.raises(UndeclaredRoute, match="GET /survey/open"):
        finish(app)


def test_each_method_of_a_class_must_be_declared(app: Flask) -> None:
    class View(MethodView):
        @allow("lead")
        def get(self) -> str:
            return ""

        def post(self) -> str:
            return ""

    app.add_url_rule("/survey/view", view_func=View.as_view("view"))
    with pytest.raises(UndeclaredRoute, match="POST /survey/view"):
        finish(app)


def test_a_role_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="boss"):
        allow("boss")
