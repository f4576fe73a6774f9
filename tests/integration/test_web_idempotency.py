"""A write with an Idempotency-Key happens once, and its repetition gets the same reply."""

# flask-smorest's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_smorest import Blueprint
from marshmallow import Schema, fields

from shared.clock import ManualClock
from shared.errors import Conflict
from shared.ids import SystemIds, hash_token
from shared.settings import Settings
from shared.web import Service, allow, create_service, finish, idempotent, service

HEADERS = {"Authorization": "Bearer key-of-the-tests"}


class Thing(Schema):
    name = fields.String(required=True)
    number = fields.Integer(dump_only=True)


@pytest.fixture
def app(settings: Settings, clock: ManualClock, ids: SystemIds) -> Flask:
    app = create_service("survey", settings, clock=clock, ids=ids, package="services.survey")
    api = Blueprint("things", "things", url_prefix="/survey/api/things")

    @api.route("", methods=["POST"])
    @allow(scope="things:write")
    @idempotent
    @api.arguments(Thing)
    @api.response(201, Thing)
    def make(given: dict[str, Any]) -> dict[str, Any]:
        with service().db.transaction() as tx:
            tx.execute("INSERT INTO thing (name) VALUES (%s)", (given["name"],))
        if given["name"] == "slow":
            time.sleep(0.3)
        with service().db.transaction() as tx:
            number = tx.value("SELECT count(*) FROM thing")
        if given["name"] == "late":
            raise Conflict("Too late.")
        if given["name"] == "caught":
            try:
                with service().db.transaction() as tx:
                    tx.execute("INSERT INTO thing (name) VALUES ('half')")
                    raise Conflict("Only this part.")
            except Conflict:
                pass
        return {"name": given["name"], "number": number}

    app.extensions["hearback_api"].register_blueprint(api)
    here: Service = app.extensions["hearback"]
    with here.db.transaction() as tx:
        tx.execute("CREATE TABLE thing (name text)")
        tx.execute(
            "INSERT INTO apikey (id, version, name, hash, scopes) VALUES (%s, 1, 'crm', %s, %s)",
            ("01890000-0000-7000-8000-000000000002", hash_token("key-of-the-tests"), ["things:write"]),
        )
    return finish(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def names(app: Flask) -> Callable[[], list[str]]:
    here: Service = app.extensions["hearback"]

    def read() -> list[str]:
        with here.db.transaction() as tx:
            return [row["name"] for row in tx.all("SELECT name FROM thing ORDER BY name")]

    return read


def post(client: FlaskClient, name: str, key: str | None = None) -> Any:
    headers = HEADERS | ({"Idempotency-Key": key} if key else {})
    return client.post("/survey/api/things", json={"name": name}, headers=headers)


def test_the_same_key_does_the_work_once_and_gets_the_same_reply(
    client: FlaskClient, names: Callable[[], list[str]]
) -> None:
    first, second = post(client, "one", "k1"), post(client, "one", "k1")
    assert first.status_code == second.status_code == 201
    assert first.json == second.json == {"name": "one", "number": 1}
    assert second.headers["Idempotency-Replayed"] == "true" and "Idempotency-Replayed" not in first.headers
    assert post(client, "one", "k2").json["number"] == 2
    assert post(client, "one").json["number"] == 3
    assert names() == ["one"] * 3


def test_the_same_key_with_another_body_is_refused(client: FlaskClient) -> None:
    post(client, "one", "k1")
    answer = post(client, "two", "k1")
    assert answer.status_code == 409 and answer.json["slug"] == "idempotency-key-reused"


def test_an_error_keeps_neither_work_nor_reply(client: FlaskClient, names: Callable[[], list[str]]) -> None:
    assert post(client, "late", "k1").status_code == 409
    assert post(client, "", "k1").status_code == 201
    assert (
        client.post("/survey/api/things", json={}, headers=HEADERS | {"Idempotency-Key": "k9"}).status_code
        == 422
    )
    assert names() == [""]


def test_a_part_that_is_given_up_takes_only_itself_back(
    client: FlaskClient, names: Callable[[], list[str]]
) -> None:
    assert post(client, "caught", "k1").status_code == 201
    assert names() == ["caught"]


def test_two_at_once_wait_for_each_other(app: Flask, names: Callable[[], list[str]]) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(post(app.test_client(), "slow", "k1"))) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [201] * 3
    assert names() == ["slow"]


def test_a_key_that_is_none_is_refused(client: FlaskClient) -> None:
    assert post(client, "one", "with space").status_code == 422


def test_a_key_is_kept_for_two_days(client: FlaskClient, clock: ManualClock) -> None:
    post(client, "one", "k1")
    clock.advance(timedelta(days=3))
    post(client, "two", "k2")
    assert "Idempotency-Replayed" not in post(client, "one", "k1").headers
