"""Fault 21: reporting filled again from zero while answers come, even when its database was lost."""

from __future__ import annotations

from typing import Any

import pytest

from shared.logins import create_database
from tests.support.checker import check
from tests.support.history import History, Traffic
from tests.support.postgres import TestPostgres

pytestmark = pytest.mark.slow_fault

_SHOWN = (
    "nps_day", "funnel_day", "customer", "response", "invitation", "skip", "unconfirmed", "task",
    "task_response", "delivery", "change", "notice",
)  # fmt: skip


def shown(history: History) -> dict[str, list[Any]]:
    """Reporting's figures and what they are made of, without the time at which it heard of each."""
    found = {}
    with history.running.db("reporting").transaction() as tx:
        for table in _SHOWN:
            found[table] = sorted(str(sorted(row.items())) for row in tx.all(f"SELECT * FROM {table}"))
    return found


def test_fault_21_reporting_is_filled_again_under_traffic(history: History) -> None:
    history.answer_all()
    history.running.settle()
    live = shown(history)
    history.running.command("rebuild", "reporting")
    assert shown(history) == live
    with Traffic(history) as traffic:
        traffic.wait_for_more()
        history.running.command("rebuild", "reporting", "--no-wait")
        traffic.wait_for_more()
    history.running.settle()
    check(history)
    live = shown(history)
    history.running.command("rebuild", "reporting")
    assert shown(history) == live
    check(history)


def test_fault_21_reporting_is_filled_again_after_its_database_was_lost(
    history: History, postgres: TestPostgres
) -> None:
    history.running.databases.pop("reporting").close()
    url = history.running.settings.database_urls["reporting"]
    with Traffic(history) as traffic:
        postgres.drop(url)
        traffic.wait_for_more()
        connection = postgres.server.connect()
        with connection.cursor() as cur:
            create_database(cur, url.rsplit("/", 1)[1], "reporting")
        connection.close()
        history.running.command("migrate")
        # A process that found its tables gone has ended itself; whoever keeps it alive starts another.
        history.cast.consumers["reporting"].stop()
        history.cast.consumer_again("reporting")
        history.running.command("rebuild", "reporting")
        traffic.wait_for_more()
    history.running.settle()
    check(history)
