"""Fault 15: a pooler in transaction mode with few connections, killed and started again under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Literal

import psycopg2
import pytest
import urllib3

from shared.channels.sender import HANDS
from shared.clock import SystemClock
from shared.db import Database, Statement
from shared.ids import SystemIds
from shared.log import move
from shared.settings import LOGS, SERVICES
from tests.faults.conftest import PEOPLE, SEEDS, settings_for
from tests.support import trial
from tests.support.checker import check
from tests.support.history import History, Traffic
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.running import Cast, running
from tests.support.slow_provider import SlowProvider, slow_provider

# Less than the eight threads of the web, not to speak of the workers.
SIZE = 3
# Two seconds for a connection of the pool, and what a busy machine adds.
BOUND = 8.0


@pytest.fixture(
    scope="module",
    params=[(log, seed) for log in LOGS for seed in SEEDS],
    ids=lambda param: f"{param[0]}-seed{param[1]}",
)
def where(request: pytest.FixtureRequest) -> tuple[Literal["embedded", "kafka"], int]:
    """The log and the seed."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pooler(postgres: TestPostgres, where: object) -> Iterator[PgBouncer]:
    """In front of all three services' databases; the log's consumers keep connections of their own."""
    urls = FreshDatabases(postgres)
    connection = postgres.server.connect()
    with connection.cursor() as cur:
        for name in SERVICES:
            database = urls[name].rsplit("/", 1)[1]
            # What connection options cannot say through a pooler (docs/scaling.md).
            cur.execute(f"ALTER ROLE {name} IN DATABASE {database} SET timezone = 'UTC'")
            cur.execute(f"ALTER ROLE {name} IN DATABASE {database} SET statement_timeout = '30s'")
            # Longer than anybody here waits: PostgreSQL must not end for us what is stuck.
            cur.execute(
                f"ALTER ROLE {name} IN DATABASE {database} SET idle_in_transaction_session_timeout = '10min'"
            )
    connection.close()
    made = PgBouncer({name: urls[name] for name in SERVICES}, SIZE)
    made.urls["log"] = urls["log"]
    yield made.start()
    made.close()
    urls.drop()


@pytest.fixture(scope="module")
def provider(where: object) -> Iterator[SlowProvider]:
    with slow_provider() as made:
        yield made


@pytest.fixture(scope="module")
def history(
    request: pytest.FixtureRequest,
    pooler: PgBouncer,
    provider: SlowProvider,
    where: tuple[Literal["embedded", "kafka"], int],
) -> Iterator[History]:
    log, seed = where
    kafka = settings_for(request.getfixturevalue("broker")) if log == "kafka" else None
    with running(pooler.urls, mailbox_url=provider.url, log=log, kafka=kafka) as installation:
        made = History(installation, seed, cast=Cast(installation), taken=provider.messages)
        made.invite(PEOPLE)
        installation.settle()
        yield made


def _stuck(postgres: TestPostgres, history: History) -> int:
    """How many transactions are open, and nobody at work in them, for longer than a second."""
    names = [history.running.settings.database_urls[name].rsplit("/", 1)[1] for name in SERVICES]
    connection = postgres.server.connect()
    try:
        with connection.cursor() as cur:
            cur.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = ANY(%s)"
                " AND state LIKE 'idle in transaction%%' AND state_change < now() - interval '1 second'",
                (names,),
            )
            row = cur.fetchone()
            assert row is not None
            return int(row[0])
    finally:
        connection.close()


def _sender_failed(history: History) -> int:
    """How often survey's sender of mails had to start again."""
    return history.cast.others[0].output.read_text(errors="replace").count('"sender, email"')


def test_fault_15_many_share_few_connections(history: History, postgres: TestPostgres) -> None:
    errors: list[BaseException] = []
    took: list[float] = []

    def answer(part: int) -> None:
        try:
            for person in history.people[part::8]:
                began, refused = time.monotonic(), history.refused
                history.answer(person)
                if history.refused == refused:
                    took.append(time.monotonic() - began)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=answer, args=(part,)) for part in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and max(took) < 2.0 + 2.0 and not _stuck(postgres, history)
    history.running.settle()
    check(history)


def test_fault_15_a_pool_that_others_hold_is_said_in_two_seconds_and_none_waits_for_ever(
    history: History, pooler: PgBouncer, postgres: TestPostgres
) -> None:
    http, waited = urllib3.PoolManager(20, timeout=30, retries=False), list[float]()

    def answer(number: int) -> None:
        began = time.monotonic()
        reply = http.request(
            "POST",
            f"{history.running.url}/a/{history.people[0].token}",
            fields={"nonce": f"nobody-{number}", "seen": str(history.people[0].version), "score": "3"},
            encode_multipart=False,
            headers={"Accept": "application/json"},
        )
        waited.append(time.monotonic() - began)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2"), (reply.status, reply.data)

    history.running.settle()
    with ExitStack() as held:
        for _ in range(SIZE):
            connection = psycopg2.connect(pooler.urls["survey"])
            held.callback(connection.close)
            connection.cursor().execute("SELECT 1")  # and leaves its transaction open
        with ThreadPoolExecutor(16) as crowd:
            list(crowd.map(answer, range(32)))
        assert pooler.pool("survey") == SIZE
    assert max(waited) < 2.0 + 2.0
    trial.over()
    history.answer_all(revise=0)
    history.running.settle()
    history.running.wait(lambda: not _stuck(postgres, history), None, "no transaction to be stuck")
    check(history)


def test_fault_15_a_pooler_that_dies_costs_a_clear_word_and_nothing_else(
    history: History, pooler: PgBouncer, postgres: TestPostgres
) -> None:
    first, *others = history.people
    history.answer(first)
    pooler.kill()
    http = urllib3.PoolManager(timeout=30, retries=False)
    for _ in range(6):
        began = time.monotonic()
        reply = http.request(
            "POST",
            f"{history.running.url}/a/{others[0].token}",
            fields={"nonce": "a-nonce-of-nobody", "seen": str(others[0].version), "score": "3"},
            encode_multipart=False,
            headers={"Accept": "application/json"},
        )
        assert reply.status == 503 and reply.headers["Retry-After"], (reply.status, reply.data)
        assert time.monotonic() - began < BOUND
    pooler.start()
    for db in history.running.databases.values():
        db.close()  # ours, which broke as well
    for person in others:
        history.answer(person)
    history.running.settle()
    history.running.wait(lambda: not _stuck(postgres, history), None, "no transaction to be stuck")
    for process in (history.cast.web, history.cast.relay, *history.cast.consumers.values()):
        assert process.alive, process.said()
    check(history)


@pytest.mark.slow_fault
def test_fault_15_a_pooler_killed_amid_requests_leaves_nothing_half_done(
    history: History, pooler: PgBouncer, provider: SlowProvider, postgres: TestPostgres
) -> None:
    slowest, over = 0.0, threading.Event()
    http = urllib3.PoolManager(timeout=30, retries=False)

    def look() -> None:
        nonlocal slowest
        while not over.wait(0.02):
            began = time.monotonic()
            status = http.request("GET", f"{history.running.url}/a/{history.people[0].token}").status
            slowest = max(slowest, time.monotonic() - began)
            assert status in (200, 503), status

    with ThreadPoolExecutor(1) as pool, ExitStack() as crowd:
        looking = pool.submit(look)
        crowd.callback(over.set)
        answering = [
            crowd.enter_context(Traffic(history, history.people[part::3], patient=True)) for part in range(3)
        ]
        for _ in range(3):
            answering[0].wait_for_more()
            failed = _sender_failed(history)
            with provider.holds(history, 20):
                refused = history.refused
                pooler.kill()
                history.running.wait(lambda: history.refused > refused, None, "a clear word")  # noqa: B023
            # What came of the messages in its hands it cannot note any more.
            history.running.wait(lambda: _sender_failed(history) > failed, None, "it to give up")  # noqa: B023
            pooler.start()
            trial.over()
            for one in answering:
                one.wait_for_more()
            for db in history.running.databases.values():
                db.close()
    looking.result()
    assert slowest < BOUND
    history.running.settle()
    history.told(3 * HANDS)
    history.collect()
    history.running.wait(lambda: not _stuck(postgres, history), None, "no transaction to be stuck")
    check(history)


def test_a_move_of_the_log_through_a_pooler_leaves_no_lock_with_the_pooler(
    history: History, postgres: TestPostgres
) -> None:
    here = history.running.settings.log or "embedded"
    assert "already" in history.running.command("log", "move", "--to", here).stdout
    connection = postgres.server.connect()
    with connection.cursor() as cur:
        cur.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s", (move.LOCK,))
        assert cur.fetchone() == (0,)
    connection.close()


@pytest.mark.parametrize(("way", "prepared"), [("direct", 1), ("pooled", 0)])
def test_only_a_direct_connection_prepares_statements(pooler: PgBouncer, way: str, prepared: int) -> None:
    url = (pooler.direct if way == "direct" else pooler.urls)["survey"]
    db = Database(url, SystemClock(), SystemIds())
    with db.transaction() as tx:
        assert tx.value(Statement("SELECT %(n)s::int + 1"), {"n": 1}) == 2
        found = tx.value("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'hearback%%'", ())
    db.close()
    assert found == prepared
