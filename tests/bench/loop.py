"""The whole loop under load: answers/s that every consumer keeps up with, and how soon a task can be seen."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import urllib3

from services.reporting.queries.recount import recount
from shared.log import Log
from shared.settings import SERVICES
from tests.bench import load
from tests.bench.answers import record
from tests.bench.ground import Ground
from tests.bench.load import Load
from tests.bench.seed import Campaign
from tests.bench.table import Row, percentile
from tests.support.running import Running

CONNECTIONS = 8
SECONDS = 8.0
SUSTAINED_SECONDS = 15.0
MOST_LAG = 2.0
# Each try that lags is followed by one with so much of its rate.
_SLOWER = 0.85
_POLL_SECONDS = 0.1


class Loop:
    """Every role running, the consumers in processes of their own, so that they can be stopped."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.campaign = Campaign(running)
        running.web()
        running.role("survey", "relay", "sender", "clock")
        running.role("followup", "relay", "sender", "clock")
        self.log: Log = running.log()

    @contextmanager
    def consumers(self) -> Iterator[None]:
        """The three consumers run meanwhile; what waits for them is worked off first."""
        processes = [self.running.role(service, "consumer") for service in SERVICES]
        try:
            self.drain()
            yield
            self.drain()
        finally:
            for process in processes:
                process.stop()

    def lag(self) -> float:
        """Seconds since the oldest event that is not applied everywhere, in outboxes and on the log."""
        oldest = [lag.seconds for lag in self.log.lag() if lag.unread]
        for service in ("survey", "followup"):
            with self.running.db(service).transaction() as tx:
                at = tx.value("SELECT min(occurred_at) FROM outbox")
                oldest.append((tx.now - at).total_seconds() if at else 0.0)
        return max(oldest, default=0.0)

    def drain(self) -> None:
        """Returns when no event waits anywhere."""
        self.running.wait(lambda: self.lag() == 0 and self.lag() == 0, None, "the consumers to catch up")

    def answer(self, rate: float | None, seconds: float) -> Load:
        """Answers fresh invitations, as fast as it goes or at a rate."""
        if rate is None:
            return record(self.campaign, CONNECTIONS, seconds)
        forms = self.campaign.take(int(rate * seconds))
        done = load.run(
            self.running.settings.port, [form.request for form in forms], CONNECTIONS, seconds + 1, rate
        )
        self.campaign.book(forms, done.acknowledged, done.sent)
        return done

    def counted(self) -> tuple[int, int]:
        """What is missing or there twice of all acknowledged answers: in survey, as tasks, in the rollups."""
        missing, doubled = self.campaign.counted()
        with self.running.db("followup").transaction() as tx:
            unhappy = [one.customer_id for one in self.campaign.detractors()]
            row = tx.one(
                """SELECT count(*) FILTER (WHERE tasks = 0) AS none,
                    count(*) FILTER (WHERE tasks > 1) AS several
                FROM (SELECT c.id, count(DISTINCT t.id) AS tasks FROM unnest(%s::uuid[]) AS c (id)
                      LEFT JOIN task_response x ON x.customer_id = c.id LEFT JOIN task t ON t.id = x.task_id
                      GROUP BY 1) found""",
                (unhappy,),
            )
            assert row is not None
            missing, doubled = missing + row["none"], doubled + row["several"]
        with self.running.db("reporting").transaction() as tx:
            assert recount(tx).equal, "reporting's rollups are not a recount of its facts"
            known = int(tx.value("SELECT coalesce(sum(promoters + passives + detractors), 0) FROM nps_day"))
        with self.running.db("survey").transaction() as tx:
            given = int(tx.value("SELECT count(*) FROM response WHERE state = 'counted'"))
        return missing + max(0, given - known), doubled + max(0, known - given)


def sustained(ground: Ground, repeats: int) -> list[Row]:
    """Answers/s with every consumer keeping up ÷ with them stopped; click to task at half of that load."""
    stopped, kept, visible = [], [], []
    lags: list[float] = []
    with ground.installation() as running:
        key = _key(running)
        loop = Loop(running)
        loop.campaign.invite(20_000)
        loop.answer(None, 1.0)
        for _ in range(repeats):
            stopped.append(loop.answer(None, SECONDS).rate)
            with loop.consumers():
                rate, lag = _sustained(loop)
                kept.append(rate)
                lags.append(lag)
                visible.append(percentile(_until_visible(loop, rate / 2, key), 0.99))
        missing, doubled = loop.counted()
        loop.log.close()
    return [
        Row(
            "answers with every consumer keeping up, ÷ with the consumers stopped", "answers/s", kept,
            stopped, 0.5, missing=missing, doubled=doubled,
            note=f"lag at the end {max(lags):.1f} s at most",
        ),
        Row(
            "answer sent until its task is in the API, at half of that load, p99", "s", visible, (), 1.0,
            at_most=True, missing=missing, doubled=doubled,
            note=f"looked every {_POLL_SECONDS} s, which is part of the figure",
        ),
    ]  # fmt: skip


def _sustained(loop: Loop) -> tuple[float, float]:
    """The highest rate found that leaves less than two seconds of lag, and that lag.

    The first guess: as many answers as the machine takes and works off in the time it needs for both.
    """
    began = time.perf_counter()
    done = loop.answer(None, SECONDS)
    loop.drain()
    rate = len(done.acknowledged) / (time.perf_counter() - began)
    while True:
        done = loop.answer(rate, SUSTAINED_SECONDS)
        lag = loop.lag()
        loop.drain()
        if lag < MOST_LAG and done.rate > 0.9 * rate:
            return done.rate, lag
        rate *= _SLOWER


def _until_visible(loop: Loop, rate: float, key: str) -> list[float]:
    """Seconds from each detractor's POST until a task of theirs, or of their account, is listed."""
    seen: dict[str, float] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(loop.running, key, seen, over), daemon=True)
    watcher.start()
    forms = loop.campaign.take(int(rate * SECONDS))
    done = load.run(
        loop.running.settings.port, [form.request for form in forms], CONNECTIONS, SECONDS + 1, rate
    )
    loop.campaign.book(forms, done.acknowledged, done.sent)
    loop.drain()
    time.sleep(3 * _POLL_SECONDS)
    over.set()
    watcher.join()
    sent = {forms[place].customer_id: due for place, due in zip(done.acknowledged, done.due, strict=True)}
    return [at - sent[customer] for customer, at in seen.items() if customer in sent]


def _watch(running: Running, key: str, seen: dict[str, float], over: threading.Event) -> None:
    http = urllib3.PoolManager(timeout=10, retries=False)
    url = f"{running.url}/followup/api/tasks?state=open&limit=100"
    while not over.is_set():
        began = time.monotonic()
        reply = http.request("GET", url, headers={"Authorization": f"Bearer {key}"})
        assert reply.status == 200, reply.data
        now = time.time()
        tasks: list[Mapping[str, Any]] = reply.json()["tasks"]
        for task in tasks:
            seen.setdefault(str(task["customer_id"]), now)
        over.wait(max(0.0, _POLL_SECONDS - (time.monotonic() - began)))


def _key(running: Running) -> str:
    keys = importlib.import_module("services.followup.commands.keys")
    with running.db("followup").transaction() as tx:
        key: str = keys.create(tx, name="bench", scopes=("tasks:read",), created_by=None)[1]
        return key
