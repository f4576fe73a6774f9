"""A slow database: who asks is told within two seconds, nothing queues without end, and nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import urllib3

from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.ids import SystemIds
from shared.web import patience
from shared.web.service import WebDatabase
from tests.faults.conftest import history_on
from tests.support.checker import check
from tests.support.history import History
from tests.support.postgres import TestPostgres

CLIENTS = 200
# Two seconds, and what a busy machine with two hundred clients adds.
BOUND = 2.0 + 2.0


@pytest.fixture(scope="module")
def history(postgres: TestPostgres) -> Iterator[History]:
    with history_on(postgres, 1, "embedded") as made:
        yield made


@contextlib.contextmanager
def locked(history: History, postgres: TestPostgres) -> Iterator[None]:
    """Somebody has locked the table of answers, and takes their time."""
    with history.running.db("survey").transaction() as tx:
        tx.execute("LOCK TABLE response IN ACCESS EXCLUSIVE MODE")
        yield


@contextlib.contextmanager
def frozen(history: History, postgres: TestPostgres) -> Iterator[None]:
    """PostgreSQL stands still: it keeps its connections, accepts more, and says nothing."""
    connection = history.running.db("survey").connect()
    postmaster = psutil.Process(connection.info.backend_pid).parent()
    connection.close()
    assert postmaster is not None
    processes = [postmaster, *postmaster.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # a connection that was being made
                process.resume()


@pytest.mark.parametrize("slow", [locked, frozen])
def test_fault_15_two_hundred_clients_of_a_slow_database_are_told_so_in_two_seconds(
    history: History,
    postgres: TestPostgres,
    slow: Callable[[History, TestPostgres], contextlib.AbstractContextManager[None]],
) -> None:
    http = urllib3.PoolManager(maxsize=CLIENTS, timeout=30, retries=False)
    history.answer_all(revise=0)
    people = list(itertools.islice(itertools.cycle(history.people), CLIENTS))

    def try_to_answer(number: int) -> tuple[int, str | None, float]:
        began = time.monotonic()
        reply = http.request(
            "POST",
            f"{history.running.url}/a/{people[number].token}",
            fields={"nonce": f"a-nonce-of-{number}", "seen": str(people[number].version), "score": "3"},
            encode_multipart=False,
            headers={"Accept": "application/json"},
        )
        return reply.status, reply.headers.get("Retry-After"), time.monotonic() - began

    with slow(history, postgres), ThreadPoolExecutor(CLIENTS) as pool:
        for _ in range(2):
            replies = list(pool.map(try_to_answer, range(CLIENTS)))
            assert {(status, after) for status, after, _ in replies} == {(503, "2")}, replies
            assert max(seconds for _, _, seconds in replies) < BOUND, sorted(replies, key=lambda one: one[2])
    history.answer_all()
    history.running.settle()
    check(history)


def test_fault_15_staff_are_told_of_a_frozen_database_as_soon_though_they_may_wait_longer(
    history: History, postgres: TestPostgres
) -> None:
    db = WebDatabase(history.running.settings.database_urls["survey"], SystemClock(), SystemIds())
    patience.for_staff.set(True)
    try:
        with db.transaction() as tx:
            tx.execute("SELECT pg_sleep(%s)", (2 * patience.ASK_SECONDS,))  # slow, and there
        began = time.monotonic()
        with frozen(history, postgres):
            for _ in range(2):  # with a connection, and without one
                with pytest.raises(Unavailable), db.transaction() as tx:
                    tx.execute("SELECT 1")
            assert time.monotonic() - began < 2 * BOUND
    finally:
        patience.for_staff.set(False)
        db.close()
