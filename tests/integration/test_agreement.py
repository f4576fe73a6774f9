"""What services keep of each other's is compared row by row with what its owners have."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from shared.agreement import besides, differences
from shared.clock import SystemClock
from shared.db import Database
from shared.ids import SystemIds
from shared.settings import SERVICES
from tests.support.postgres import FreshDatabases, TestPostgres


@pytest.fixture
def databases(postgres: TestPostgres) -> Iterator[dict[str, Database]]:
    urls = FreshDatabases(postgres)
    found = {name: Database(urls[name], SystemClock(), SystemIds()) for name in SERVICES}
    yield found
    for db in found.values():
        db.close()
    urls.drop()


def task(databases: dict[str, Database], version: int, *services: str) -> str:
    """A task, as these services know it."""
    id = str(uuid4())
    for service in services:
        heard(databases, service, id, version)
    return id


def heard(databases: dict[str, Database], service: str, id: str, version: int) -> None:
    table, columns, values = {
        "followup": ("task", "customer_id, state, opened_at, due_at, lowest_score, changed_at", _ROW),
        "reporting": ("task", "state, opened_at, due_at", "'open', now(), now()"),
        "survey": ("task_replica", "data", "'{}'"),
    }[service]
    with databases[service].transaction() as tx:
        tx.execute(f"DELETE FROM {table} WHERE id = %s", (id,))
        tx.execute(f"INSERT INTO {table} (id, version, {columns}) VALUES (%s, %s, {values})", (id, version))


_ROW = "gen_random_uuid(), 'withdrawn', now(), now(), 1, now()"


def test_what_is_lacking_old_or_nobodys_is_found_at_whoever_keeps_it(databases: dict[str, Database]) -> None:
    task(databases, 1, *SERVICES)
    assert differences(databases) == []
    unheard = task(databases, 1, "followup", "survey")
    old = task(databases, 1, *SERVICES)
    heard(databases, "followup", old, 2)
    ghost = task(databases, 3, "reporting")
    newer = task(databases, 1, *SERVICES)
    heard(databases, "survey", newer, 2)
    at_survey, at_reporting = differences(databases)
    assert at_survey.lacks.keys() == {old} and at_survey.besides == {newer}
    assert at_reporting.lacks.keys() == {unheard, old} and at_reporting.besides == {ghost}
    assert str(at_reporting) == (
        "reporting lacks 2 of followup's tasks and has 1 tasks that followup does not have so"
    )
    assert [one.keeper for one in differences(databases, ["survey"])] == ["survey"]
    assert besides(databases, "followup", "reporting") == {"tasks": 1}


def test_what_was_only_under_way_is_no_difference(databases: dict[str, Database]) -> None:
    under_way = task(databases, 2, "followup", "survey")
    erased = task(databases, 1, "reporting")
    lost = task(databases, 1, "followup", "survey")
    arrivals = []

    def arrive() -> None:
        arrivals.append(1)
        heard(databases, "reporting", under_way, 2)
        with databases["reporting"].transaction() as tx:
            tx.execute("DELETE FROM task WHERE id = %s", (erased,))

    [left] = differences(databases, arrive=arrive)
    assert left.lacks.keys() == {lost} and not left.besides and len(arrivals) == 1
    heard(databases, "reporting", lost, 1)
    assert differences(databases, arrive=arrive) == [] and len(arrivals) == 1
