"""A real `hearback up`: how long its first and second start take, and how much memory it holds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psutil
import urllib3

from shared.clock import SystemClock
from shared.settings import load as load_settings
from shared.web.session import COOKIE
from shared.web.signing import serializer
from tests.bench import load
from tests.bench.ground import Ground
from tests.bench.load import get
from tests.bench.seed import Campaign
from tests.bench.table import Row, calibration
from tests.support.machine import Machine
from tests.support.running import Running

_QUIET_SECONDS = 10.0
_LOAD_SECONDS = 15.0
_MEGABYTE = 1_000_000


def starts_and_memory(_: Ground, repeats: int) -> list[Row]:
    """Seconds of the first and second start; PSS of all processes but PostgreSQL, idle and after a load."""
    first, second, idle, loaded = [], [], [], []
    for _repeat in range(repeats):
        machine = Machine()
        try:
            first.append(_seconds(machine))
            machine.run("down")
            second.append(_seconds(machine))
            time.sleep(_QUIET_SECONDS)
            idle.append(memory(machine))
            _work(machine)
            loaded.append(memory(machine))
        finally:
            machine.close()
    unit = calibration()
    return [
        Row("first start", "s", first, note=f"{first[-1] / unit:.0f} times the fixed piece of Python"),
        Row("second start", "s", second, note=f"{second[-1] / unit:.0f} times the fixed piece of Python"),
        Row("memory but PostgreSQL's, idle", "MB", idle, (), 400, at_most=True),
        Row("memory but PostgreSQL's, after load", "MB", loaded, (), 700, at_most=True),
    ]


def _seconds(machine: Machine) -> float:
    began = time.perf_counter()
    machine.up()
    return time.perf_counter() - began


def memory(machine: Machine) -> float:
    """Megabytes of the installation's processes: each page's share (PSS), shared ones counted once."""
    total = 0
    for process in machine.processes():
        with contextlib.suppress(psutil.Error):
            if process.name() != "postgres":
                total += int(process.memory_full_info().pss)
    return total / _MEGABYTE


def _work(machine: Machine) -> None:
    """Answers, answer pages, and the pages of staff with their charts, by both web processes."""
    with _attached(machine) as running:
        campaign = Campaign(running)
        campaign.invite(15_000)
        forms = campaign.take(14_000)
        pages = [get(f"/a/{form.token}?s={form.score}") for form in campaign.fresh[:500]]
        load.run(machine.port, pages, 8, 5.0)
        done = load.run(machine.port, [form.request for form in forms], 8, _LOAD_SECONDS)
        campaign.book(forms, done.acknowledged, done.sent)
        _look_around(running)
        running.settle()


def _look_around(running: Running) -> None:
    """Staff read lists and reports; every web worker draws the chart, which takes the most memory."""
    with running.db("followup").transaction() as tx:
        who = tx.one("SELECT id, epoch FROM staff WHERE role = 'admin'")
    assert who is not None
    session = serializer(running.settings, "session", SystemClock()).dumps([who["id"], who["epoch"], 0])
    cookie = f"{COOKIE}={session if isinstance(session, str) else session.decode()}"
    pages = ("/followup/inbox", "/reporting/", "/reporting/chart.svg", "/survey/customers")
    http = urllib3.PoolManager(timeout=30, retries=False)
    for page in pages * 8:  # on new connections, so that both workers get some
        reply = http.request("GET", running.url + page, headers={"Cookie": cookie, "Connection": "close"})
        assert reply.status == 200, (page, reply.status)


@contextlib.contextmanager
def _attached(machine: Machine) -> Iterator[Running]:
    """The databases of the installation, for seeding and counting."""
    settings = load_settings({"HEARBACK_HOME": str(machine.home), "HEARBACK_PORT": str(machine.port)})
    running = Running(settings)
    try:
        yield running
    finally:
        running.close()
