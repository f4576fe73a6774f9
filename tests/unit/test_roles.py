"""Roles loop, fail, start again and report."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3

import shared.roles
from shared.clock import SystemClock
from shared.db import Database
from shared.health_port import PortTaken, health_port
from shared.ids import SystemIds
from shared.roles import Health, RoleContext, Worker, brief, every, health, read_report, report_path, together
from shared.settings import BadSettings, Settings
from tests.support.running import free_port


@pytest.fixture
def context(tmp_path: Path) -> RoleContext:
    settings = Settings(home=tmp_path, secret="x" * 32)
    clock, ids = SystemClock(), SystemIds()
    return RoleContext(settings, "survey", clock, ids, Database("postgresql://nowhere", clock, ids))


def until(met: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not met():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def running(worker: Worker) -> tuple[threading.Event, threading.Thread]:
    stop = threading.Event()
    thread = threading.Thread(target=worker.run, args=(stop,))
    thread.start()
    return stop, thread


def test_goes_on_at_once_while_there_is_more() -> None:
    left = [True, True, False]
    stop = threading.Event()

    def step() -> bool:
        more = left.pop(0)
        if not left:
            stop.set()
        return more

    every(60, step)(stop)
    assert left == []


def test_starts_a_failing_role_again_and_says_what_it_said(context: RoleContext) -> None:
    tries: list[int] = []

    def step() -> bool:
        tries.append(1)
        if len(tries) < 3:
            raise RuntimeError("no such table\nDETAIL: Key (email)=(maria@example.org)")
        return False

    worker = Worker(context, {"clock": every(0.05, step)})
    stop, thread = running(worker)
    until(lambda: "no such table" in worker.health["clock"].error)
    assert "maria" not in worker.health["clock"].error
    until(lambda: worker.health["clock"].ready)
    until(lambda: bool((read_report(context.settings.home, "survey") or {}).get("ready")))
    report = read_report(context.settings.home, "survey")
    assert report is not None and report["roles"]["clock"]["restarts"] == 2
    stop.set()
    thread.join()
    assert not report_path(context.settings.home, "survey").exists()


def test_is_not_ready_while_one_of_its_roles_is_not(context: RoleContext) -> None:
    def deaf(stop: threading.Event) -> None:
        health().failed("the log is gone")
        stop.wait()

    worker = Worker(context, {"relay": every(0.05, lambda: False), "consumer": deaf})
    stop, thread = running(worker)
    until(lambda: worker.health["relay"].ready)
    until(lambda: read_report(context.settings.home, "survey") is not None)
    report = read_report(context.settings.home, "survey")
    assert report is not None and not report["ready"]
    assert report["roles"]["consumer"]["error"] == "the log is gone"
    stop.set()
    thread.join()


def test_an_old_report_counts_as_none(tmp_path: Path) -> None:
    path = report_path(tmp_path, "survey")
    path.parent.mkdir()
    path.write_text(json.dumps({"beat": time.time() - 11, "ready": True}))
    assert read_report(tmp_path, "survey") is None


def test_of_loops_together_one_that_fails_starts_again_and_the_others_go_on(context: RoleContext) -> None:
    tries: list[int] = []

    def failing(stop: threading.Event) -> None:
        tries.append(1)
        if len(tries) < 4:
            raise RuntimeError("gone")
        health().ok()
        stop.wait()

    began: list[int] = []

    def steady(stop: threading.Event) -> None:
        began.append(1)
        health().ok()
        stop.wait()

    worker = Worker(context, {"sender": together(steady, failing)})
    stop, thread = running(worker)
    until(lambda: worker.health["sender"].error == "RuntimeError: gone")
    until(lambda: worker.health["sender"].ready and not worker.health["sender"].error)
    assert worker.health["sender"].as_dict()["restarts"] == 3 and began == [1]
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_outside_a_role_nobody_reads_the_health() -> None:
    health().ok()
    assert isinstance(health(), Health) and not health().ready


def asked(port: int, path: str) -> tuple[int, dict[str, Any]]:
    reply = urllib3.request("GET", f"http://127.0.0.1:{port}{path}", retries=False, timeout=10)
    return reply.status, reply.json()


def test_probes_tell_a_live_process_from_one_that_can_work(context: RoleContext) -> None:
    def deaf(stop: threading.Event) -> None:
        health().failed("the log is gone")
        stop.wait()

    worker = Worker(context, {"relay": deaf})
    with health_port("127.0.0.1", free_port(), worker.alive, worker.as_dict) as port:
        stop, thread = running(worker)
        until(lambda: asked(port, "/survey/readyz")[1]["roles"]["relay"]["error"] == "the log is gone")
        assert asked(port, "/survey/readyz")[0] == 503
        # The log is a neighbour: it is no reason to restart us.
        assert asked(port, "/survey/healthz") == (200, {"status": "alive"})
        worker.health["relay"].ok()
        assert asked(port, "/survey/readyz")[0] == 200
        assert asked(port, "/anything")[0] == 404
        stop.set()
        thread.join()
    with pytest.raises(urllib3.exceptions.HTTPError):
        asked(port, "/survey/healthz")


def test_a_process_whose_main_loop_stands_still_or_lost_a_role_does_not_count_as_alive(
    context: RoleContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(context, {"clock": every(0.05, lambda: False)})
    stop, thread = running(worker)
    until(lambda: worker.health["clock"].ready)
    assert worker.alive()
    stop.set()
    thread.join()
    assert not worker.alive()  # its role's thread has ended
    waiting = Worker(context, {"clock": every(0.05, lambda: False)})
    assert waiting.alive()
    monkeypatch.setattr(shared.roles, "_HANGS", 0.01)
    until(lambda: not waiting.alive())


def test_a_port_for_probes_that_is_taken_is_named(context: RoleContext) -> None:
    worker = Worker(context, {})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(PortTaken, match=f"HEARBACK_HEALTH_PORT: port {port}"):
            with health_port("127.0.0.1", port, worker.alive, worker.as_dict):
                pass
    with health_port("127.0.0.1", 0, worker.alive, worker.as_dict) as none:
        assert none == 0


def test_waits_unready_and_says_for_what(context: RoleContext) -> None:
    worker = Worker(context, {"relay": every(0.05, lambda: False)})
    obstacle = ["the tables are old"]
    went_on: list[bool] = []
    stop = threading.Event()
    waiting = threading.Thread(
        target=lambda: went_on.append(worker.wait(lambda: obstacle[0] if obstacle else "", stop))
    )
    waiting.start()
    until(lambda: read_report(context.settings.home, "survey") is not None)
    report = read_report(context.settings.home, "survey")
    assert report and not report["ready"] and report["roles"]["relay"]["error"] == "the tables are old"
    assert worker.alive()
    obstacle.clear()
    waiting.join()
    assert went_on == [True]
    stop.set()
    assert not worker.wait(lambda: "for ever", stop)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadSettings("Give it an address."), "Give it an address"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError("not this\nDETAIL: a@b.example"), "ValueError: not this"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_failure_is_told_in_one_line_and_ours_as_the_sentence_it_is(error: Exception, said: str) -> None:
    assert brief(error) == said
