"""Tables are brought to their version once, and newer ones are left alone."""

from __future__ import annotations

import threading

import psycopg2
import pytest

from shared.errors import Unavailable
from shared.migrate import NewerDatabase, head, migrate, version
from tests.support.postgres import TestPostgres


@pytest.fixture
def url(postgres: TestPostgres) -> str:
    return postgres.empty("log")


def test_migrates_once(url: str) -> None:
    assert version("log", url) is None
    assert migrate("log", url)
    assert version("log", url) == head("log")
    assert not migrate("log", url)


def test_two_at_once_do_it_once(url: str) -> None:
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(migrate("log", url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, False, True]


def test_refuses_tables_of_a_newer_version(url: str) -> None:
    migrate("log", url)
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cur:
        cur.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(NewerDatabase, match="9999.*newer"):
        migrate("log", url)


def test_says_that_nobody_answers() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        migrate("log", "postgresql://log@127.0.0.1:1/log")


@pytest.mark.parametrize("service", ["survey", "followup", "reporting", "log"])
def test_every_role_reaches_its_own_database_only(postgres: TestPostgres, service: str) -> None:
    psycopg2.connect(postgres.server.url(service)).close()
    for other in {"survey", "followup", "reporting", "log", "postgres"} - {service}:
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            psycopg2.connect(postgres.server.url(service, other))
