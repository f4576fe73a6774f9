"""Every error leaves in one form: problem JSON for programs, a page in the frame for people."""

# flask-smorest's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import io
import time
from typing import Any

import psycopg2
import pytest
from flask import Flask, abort, request
from flask.testing import FlaskClient
from flask_smorest import Blueprint
from marshmallow import Schema, fields

from shared.clock import ManualClock
from shared.errors import Conflict, Invalid
from shared.ids import SystemIds
from shared.settings import Settings
from shared.web import bodies, body_limit, create_service, finish, patience, public, service


class Thing(Schema):
    score = fields.Integer(required=True)
    when = fields.DateTime()


@pytest.fixture
def steps() -> list[str]:
    """What a request has got done."""
    return []


@pytest.fixture
def app(steps: list[str], settings: Settings, clock: ManualClock, ids: SystemIds) -> Flask:
    app = create_service("survey", settings, clock=clock, ids=ids, package="services.survey")
    api = Blueprint("things", "things", url_prefix="/survey/api/things")

    @api.route("", methods=["POST"])
    @public(csrf=False)
    @api.arguments(Thing)
    @api.response(201, Thing)
    def make(given: dict[str, Any]) -> dict[str, Any]:
        return given

    app.extensions["hearback_api"].register_blueprint(api)

    @app.post("/survey/file")
    @public(csrf=False)
    @body_limit(10 << 20)
    def file() -> str:
        size = 0
        while piece := request.stream.read(65_536):
            size += len(piece)
        steps.append("whole")
        return str(size)

    @app.get("/survey/<how>")
    @app.get("/survey/api/broken/<how>")
    @public
    def broken(how: str) -> str:
        if how == "conflict":
            raise Conflict("Somebody else was faster.")
        if how == "fields":
            raise Invalid("Two things are wrong.", fields={"name": "Enter a name", "colour": "Not a colour"})
        if how == "schema":
            Thing().load({"score": "many"})
        if how == "database":
            with service().db.transaction() as tx:
                tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        if how == "raw":
            raise psycopg2.OperationalError("server closed the connection")
        if how == "secret":
            with service().db.transaction() as tx:
                tx.execute("SELECT 'ann@example.org'::integer")
        if how == "slowly":  # each step within its own time
            for _ in range(5):
                with service().db.transaction() as tx:
                    tx.execute("SELECT pg_sleep(0.9)")
                steps.append(how)
        if how == "steadily":
            time.sleep(patience.REQUEST_SECONDS)
            for _ in range(20):
                with service().db.transaction() as tx:
                    tx.execute("SELECT 1")
                steps.append(how)
        if how == "teapot":
            abort(418)
        raise ZeroDivisionError("oh")

    return finish(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_many_steps_of_a_slow_database_have_the_time_of_one(client: FlaskClient, steps: list[str]) -> None:
    told = client.get("/survey/slowly")
    assert (told.status_code, told.headers["Retry-After"]) == (503, "2")
    assert len(steps) < 2


def test_a_request_of_many_quick_steps_may_take_longer(client: FlaskClient, steps: list[str]) -> None:
    assert client.get("/survey/steadily").status_code == 500  # by what comes after them
    assert len(steps) == 20


@pytest.mark.parametrize(
    ("how", "status", "slug"),
    [
        ("conflict", 409, "conflict"),
        ("fields", 422, "invalid"),
        ("schema", 422, "invalid"),
        ("database", 503, "unavailable"),
        ("raw", 503, "unavailable"),
        ("secret", 500, "internal"),
        ("teapot", 418, "http-418"),
        ("other", 500, "internal"),
    ],
)
def test_programs_get_a_problem_and_people_a_page(
    client: FlaskClient, how: str, status: int, slug: str
) -> None:
    answer = client.get(f"/survey/api/broken/{how}")
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    assert (
        answer.json and answer.json["slug"] == slug and answer.json["type"] == f"urn:hearback:problem:{slug}"
    )
    assert answer.json["detail"] and answer.json["request_id"] == answer.headers["X-Request-Id"]
    page = client.get(f"/survey/{how}", headers={"Accept": "text/html"})
    assert page.status_code == status and page.mimetype == "text/html" and "<h1>" in page.text
    assert ('http-equiv="refresh"' in page.text) == (status == 503)
    if status == 503:
        assert answer.headers["Retry-After"] == page.headers["Retry-After"] == "2"


def test_each_wrong_field_is_named(client: FlaskClient) -> None:
    answer = client.get("/survey/api/broken/fields").json
    assert answer and answer["errors"] == [
        {"field": "name", "detail": "Enter a name"},
        {"field": "colour", "detail": "Not a colour"},
    ]
    answer = client.post("/survey/api/things", json={"when": "x"}).json
    assert answer and {error["field"] for error in answer["errors"]} == {"score", "when"}
    assert client.post("/survey/api/things", json={"score": 3}).status_code == 201


def test_json_that_cannot_be_read_is_a_problem(client: FlaskClient) -> None:
    answer = client.post("/survey/api/things", data="{", content_type="application/json")
    assert answer.status_code == 400 and answer.content_type == "application/problem+json"


def test_what_is_not_there_is_said_in_the_askers_form(client: FlaskClient) -> None:
    page = client.get("/nowhere", headers={"Accept": "text/html"})
    assert page.status_code == 404 and "There is nothing here" in page.text
    assert client.get("/survey/api/nowhere").content_type == "application/problem+json"
    assert client.get("/nowhere", headers={"Accept": "application/json"}).is_json


def test_a_wrong_method_says_which_are_right(client: FlaskClient) -> None:
    answer = client.delete("/survey/api/things")
    assert answer.status_code == 405 and "POST" in answer.headers["Allow"]


def test_nothing_people_typed_gets_into_the_log(
    client: FlaskClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/survey/secret?q=ann@example.org")
    captured = capsys.readouterr()
    assert "InvalidTextRepresentation" in captured.err and '"path": "/survey/secret"' in captured.err
    assert "ann@example.org" not in captured.err + captured.out


def test_a_request_keeps_the_id_its_proxy_gave_it(client: FlaskClient) -> None:
    given = client.get("/survey/other", headers={"X-Request-Id": "abcdef-123456"})
    assert given.headers["X-Request-Id"] == "abcdef-123456"
    made = client.get("/survey/other", headers={"X-Request-Id": "a b\tc"})
    assert made.headers["X-Request-Id"] not in ("", "a b\tc")


@pytest.mark.parametrize("path", ["/survey/file", "/survey/api/things"])
def test_what_breaks_off_amid_its_body_is_refused(app: Flask, steps: list[str], path: str) -> None:
    said = {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": "300002"}
    for _ in range(2 * bodies.FILES):  # each gives its turn back
        reply = app.test_client().post(
            path, input_stream=io.BytesIO(b"[" + b"1," * 150_000), environ_overrides=said
        )
        assert reply.status_code == 400 and steps == []


def test_a_file_has_to_say_how_long_it_is(app: Flask, steps: list[str]) -> None:
    client = app.test_client()
    said = {"Transfer-Encoding": "chunked"}
    reply = client.post(
        "/survey/file", input_stream=io.BytesIO(b"x"), headers=said, environ_overrides={"CONTENT_LENGTH": ""}
    )
    assert reply.status_code == 411 and steps == []
    assert client.post("/survey/file", data=b"x" * 300_000).text == "300000"
