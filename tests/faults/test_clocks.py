"""Fault 23: clocks that step by an hour and back, weeks in which they change, the end of a month."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from services.followup.commands import attempts, reminders, staff
from services.followup.domain.by import By
from services.followup.domain.deadline import DAYS
from services.survey.commands import company
from shared.clock import ManualClock
from shared.db import Row
from shared.settings import Settings
from tests.faults.conftest import SEEDS, settings_for
from tests.support import trial
from tests.support.asking import START, Asking, trail_link
from tests.support.checker import check
from tests.support.followup import Followup, account, new_id
from tests.support.history import History, Traffic
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.running import Cast, running
from tests.support.wall_clock import WallClock

HOUR = timedelta(hours=1)
LOOK = timedelta(minutes=10)
# Some of them begin in each hour of the day before the moment, and of the one after it.
TASKS = 24
# So many customers say nothing more after their answer; those of one firm are among them together.
QUIET = 21
ROUND_THE_CLOCK = {day: ["00:00", "24:00"] for day in DAYS}


@pytest.fixture(params=SEEDS, ids=lambda seed: f"seed{seed}")
def chance(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


@pytest.fixture
def followup(settings: Settings, clock: ManualClock) -> Iterator[Followup]:
    service = Followup(settings, clock)
    yield service
    service.db.close()
    service.app.extensions["hearback"].db.close()


class Clocks:
    """True time, and the clock that everybody reads: right, or an hour off for a while."""

    def __init__(self, clock: ManualClock, begin: datetime, chance: random.Random | None) -> None:
        self.clock, self.now, self.chance = clock, begin, chance
        self.off = timedelta(0)
        clock.set(begin)

    def go_on(self) -> None:
        self.now += LOOK
        if self.chance is not None and self.chance.random() < 0.1:
            self.off = self.chance.choice([-HOUR, timedelta(0), HOUR])
        self.clock.set(self.now + self.off)


@pytest.mark.parametrize(
    "steps",
    [pytest.param(False, id="right", marks=pytest.mark.slow_fault), pytest.param(True, id="stepping")],
)
@pytest.mark.parametrize(
    ("zone", "moment"),
    [
        pytest.param("Europe/Berlin", "2026-03-29 02:00", id="spring"),
        pytest.param("Europe/Berlin", "2026-10-25 02:00", id="autumn"),
        pytest.param(
            "Australia/Lord_Howe", "2026-04-05 02:00", id="half_an_hour", marks=pytest.mark.slow_fault
        ),
        pytest.param("America/New_York", "2026-03-01 00:00", id="end_of_month", marks=pytest.mark.slow_fault),
    ],
)
def test_fault_23_each_call_is_reminded_of_once_and_escalated_once(
    followup: Followup, chance: random.Random, zone: str, moment: str, steps: bool
) -> None:
    change = datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    clocks = Clocks(followup.clock, change - 12 * HOUR, chance if steps else None)
    followup.apply(followup.company(time_zone=zone, business_hours=ROUND_THE_CLOCK, first_contact_hours=1))
    followup.staff("ann@acme.example")
    followup.staff("lea@acme.example", "lead")
    begins = [clocks.now + HOUR * number for number in range(TASKS)]
    missed: dict[str, list[tuple[datetime, datetime]]] = {}
    to_try: list[str] = []
    while clocks.now < change + 18 * HOUR:
        while begins and begins[0] <= clocks.now:
            begins.pop(0)
            one, firm = new_id(), account(f"Firm {len(begins)}", manager="ann@acme.example")
            followup.apply(followup.customer(one, firm), followup.response(one, 2, account=firm))
        while to_try:  # in vain: a second call is due, an hour later
            _try(followup, to_try.pop())
        for _ in range(2):  # two clocks, each after the other
            _due(followup)
        for event in followup.published("task.escalated"):
            calls = missed.setdefault(event["key"], [])
            due = datetime.fromisoformat(event["data"]["call_by"])
            if due in [call_by for call_by, _ in calls]:
                continue
            calls.append((due, clocks.now))
            if len(calls) == 1:
                to_try.append(event["key"])
        clocks.go_on()
    allowed = 2 * HOUR if steps else timedelta(0)
    late = [
        (due, at)
        for calls in missed.values()
        for due, at in calls
        if not -allowed <= at - due <= LOOK + allowed
    ]
    told = Counter((mail["ref_id"], mail["data"]["template"]) for mail in followup.mails() if mail["ref_id"])
    escalated = Counter(event["key"] for event in followup.published("task.escalated"))
    tasks = [str(task["id"]) for task in followup.tasks()]
    wrong = {
        "lost": sum(len(missed.get(task, ())) < 2 for task in tasks) + len(late),
        "doubled": sum(escalated[task] > 2 or told[task, "reminder"] > 2 for task in tasks),
    }
    trial.checked(2 * len(tasks), wrong)
    assert len(tasks) == TASKS and wrong == {"lost": 0, "doubled": 0}, (late, escalated, told)
    if not steps:
        assert all(told[task, "reminder"] == 2 for task in tasks), told
        # An hour is an hour, whatever the clock on the wall did meanwhile.
        assert all(task["due_at"] - task["opened_at"] == HOUR for task in followup.tasks())


def _due(followup: Followup) -> None:
    """One round of a clock."""
    for work in (reminders.remind, reminders.escalate):
        with followup.db.transaction() as tx:
            work(tx)


def _try(followup: Followup, task_id: str) -> None:
    """Somebody calls, and reaches nobody."""
    with followup.db.transaction() as tx:
        attempts.record(tx, By(None, "a program"), task_id, channel="phone", reached=False)


def test_fault_23_a_call_that_a_fast_clock_escalated_is_escalated_again_when_it_is_due_again(
    followup: Followup,
) -> None:
    followup.apply(followup.company(business_hours=ROUND_THE_CLOCK, first_contact_hours=1))
    followup.staff("ann@acme.example")
    one, firm = new_id(), account(manager="ann@acme.example")
    followup.apply(followup.customer(one, firm), followup.response(one, 2, account=firm))
    [task] = followup.tasks()
    followup.clock.advance(HOUR + LOOK)
    _due(followup)
    assert len(followup.published("task.escalated")) == 1
    followup.clock.advance(-2 * HOUR)
    _due(followup)
    _try(followup, task["id"])
    followup.clock.advance(HOUR + LOOK)
    for _ in range(2):
        _due(followup)
    escalated = len(followup.published("task.escalated"))
    trial.checked(2, {"lost": max(0, 2 - escalated), "doubled": max(0, escalated - 2)})
    assert escalated == 2


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow_fault)])
def stepped(
    request: pytest.FixtureRequest, postgres: TestPostgres, tmp_path: Path
) -> Iterator[tuple[History, WallClock]]:
    """Everything runs, forty minutes before the clocks change in spring, all by one wall clock."""
    wall = WallClock(tmp_path / "off")
    wall.set(datetime(2027, 3, 28, 0, 20, tzinfo=UTC))
    kafka = settings_for(request.getfixturevalue("broker")) if request.param == "kafka" else None
    urls = FreshDatabases(postgres)
    with running(urls, wall.environment(), log=request.param, kafka=kafka, clock=wall) as installation:
        yield History(installation, cast=Cast(installation)), wall
    urls.drop()


def test_fault_23_the_clock_of_all_processes_steps_amid_mails_answers_reminders_and_escalations(
    stepped: tuple[History, WallClock],
) -> None:
    history, wall = stepped
    installation = history.running
    survey, followup = installation.db("survey"), installation.db("followup")
    with followup.transaction() as tx:
        key = installation.settings.key("one-time-password")
        staff.add(tx, key, email="ann@acme.example", name="Ann", role="agent")
        staff.add(tx, key, email="lea@acme.example", name="Lea", role="lead")
    installation.settle()
    with survey.transaction() as tx:
        company.ensure(tx)
        company.change(
            tx,
            {
                "time_zone": "Europe/Berlin",
                "business_hours": ROUND_THE_CLOCK,
                "first_contact_hours": 1,
                "fallback_owner": "ann@acme.example",
            },
        )
    history.invite(QUIET + 9)
    installation.settle()
    quiet = history.people[:QUIET]
    for person in quiet:
        history.answer(person, 2)
    installation.settle()

    def calls() -> list[Row]:
        with followup.transaction() as tx:
            return tx.all(
                "SELECT DISTINCT t.* FROM task t JOIN task_response x ON x.task_id = t.id"
                " WHERE x.customer_id = ANY(%s::uuid[])",
                ([person.id for person in quiet],),
            )

    with Traffic(history, history.people[QUIET:]) as traffic:

        def step(by: timedelta) -> None:
            """All go on: customers are asked, answer, and a consumer that dies is replaced."""
            wall.set(wall.now() + by)
            traffic.wait_for_more()
            # Two rounds of the clock, which looks every second.
            time.sleep(2.5)

        step(-HOUR)
        history.cast.consumers["followup"].kill()
        history.cast.consumer_again("followup")
        history.invite(3)
        step(HOUR)
        assert all(call["remind_at"] for call in calls())
        wall.set(max(call["remind_at"] for call in calls()) + timedelta(seconds=1))
        installation.wait(lambda: not any(call["remind_at"] for call in calls()), None, "the reminders")
        step(-HOUR)
        step(HOUR)
        wall.set(max(call["call_by"] for call in calls()) + timedelta(seconds=1))
        installation.wait(lambda: all(call["escalated_at"] for call in calls()), None, "the escalations")
        step(-HOUR)
        history.invite(3)
        step(HOUR)
        step(HOUR)
        step(-HOUR)
    # What was due at once by a fast clock may wait until that hour is there.
    wall.set(wall.now() + HOUR)
    installation.settle()
    check(history)
    found = {str(call["id"]) for call in calls()}
    log = installation.log()
    escalated = Counter(
        entry.key
        for entry in log.tail("tasks", 100_000)
        if entry.headers["type"] == "task.escalated" and entry.key in found
    )
    log.close()
    # Whom a mail has reached is reminded, not for whom one was queued.
    arrived = Counter(message.delivery_id for message in history.messages())
    with followup.transaction() as tx:
        mails = tx.all(
            "SELECT id, ref_id FROM delivery WHERE data->>'template' = 'reminder'"
            " AND state IN ('handed', 'delivered') AND ref_id = ANY(%s::uuid[])",
            (list(found),),
        )
    assert all(arrived[row["id"]] == 1 for row in mails), arrived
    reminded = Counter(str(row["ref_id"]) for row in mails)
    assert escalated == reminded == Counter(found)
    # An hour is an hour, though the clock on the wall jumped from two to three.
    assert all(timedelta(seconds=3570) < call["due_at"] - call["opened_at"] <= HOUR for call in calls())


@pytest.mark.parametrize("step", [-HOUR, HOUR], ids=["back", "forward"])
def test_fault_23_nobody_is_logged_out_by_a_clock_that_steps(followup: Followup, step: timedelta) -> None:
    followup.apply(followup.company())
    followup.staff("ann@acme.example")
    browser = followup.browser("ann@acme.example")
    followup.clock.advance(step)
    assert browser.get("/followup/inbox").status_code == 200


def test_fault_23_a_customer_may_answer_to_the_end_although_the_clock_was_fast(
    settings: Settings, chance: random.Random
) -> None:
    survey = Asking(settings)
    message = survey.invited()
    customer = survey.one("SELECT customer_id FROM invitation")["customer_id"]
    [end] = [row["expires_at"] for row in survey.all("SELECT expires_at FROM invitation")]
    survey.clock.set(end - HOUR / 2)
    survey.clock.advance(HOUR)
    survey.due()
    survey.clock.advance(-HOUR)
    reply = survey.submit(trail_link(message), json=True, score="3")
    assert reply.status_code == 200 and reply.json is not None and reply.json["effect"] == "saved"
    # A clock that was put back is no reason to be asked a second time.
    survey.clock.set(START - HOUR)
    survey.ask({"customers": [customer]})
    assert survey.send() == []
    trial.checked(1)
