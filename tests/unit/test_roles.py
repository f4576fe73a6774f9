"""Roles loop, fail, start again and report."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.clock import SystemClock
from shared.db import Database
from shared.ids import SystemIds
from shared.roles import Health, RoleContext, Worker, every, health, read_report, report_path, together
from shared.settings import Settings


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


def test_loops_together_end_together() -> None:
    ended = threading.Event()

    def steady(stop: threading.Event) -> None:
        stop.wait()
        ended.set()

    def failing(stop: threading.Event) -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        together(steady, failing)(threading.Event())
    assert ended.is_set()


def test_outside_a_role_nobody_reads_the_health() -> None:
    health().ok()
    assert isinstance(health(), Health) and not health().ready
