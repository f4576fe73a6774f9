"""Alive, ready and measured: what operators and their machines ask of a web process."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from shared.clock import ManualClock
from shared.ids import SystemIds, hash_token
from shared.settings import Settings
from shared.web import Service, create_service, finish


@pytest.fixture
def app(settings: Settings, clock: ManualClock, ids: SystemIds) -> Flask:
    return finish(create_service("survey", settings, clock=clock, ids=ids, package="services.survey"))


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def test_a_process_with_its_database_is_ready_and_tells_of_the_log(client: FlaskClient) -> None:
    answer = client.get("/survey/readyz")
    assert answer.status_code == 200 and answer.json
    assert answer.json["status"] == "ready" and answer.json["database"] == "ok"
    assert answer.json["outbox"] == 0 and answer.json["parked"] == 0 and "status" in answer.json["log"]


def test_the_logs_trouble_does_not_make_web_unready(
    settings: Settings, clock: ManualClock, ids: SystemIds
) -> None:
    urls = {"survey": settings.database_urls["survey"], "log": "postgresql://nobody@127.0.0.1:1/none"}
    lame = Settings(home=settings.home, secret=settings.secret, database_urls=urls)
    client = finish(
        create_service("survey", lame, clock=clock, ids=ids, package="services.survey")
    ).test_client()
    answer = client.get("/survey/readyz")
    assert answer.status_code == 200 and answer.json and answer.json["log"]["status"] != "ok"


def test_without_its_database_a_process_lives_but_is_not_ready() -> None:
    urls = dict.fromkeys(("survey", "log"), "postgresql://nobody@127.0.0.1:1/none")
    settings = Settings(home=Path("/nowhere"), secret="s" * 40, database_urls=urls)
    client = finish(create_service("survey", settings, package="services.survey")).test_client()
    assert client.get("/survey/healthz").status_code == 200
    answer = client.get("/survey/readyz")
    assert (
        answer.status_code == 503
        and answer.json
        and answer.json["status"] == "unready"
        and answer.headers["Retry-After"] == "2"
    )


def test_newer_tables_serve_as_long_as_nothing_was_taken_away(app: Flask, client: FlaskClient) -> None:
    here: Service = app.extensions["hearback"]
    with here.db.transaction() as tx:
        tx.execute("UPDATE alembic_version SET version_num = '9999'")
    assert client.get("/survey/readyz").status_code == 200
    with here.db.transaction() as tx:
        tx.execute("INSERT INTO schema_floor (oldest) VALUES ('9999')")
    answer = client.get("/survey/readyz")
    assert answer.status_code == 503 and answer.json and "was made by a newer one" in answer.json["problem"]


def test_older_tables_are_not_ready_and_the_body_says_what_to_do(app: Flask, client: FlaskClient) -> None:
    here: Service = app.extensions["hearback"]
    with here.db.transaction() as tx:
        tx.execute("UPDATE alembic_version SET version_num = '0001'")
    answer = client.get("/survey/readyz")
    assert answer.status_code == 503 and answer.json and "hearback migrate" in answer.json["problem"]
    with here.db.transaction() as tx:
        tx.execute("DROP TABLE alembic_version")
    answer = client.get("/survey/readyz")
    assert answer.status_code == 503 and answer.json and "no tables yet" in answer.json["problem"]


def test_counters_are_for_this_machine_and_for_keys(app: Flask, client: FlaskClient) -> None:
    client.get("/survey/healthz")
    text = client.get("/survey/metrics").text
    assert (
        'hearback_http_requests_total{method="GET",route="/survey/healthz",service="survey",status="200"} 1.0'
        in text
    )
    assert 'hearback_outbox_events{service="survey"} 0.0' in text
    elsewhere = {"REMOTE_ADDR": "10.0.0.9"}
    assert client.get("/survey/metrics", environ_overrides=elsewhere).status_code == 401
    proxied = {"X-Forwarded-For": "10.0.0.9"}
    assert client.get("/survey/metrics", headers=proxied).status_code == 401
    rebound = {"Host": "evil.example"}
    assert client.get("/survey/metrics", headers=rebound).status_code == 401
    here: Service = app.extensions["hearback"]
    with here.db.transaction() as tx:
        tx.execute(
            "INSERT INTO apikey (id, version, name, hash, scopes) VALUES (%s, 1, 'prometheus', %s, %s)",
            ("01890000-0000-7000-8000-000000000003", hash_token("watch"), ["metrics:read"]),
        )
    key = {"Authorization": "Bearer watch"}
    assert client.get("/survey/metrics", headers=key, environ_overrides=elsewhere).status_code == 200


def test_the_api_describes_itself(client: FlaskClient) -> None:
    answer = client.get("/survey/api/openapi.json")
    assert answer.status_code == 200 and answer.json and answer.json["openapi"].startswith("3.1")
