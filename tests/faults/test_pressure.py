"""A slow database: who asks is told within two seconds, nothing queues without end, and nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psutil
import pytest
import urllib3

from shared.clock import SystemClock
from shared.errors import Unavailable
from shared.ids import SystemIds
from shared.web import bodies, patience
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


def test_fault_15_bodies_that_never_come_keep_nobody_from_being_served(history: History) -> None:
    url = urlsplit(history.running.url)
    head = (
        f"POST /a/{history.people[0].token} HTTP/1.1",
        f"Host: {url.netloc}",
        "Content-Length: 300",
        "Content-Type: application/x-www-form-urlencoded",
        "Accept: text/html",
    )
    history.answer_all()
    http = urllib3.PoolManager(timeout=30, retries=False)

    def pages_are_served() -> None:
        for person in history.people:
            began = time.monotonic()
            assert http.request("GET", f"{history.running.url}/a/{person.token}").status == 200
            assert time.monotonic() - began < BOUND

    with contextlib.ExitStack() as stack:

        def stall(count: int) -> None:
            for _ in range(count):
                line = stack.enter_context(socket.create_connection((url.hostname, url.port)))
                line.sendall("\r\n".join((*head, "", "score=")).encode())

        # More than there are places for requests at work in the database.
        stall(bodies.WAITING - 2)
        refused = history.refused
        pages_are_served()
        for person in history.people:
            history.answer(person)
        assert history.refused == refused
        # More than are waited for: then nothing is taken in, in two seconds, but pages are still there.
        stall(6 * bodies.WAITING)
        time.sleep(2 * bodies.TURN_SECONDS + 1.0)
        pages_are_served()
        began = time.monotonic()
        form = history.form(history.people[0])
        answered = http.request(
            "POST", f"{url.geturl()}/a/{history.people[0].token}", fields=form, encode_multipart=False
        )
        assert answered.status == 503 and "Retry-After" in answered.headers
        assert time.monotonic() - began < BOUND
    history.answer_all()
    history.running.settle()
    check(history)


@pytest.mark.parametrize("chunked", [False, True], ids=["of_a_length", "in_pieces"])
def test_an_answer_that_breaks_off_is_none(history: History, chunked: bool) -> None:
    url, person = urlsplit(history.running.url), history.people[0]
    history.answer(person, 3, "")
    form = urlencode(history.form(person, 10, "")).encode()
    assert form.endswith(b"score=10&comment=")
    sent = form.removesuffix(b"0&comment=")
    head = (
        f"POST /a/{person.token} HTTP/1.1",
        f"Host: {url.netloc}",
        "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(form)}",
        "Content-Type: application/x-www-form-urlencoded",
    )
    if chunked:  # a whole piece, and no more
        sent = b"%x\r\n%s\r\n" % (len(sent), sent)
    with socket.create_connection((url.hostname, url.port)) as line:
        line.sendall("\r\n".join((*head, "", "")).encode() + sent)
        line.shutdown(socket.SHUT_WR)
        line.settimeout(10)
        with contextlib.suppress(ConnectionError):
            assert not line.recv(100).startswith(b"HTTP/1.1 2")
    history.answer_all()
    history.running.settle()
    check(history)
    with history.running.db("survey").transaction() as tx:
        kept = tx.all(
            "SELECT v.score FROM response_version v JOIN response r ON r.id = v.response_id"
            " WHERE r.customer_id = %s",
            (person.id,),
        )
    assert len(kept) == len({ack.version for ack in history.acks if ack.person is person})


def test_a_client_that_is_gone_without_a_word_is_noticed(history: History) -> None:
    url = urlsplit(history.running.url)
    with socket.create_connection((url.hostname, url.port)) as line:
        here = line.getsockname()

        def timed() -> bool:
            # The server's end of it, and the timer that the kernel has for it (proc(5): 02 is keepalive).
            rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            there = f"0100007F:{here[1]:04X}"
            return any(row[2] == there and row[5].startswith("02:") for row in rows)

        history.running.wait(timed, None, "the kernel to look after the client")
