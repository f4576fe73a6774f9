"""Fault 24: each role is asked to end (SIGTERM) amid its work; it ends that first, and says all went well."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlencode

import pytest

from tests.faults.conftest import SEEDS
from tests.support.checker import check, sent_twice
from tests.support.history import History, Traffic
from tests.support.running import Process, Running

_EMBEDDED = pytest.mark.parametrize(
    "history", [("embedded", one) for one in SEEDS], ids=lambda one: f"{one[0]}-seed{one[1]}", indirect=True
)
_FORM = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}


@contextmanager
def _held(
    history: History,
    service: str,
    lock: str,
    begin: Callable[[], object],
    who: str,
    count: int = 1,
    doing: str = "",
) -> Iterator[None]:
    """Holds what `lock` locks in a database, from before `begin` to the end of the block.

    The block begins when so many transactions (`count`) of `who` have come so far that they wait for it, with
    `doing` in the statement they are at.
    """
    db = history.running.db(service)

    def waiting() -> bool:
        with db.transaction() as other:
            found = other.value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = %s AND wait_event_type = 'Lock' AND strpos(query, %s) > 0",
                (who, doing),
            )
        return bool(found >= count)

    with db.transaction() as tx:
        tx.execute(lock)
        begin()
        history.running.wait(waiting, None, f"{who} to be amid its work")
        yield


@contextmanager
def _crowd(history: History, parts: int = 2) -> Iterator[None]:
    """Everybody answers all the time, some at once; whoever is not heard tries again."""
    with ExitStack() as crowd:
        for part in range(parts):
            crowd.enter_context(Traffic(history, history.people[part::parts], patient=True))
        yield


def _ended(process: Process) -> None:
    process.popen.wait(25)
    assert process.popen.returncode == 0, process.said()
    assert "Traceback" not in process.output.read_text(errors="replace")


def _rows(history: History, service: str, what: str) -> int:
    with history.running.db(service).transaction() as tx:
        return int(tx.value(f"SELECT count(*) FROM {what}"))


def _listens(installation: Running) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", installation.settings.port), 1).close()
        return True
    return False


@_EMBEDDED
def test_fault_24_web_answers_what_it_took_and_takes_nothing_more(history: History) -> None:
    installation, web = history.running, history.cast.web
    # More than its threads: of some it only has the bytes, and those count as well.
    people = history.people[:12]
    forms = [history.form(person) for person in people]
    kept_open = [http.client.HTTPConnection("127.0.0.1", installation.settings.port, 25) for _ in range(13)]
    for connection in kept_open:
        connection.request("GET", "/survey/healthz")
        assert connection.getresponse().read()
    *busy, idle = kept_open

    def post() -> None:
        for connection, person, form in zip(busy, people, forms, strict=True):
            connection.request("POST", f"/a/{person.token}", urlencode(form), _FORM)

    with _held(history, "survey", "LOCK TABLE response_version IN EXCLUSIVE MODE", post, "survey-web", 4):
        web.popen.terminate()
        installation.wait(lambda: not _listens(installation), None, "the web to take nothing more")
    for connection, person, form in zip(busy, people, forms, strict=True):
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        history.acknowledged(person, form, json.loads(reply.read()))
    # Who only kept a connection is told at once that there is nobody any more.
    with pytest.raises((http.client.HTTPException, OSError)):
        idle.request("GET", "/survey/healthz")
        idle.getresponse()
    _ended(web)
    history.cast.web = installation.web()
    installation.settle()
    check(history)


@_EMBEDDED
def test_fault_24_web_that_has_not_begun_to_serve_ends_as_well(history: History) -> None:
    history.cast.web.stop()
    for worker in ("worker-1", "worker-2"):
        web = history.running.web_begins()

        def begun(web: Process = web, said: str = f"Spawning {worker}") -> bool:
            return said in web.output.read_text()

        history.running.wait(begun, web, "a worker to begin")
        web.popen.terminate()
        _ended(web)
        # One that does not listen is killed in the end, amid what it serves.
        assert "Killing" not in web.output.read_text()
    history.cast.web = history.running.web()


@pytest.mark.slow_fault
def test_fault_24_web_ends_again_and_again_under_load(history: History) -> None:
    with _crowd(history):
        for _ in range(3):
            before = len(history.acks)
            history.running.wait(lambda: len(history.acks) > before + 20, None, "answers")  # noqa: B023
            history.cast.web.popen.terminate()
            _ended(history.cast.web)
            history.cast.web = history.running.web()
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
@pytest.mark.parametrize("service", ["survey", "followup"])
def test_fault_24_a_relay_ends_its_batch(history: History, service: str) -> None:
    installation, cast = history.running, history.cast
    twice = sent_twice(history)

    def waiting() -> set[int]:
        with installation.db(service).transaction() as tx:
            return {row["id"] for row in tx.all("SELECT id FROM outbox")}

    with _crowd(history):
        for _ in range(3):
            # Followup's is in one process with its sender and clock, which end as well.
            relay = cast.relay if service == "survey" else cast.others[1]
            relay.freeze()
            installation.wait(waiting, None, "events")
            # It reads them, has the log confirm them, and can then not delete them.
            with _held(history, service, "SELECT FROM outbox FOR UPDATE", relay.thaw, f"{service}-worker"):
                held = waiting()
                relay.popen.terminate()
            _ended(relay)
            assert held - waiting(), "nothing of its batch was deleted"
            if service == "survey":
                cast.relay_again()
            else:
                cast.followup_again()
    installation.settle()
    check(history)
    assert sent_twice(history) == twice


@pytest.mark.slow_fault
@pytest.mark.parametrize("service", ["survey", "followup", "reporting"])
def test_fault_24_a_consumer_ends_its_batch(history: History, service: str) -> None:
    cast = history.cast
    with _crowd(history):
        for _ in range(2):
            taken = "LOCK TABLE inbox IN EXCLUSIVE MODE"
            begun = _rows(history, service, "inbox")

            def at_work(begun: int = begun) -> bool:
                return _rows(history, service, "inbox") > begun

            # Past its start: then it makes the partitions of the coming days, and would wait as well.
            history.running.wait(at_work, cast.consumers[service], "it to be at work")
            with _held(history, service, taken, lambda: None, f"{service}-worker", doing="INSERT INTO inbox"):
                noted = _rows(history, service, "inbox")
                cast.consumers[service].popen.terminate()
            _ended(cast.consumers[service])
            assert _rows(history, service, "inbox") > noted, "its batch was dropped"
            cast.consumer_again(service)
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_fault_24_a_clock_ends_its_step_and_the_ask_goes_on(history: History) -> None:
    def begin() -> None:
        history.ask(20)

    # The sender, in the same process, has nothing to send.
    with _held(history, "survey", "LOCK TABLE invitation IN EXCLUSIVE MODE", begin, "survey-worker"):
        history.cast.others[0].popen.terminate()
    _ended(history.cast.others[0])
    assert not _rows(history, "survey", "ask_run WHERE state = 'running'")
    assert _rows(history, "survey", "invitation") == len(history.people), "not all were asked"
    history.cast.others[0] = history.running.role("survey", "sender", "clock")
    history.collect()
    history.answer_all()
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_fault_24_a_sender_ends_its_hand_overs_and_leaves_none_uncertain(history: History) -> None:
    def begin() -> None:
        history.ask(20)

    with _held(history, "log", "LOCK TABLE mailbox.message IN EXCLUSIVE MODE", begin, "mailbox-web", 4):
        history.cast.others[0].popen.terminate()
    _ended(history.cast.others[0])
    with history.running.db("survey").transaction() as tx:
        states = {row["state"] for row in tx.all("SELECT DISTINCT state FROM delivery")}
    assert states <= {"queued", "handed", "delivered"}, states
    history.cast.others[0] = history.running.role("survey", "sender", "clock")
    history.collect()
    history.answer_all()
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_fault_24_followups_sender_ends_its_hand_overs_and_leaves_none_uncertain(history: History) -> None:
    history.answer_all()
    history.running.settle()
    followup = history.running.db("followup")

    def begin() -> None:
        history.publish("Saturdays", 20)

    with _held(history, "log", "LOCK TABLE mailbox.message IN EXCLUSIVE MODE", begin, "mailbox-web", 4):
        history.cast.others[1].popen.terminate()
    _ended(history.cast.others[1])
    with followup.transaction() as tx:
        states = {row["state"] for row in tx.all("SELECT DISTINCT state FROM delivery")}
    assert states <= {"queued", "handed", "delivered"}, states
    history.cast.followup_again()

    def told() -> bool:
        with followup.transaction() as tx:
            return {row["state"] for row in tx.all("SELECT DISTINCT state FROM notice")} == {"sent"}

    history.running.wait(told, None, "every notice to be sent")
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_fault_24_followups_clock_ends_its_escalations(history: History) -> None:
    history.answer_all()
    history.running.settle()
    followup = history.running.db("followup")
    overdue = (
        "LOCK TABLE task IN EXCLUSIVE MODE;"
        " UPDATE task SET call_by = now() - interval '1 hour', remind_at = NULL WHERE state = 'open'"
    )
    # Its reminders wait for the same, and end without a word of these.
    with _held(history, "followup", overdue, lambda: None, "followup-worker", doing="escalated_at"):
        history.cast.others[1].popen.terminate()
    _ended(history.cast.others[1])
    assert _rows(history, "followup", "task_entry WHERE kind = 'escalated'"), "its step was dropped"
    history.cast.followup_again()

    def late() -> int:
        with followup.transaction() as tx:
            return int(
                tx.value(
                    "SELECT count(*) FROM task WHERE state = 'open' AND call_by < %s"
                    " AND escalated_at IS NULL",
                    (tx.now,),
                )
            )

    history.running.wait(lambda: not late(), None, "every late task to be told")
    history.running.settle()
    with followup.transaction() as tx:
        times = tx.all("SELECT task_id, count(*) AS n FROM task_entry WHERE kind = 'escalated' GROUP BY 1")
    assert times and {row["n"] for row in times} == {1}, times
    check(history)
