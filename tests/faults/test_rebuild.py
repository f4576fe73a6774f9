"""Fault 21: reporting filled again from zero while answers come, even when its database was lost."""

from __future__ import annotations

from typing import Any

import pytest

from services.reporting.handlers import GATE
from services.survey.commands import erase
from services.survey.edge import opt_out_fingerprints
from shared.logins import create_database
from tests.support.checker import check
from tests.support.history import History, Person, Traffic
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


def all_sorts(history: History) -> None:
    """Everybody answers and is told of a change; one more is asked, clicks on a score and says no more, while
    the others were asked too lately. One is erased.
    """
    installation = history.running
    history.answer_all()
    installation.settle()
    history.publish("Saturdays")
    history.invite(1)
    silent = history.people[-1]
    history.http.request("GET", f"{installation.url}/a/{silent.token}?s=2")
    with installation.db("survey").transaction() as tx:
        assert tx.execute("UPDATE click SET at = at - interval '1 hour' WHERE kind = 'get'") == 1

    def told() -> bool:
        with installation.db("reporting").transaction() as tx:
            return bool(tx.value("SELECT count(*) FROM unconfirmed"))

    installation.wait(told, None, "the click to be told of")
    forget(history, history.people[0])
    installation.settle()


def forget(history: History, person: Person) -> None:
    """They are erased."""
    with history.running.db("survey").transaction() as tx:
        assert erase.erase(tx, person.id, opt_out_fingerprints(history.running.settings))
    history.forget(person)


def spoil(history: History) -> None:
    """Something is missing in each table, answers are others than were given, and a figure counts nobody."""
    with history.running.db("reporting").transaction() as tx:
        tx.execute("SELECT pg_advisory_xact_lock(%s)", (GATE,))
        for table in _SHOWN:
            tx.execute(f"DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} LIMIT 1)")
        tx.execute("UPDATE response SET score = 11, version = version + 1000 WHERE version > 0")
        tx.execute("INSERT INTO nps_day VALUES ('2001-01-01', gen_random_uuid(), 'nowhere', 7)")


def test_fault_21_reporting_is_filled_again_under_traffic(history: History) -> None:
    all_sorts(history)
    check(history)
    live = shown(history)
    assert all(live.values()), f"nothing to compare: {[table for table, rows in live.items() if not rows]}"
    spoil(history)
    history.running.command("rebuild", "reporting")
    assert shown(history) == live
    silent, erased = history.people[-1], history.people[0]
    with Traffic(history, [one for one in history.people if one not in (silent, erased)]) as traffic:
        traffic.wait_for_more()
        spoil(history)
        history.running.command("rebuild", "reporting", "--no-wait")
        forget(history, erased)
        traffic.wait_for_more()
    history.running.settle()
    check(history)
    live = shown(history)
    spoil(history)
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
