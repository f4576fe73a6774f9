"""Triage: which answers open, join, change, withdraw or reopen a task, in whatever order they come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.followup import handlers
from services.followup.commands import attempts, resolving, unconfirmed
from services.followup.domain.by import By
from shared.db import Database
from shared.ids import SystemIds
from shared.settings import Settings
from tests.support.followup import Followup, account, new_id

ANYBODY = By(None, "a program")


def test_a_detractor_opens_a_task_for_the_accounts_manager(followup: Followup) -> None:
    ann = followup.staff("ann@acme.example")
    globex, carla = account(manager="Ann@acme.example"), new_id()
    followup.apply(
        followup.customer(carla, globex), followup.response(carla, 3, account=globex, comment="Late again")
    )
    (task,) = followup.tasks()
    assert (task["owner_id"], task["account_id"], task["lowest_score"]) == (ann, globex["id"], 3)
    # Tuesday 11:00 in Berlin and eight business hours (9 to 17): Wednesday 11:00, which is 10:00 UTC.
    assert task["due_at"] == datetime(2026, 3, 4, 10, 0, tzinfo=UTC)
    (event,) = followup.published("task.opened")
    assert event["version"] == 1
    assert event["data"]["owner_email"] == "ann@acme.example"
    assert event["data"]["customer_ids"] == [carla]
    (mail,) = [m for m in followup.mails() if m["data"]["template"] == "opened"]
    assert mail["to"] == "ann@acme.example"


@pytest.mark.parametrize(
    ("score", "callback", "state", "opens"),
    [
        (0, None, "counted", True),
        (6, None, "counted", True),
        (7, None, "counted", False),
        (10, None, "counted", False),
        (9, "please", "counted", True),
        (9, "dont", "counted", False),
        (2, "dont", "counted", True),
        (2, None, "quarantined", False),
        (2, None, "excluded", False),
        (9, "please", "excluded", False),
    ],
)
def test_who_needs_a_call(
    followup: Followup, score: int, callback: str | None, state: str, opens: bool
) -> None:
    followup.apply(followup.response(new_id(), score, callback=callback, state=state))
    assert bool(followup.tasks()) is opens
    if opens:
        task = followup.tasks()[0]
        assert task["dont_call"] is (callback == "dont") and task["call_please"] is (callback == "please")


def test_further_answers_of_an_account_join_its_open_task(followup: Followup) -> None:
    globex = account()
    one, two = new_id(), new_id()
    followup.apply(followup.response(one, 5, account=globex))
    followup.apply(
        followup.response(two, 2, account=globex, callback="dont"), followup.response(one, 6, account=globex)
    )
    (task,) = followup.tasks()
    assert task["lowest_score"] == 2 and task["dont_call"] is True
    assert [e["type"] for e in followup.published()] == ["task.opened", "task.joined", "task.joined"]
    last = followup.published()[-1]["data"]
    assert sorted(last["customer_ids"]) == sorted([one, two]) and len(last["response_ids"]) == 3


def test_customers_without_an_account_have_a_task_each(followup: Followup) -> None:
    one, two = new_id(), new_id()
    followup.apply(followup.response(one, 5), followup.response(two, 5), followup.response(one, 1))
    assert [task["customer_id"] for task in followup.tasks()].count(one) == 1
    assert len(followup.tasks()) == 2


def test_the_same_event_twice_changes_nothing(followup: Followup) -> None:
    event = followup.response(new_id(), 3)
    followup.apply(event)
    followup.apply(event, event)
    assert len(followup.tasks()) == 1 and len(followup.published()) == 1 and len(followup.mails()) == 0


def test_a_score_that_rises_withdraws_the_task_while_nobody_has_called(followup: Followup) -> None:
    followup.staff("ann@acme.example", "lead")
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 3, response_id=answer))
    followup.apply(followup.response(carla, 8, response_id=answer))
    (task,) = followup.tasks()
    assert (task["state"], task["withdrawn_reason"], task["call_by"]) == ("withdrawn", "revised", None)
    assert followup.published("task.withdrawn")[0]["data"]["withdrawn_reason"] == "revised"


def test_a_score_that_rises_after_a_call_leaves_the_task_open_with_a_note(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 3, response_id=answer))
    with followup.db.transaction() as tx:
        attempts.record(tx, ANYBODY, followup.tasks()[0]["id"], channel="phone", reached=False)
    followup.apply(followup.response(carla, 9, response_id=answer))
    (task,) = followup.tasks()
    assert task["state"] == "open"
    assert followup.all("SELECT data FROM task_entry WHERE kind = 'revised'")[0]["data"]["before"] == 3


def test_the_task_stays_while_another_detractor_is_behind_it(followup: Followup) -> None:
    globex, answer = account(), new_id()
    carla, carl = new_id(), new_id()
    followup.apply(followup.response(carla, 3, account=globex, response_id=answer))
    followup.apply(followup.response(carl, 5, account=globex))
    followup.apply(followup.response(carla, 9, account=globex, response_id=answer))
    (task,) = followup.tasks()
    assert (task["state"], task["lowest_score"]) == ("open", 5)


def test_a_score_that_falls_again_reopens_the_withdrawn_task(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    for score in (3, 8, 4):
        followup.apply(followup.response(carla, score, response_id=answer))
        followup.clock.advance(timedelta(days=7))
    (task,) = followup.tasks()
    # Nobody broke a promise in the week that the customer was content.
    assert task["due_at"] == datetime(2026, 3, 18, 10, 0, tzinfo=UTC)
    assert task["state"] == "open" and task["reopened"] is True and task["lowest_score"] == 4
    assert [e["type"] for e in followup.published()] == ["task.opened", "task.withdrawn", "task.reopened"]


def test_a_passive_who_falls_opens_a_task(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 8, response_id=answer))
    followup.apply(followup.response(carla, 5, response_id=answer))
    assert len(followup.tasks()) == 1


def test_an_exclusion_withdraws_and_its_undoing_brings_back(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 3, response_id=answer))
    followup.apply(
        followup.response(carla, 3, response_id=answer, state="excluded", type_="response.excluded")
    )
    assert followup.tasks()[0]["withdrawn_reason"] == "excluded"
    followup.apply(followup.response(carla, 3, response_id=answer, type_="response.excluded"))
    (task,) = followup.tasks()
    assert task["state"] == "open"


def test_a_resolved_task_is_not_touched_by_an_exclusion_and_its_undoing(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 3, response_id=answer))
    with followup.db.transaction() as tx:
        resolving.resolve(tx, ANYBODY, followup.tasks()[0]["id"], outcome="solved", theme="Late")
    followup.apply(
        followup.response(carla, 3, response_id=answer, state="excluded", type_="response.excluded")
    )
    followup.apply(followup.response(carla, 3, response_id=answer, type_="response.excluded"))
    (task,) = followup.tasks()
    assert task["state"] == "resolved"


def test_new_words_after_resolving_reopen_the_task(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 3, response_id=answer))
    with followup.db.transaction() as tx:
        resolving.resolve(tx, ANYBODY, followup.tasks()[0]["id"], outcome="solved", theme="Late")
    followup.apply(followup.response(carla, 3, response_id=answer, comment="It is still late."))
    (task,) = followup.tasks()
    assert task["state"] == "open" and task["outcome"] is None


def test_please_dont_call_later_on_is_told_to_the_owner(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    globex, carla, answer = account(manager="ann@acme.example"), new_id(), new_id()
    followup.apply(followup.response(carla, 3, account=globex, response_id=answer))
    followup.apply(followup.response(carla, 3, account=globex, response_id=answer, callback="dont"))
    (task,) = followup.tasks()
    assert task["dont_call"] is True
    assert followup.published()[-1]["data"]["dont_call"] is True
    told = sorted(m["data"]["template"] for m in followup.mails())
    assert told == ["opened", "revised", "welcome"]


def test_an_answer_after_a_call_makes_a_call_due_again(followup: Followup) -> None:
    globex = account()
    followup.apply(followup.response(new_id(), 3, account=globex))
    task_id = followup.tasks()[0]["id"]
    with followup.db.transaction() as tx:
        attempts.record(tx, ANYBODY, task_id, channel="phone", reached=True)
    assert followup.tasks()[0]["call_by"] is None
    followup.clock.advance(timedelta(hours=1))
    followup.apply(followup.response(new_id(), 2, account=globex))
    (task,) = followup.tasks()
    assert task["call_by"] > task["due_at"]


@pytest.mark.parametrize("revision", [{"score": 2}, {"score": 9, "callback": "please"}])
def test_a_late_change_of_mind_is_due_from_when_it_was_said(
    followup: Followup, revision: dict[str, Any]
) -> None:
    carla, answer = new_id(), new_id()
    first = followup.response(carla, 9, response_id=answer)
    followup.apply(first)
    assert first.data is not None
    followup.clock.advance(timedelta(days=2))
    followup.apply(
        followup.response(carla, response_id=answer, answered_at=first.data["answered_at"], **revision)
    )
    # Thursday 11:00 in Berlin and eight business hours: Friday 11:00.
    assert followup.tasks()[0]["due_at"] == datetime(2026, 3, 6, 10, 0, tzinfo=UTC)


def test_the_promise_counts_from_the_answer_even_when_we_hear_of_it_late(followup: Followup) -> None:
    late = followup.response(new_id(), 3)
    followup.clock.advance(timedelta(hours=1))
    followup.apply(late)
    assert followup.tasks()[0]["due_at"] == datetime(2026, 3, 4, 10, 0, tzinfo=UTC)


def test_an_answer_put_back_by_a_lead_is_due_from_then(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    first = followup.response(carla, 2, response_id=answer, state="quarantined")
    followup.apply(first)
    assert first.data is not None
    said = {name: first.data[name] for name in ("answered_at", "revised_at")}
    followup.clock.advance(timedelta(days=2))
    followup.apply(followup.response(carla, 2, response_id=answer, type_="response.excluded", **said))
    assert followup.tasks()[0]["due_at"] == datetime(2026, 3, 6, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("revision", "due_again"),
    [
        ({"score": 1}, True),
        ({"score": 3, "comment": "And again!"}, True),
        ({"score": 9, "callback": "please"}, True),
        ({"score": 1, "callback": "dont"}, False),
        ({"score": 9}, False),
        ({"score": 3}, False),
        ({"score": 1, "state": "excluded"}, False),
    ],
)
def test_a_reached_customer_who_says_more_is_to_be_called_again(
    followup: Followup, revision: dict[str, Any], due_again: bool
) -> None:
    carla, answer = new_id(), new_id()
    first = followup.response(carla, 3, response_id=answer)
    followup.apply(first)
    assert first.data is not None
    with followup.db.transaction() as tx:
        attempts.record(tx, ANYBODY, followup.tasks()[0]["id"], channel="phone", reached=True)
    followup.clock.advance(timedelta(days=2))
    followup.apply(
        followup.response(carla, response_id=answer, answered_at=first.data["answered_at"], **revision)
    )
    (task,) = followup.tasks()
    expected = datetime(2026, 3, 6, 10, 0, tzinfo=UTC) if due_again else None
    assert (task["state"], task["call_by"]) == ("open", expected)
    assert followup.published()[-1]["data"]["call_by"] == ("2026-03-06T10:00:00Z" if due_again else None)


def test_the_wish_said_last_holds_though_its_answer_began_first(followup: Followup) -> None:
    globex, carla, answer = account(), new_id(), new_id()
    first = followup.response(carla, 3, account=globex, response_id=answer)
    assert first.data is not None
    followup.apply(first)
    followup.clock.advance(timedelta(hours=1))
    followup.apply(followup.response(carla, 3, account=globex, callback="please"))
    followup.clock.advance(timedelta(hours=1))
    said = {"callback": "dont", "answered_at": first.data["answered_at"]}
    followup.apply(followup.response(carla, 3, account=globex, response_id=answer, **said))
    (task,) = followup.tasks()
    assert (task["dont_call"], task["call_please"]) == (True, False)


def test_a_replay_fills_replicas_and_opens_no_task(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 3, response_id=answer, replay=True))
    assert not followup.tasks() and len(followup.all("SELECT * FROM response")) == 1
    followup.apply(followup.response(carla, 2, response_id=answer))
    assert len(followup.tasks()) == 1


def test_an_older_version_never_beats_a_newer_one(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    newer = followup.response(carla, 9, response_id=answer, version=2)
    older = followup.response(carla, 3, response_id=answer, version=1)
    followup.apply(newer)
    followup.apply(older)
    assert not followup.tasks() and followup.one("SELECT score FROM response")["score"] == 9


def test_an_absent_managers_deputy_gets_the_task_else_the_fallback_owner_else_nobody(
    followup: Followup,
) -> None:
    ann = followup.staff("ann@acme.example")
    ben = followup.staff("ben@acme.example")
    fay = followup.staff("fay@acme.example")
    globex = account(manager="ann@acme.example")
    today = datetime(2026, 3, 3).date()
    from services.followup.commands import staff

    with followup.db.transaction() as tx:
        staff.set_absence(tx, ann, absent_from=today, absent_until=today, deputy_id=ben)
    followup.apply(followup.response(new_id(), 3, account=globex))
    assert followup.tasks()[-1]["owner_id"] == ben
    followup.apply(followup.response(new_id(), 3, account=account("Initech", "nobody@acme.example")))
    assert followup.tasks()[-1]["owner_id"] is None
    followup.apply(followup.company(fallback_owner="fay@acme.example"))
    assert {task["owner_id"] for task in followup.tasks()} == {ben, fay}


def test_a_manager_who_gets_a_login_gets_their_tasks(followup: Followup) -> None:
    followup.apply(followup.response(new_id(), 3, account=account(manager="late@acme.example")))
    assert followup.tasks()[0]["owner_id"] is None
    late = followup.staff("late@acme.example")
    assert followup.tasks()[0]["owner_id"] == late
    assert followup.published("task.assigned")[0]["data"]["owner_email"] == "late@acme.example"


def test_disabling_somebody_hands_their_open_tasks_on(followup: Followup) -> None:
    from services.followup.commands import staff

    fay = followup.staff("fay@acme.example")
    ann = followup.staff("ann@acme.example")
    followup.apply(
        followup.company(fallback_owner="fay@acme.example"),
        followup.response(new_id(), 3, account=account(manager="ann@acme.example")),
    )
    assert followup.tasks()[0]["owner_id"] == ann
    with followup.db.transaction() as tx:
        staff.disable(tx, ann)
    assert followup.tasks()[0]["owner_id"] == fay


def test_a_new_account_manager_gets_what_nobody_began(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    ben = followup.staff("ben@acme.example")
    carla = new_id()
    followup.apply(followup.response(carla, 3, account=account(manager="ann@acme.example")))
    followup.apply(followup.customer(carla, account(manager="ben@acme.example", version=2)))
    assert followup.tasks()[0]["owner_id"] == ben


def test_unconfirmed_clicks_are_perhaps_unhappy_until_the_answer_comes(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    event = followup.response(carla, 9, response_id=answer)
    assert event.data is not None
    invitation = event.data["invitation_id"]
    followup.apply(followup.unconfirmed(carla, 2, invitation), followup.unconfirmed(carla, 9, new_id()))
    assert len(followup.all("SELECT * FROM unconfirmed")) == 1 and not followup.tasks()
    followup.apply(event)
    assert not followup.all("SELECT * FROM unconfirmed")
    followup.apply(followup.unconfirmed(carla, 2, invitation))
    assert not followup.all("SELECT * FROM unconfirmed")


def test_a_quarantined_detractor_is_perhaps_unhappy(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.response(carla, 2, response_id=answer, state="quarantined"))
    assert followup.one("SELECT kind FROM unconfirmed")["kind"] == "quarantined"
    followup.apply(followup.response(carla, 2, response_id=answer))
    assert not followup.all("SELECT * FROM unconfirmed") and len(followup.tasks()) == 1


def test_somebody_dismissed_is_perhaps_unhappy_again_when_they_say_something_else(followup: Followup) -> None:
    carla, invitation = new_id(), new_id()
    followup.apply(followup.unconfirmed(carla, 4, invitation))
    with followup.db.transaction() as tx:
        unconfirmed.dismiss(tx, ANYBODY, invitation)
    dismissed = followup.one("SELECT * FROM unconfirmed")
    followup.clock.advance(timedelta(hours=1))
    followup.apply(followup.unconfirmed(carla, 4, invitation))
    assert followup.one("SELECT * FROM unconfirmed") == dismissed
    followup.apply(followup.unconfirmed(carla, 1, invitation))
    again = followup.one("SELECT * FROM unconfirmed")
    assert (again["score"], again["dismissed_at"], again["at"]) == (1, None, followup.clock.now())


def test_erasure_takes_the_person_out_and_keeps_the_fact(followup: Followup) -> None:
    carla = new_id()
    followup.apply(
        followup.customer(carla),
        followup.response(carla, 3, comment="My name is Carla"),
        followup.message(carla, "Hello?"),
    )
    with followup.db.transaction() as tx:
        attempts.note(tx, ANYBODY, followup.tasks()[0]["id"], text="Carla sounded sad")
    followup.apply(followup.erasure(carla))
    (task,) = followup.tasks()
    assert (task["state"], task["withdrawn_reason"]) == ("withdrawn", "erased")
    for table in ("customer", "response", "response_version", "inbound_message"):
        assert not followup.all(f"SELECT * FROM {table}"), table
    assert not followup.all("SELECT * FROM task_entry WHERE text IS NOT NULL")
    # Whatever comes late is refused.
    followup.apply(
        followup.customer(carla),
        followup.response(carla, 1),
        followup.message(carla, "x"),
        followup.unconfirmed(carla, 1, new_id()),
    )
    assert not followup.all("SELECT * FROM customer") and not followup.all("SELECT * FROM response")
    assert len(followup.tasks()) == 1


def test_erasure_leaves_the_others_of_the_account(followup: Followup) -> None:
    globex = account()
    carla, carl = new_id(), new_id()
    followup.apply(
        followup.customer(carla, globex),
        followup.customer(carl, globex),
        followup.response(carla, 1, account=globex),
        followup.response(carl, 5, account=globex),
    )
    followup.apply(followup.erasure(carla))
    (task,) = followup.tasks()
    assert (task["state"], task["customer_id"], task["lowest_score"]) == ("open", carl, 5)
    assert followup.published()[-1]["data"]["customer_ids"] == [carl]


@pytest.fixture
def second(settings: Settings, followup: Followup) -> Database:
    """Another process's connection pool."""
    return Database(settings.database_urls["followup"], followup.clock, SystemIds(), name="second")


def _beside(first: Callable[[], None], second: Callable[[], None]) -> None:
    """Runs both at once, as far as their locks allow."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]


def test_two_sessions_on_one_account_make_exactly_one_task(followup: Followup, second: Database) -> None:
    globex = account()
    for round_ in range(10):
        globex = account(f"Globex {round_}")
        one, two = (
            followup.response(new_id(), 3, account=globex),
            followup.response(new_id(), 4, account=globex),
        )
        barrier = threading.Barrier(2)

        def apply(db: Database, event: object, barrier: threading.Barrier = barrier) -> None:
            with db.transaction() as tx:
                barrier.wait(10)
                handlers.apply(tx, [event])  # type: ignore[list-item]

        _beside(lambda a=one: apply(followup.db, a), lambda b=two: apply(second, b))  # type: ignore[misc]
        rows = followup.all("SELECT id FROM task WHERE account_id = %s", globex["id"])
        assert len(rows) == 1
        linked = followup.all("SELECT 1 FROM task_response WHERE task_id = %s", rows[0]["id"])
        assert len(linked) == 2
    second.close()


def test_batches_that_touch_accounts_in_opposite_order_do_not_deadlock(
    followup: Followup, second: Database
) -> None:
    accounts = [account(f"A{n}") for n in range(6)]
    one = [followup.response(new_id(), 3, account=a) for a in accounts]
    two = [followup.response(new_id(), 4, account=a) for a in reversed(accounts)]
    barrier = threading.Barrier(2)

    def apply(db: Database, events: list[object]) -> None:
        with db.transaction() as tx:
            barrier.wait(10)
            handlers.apply(tx, events)  # type: ignore[arg-type]

    _beside(lambda: apply(followup.db, list(one)), lambda: apply(second, list(two)))
    assert len(followup.tasks()) == 6
    assert len(followup.all("SELECT 1 FROM task_response")) == 12
    second.close()


def test_an_answer_that_comes_while_its_task_is_being_resolved_opens_another(
    followup: Followup, second: Database
) -> None:
    globex = account()
    followup.apply(followup.response(new_id(), 3, account=globex))
    task_id = followup.tasks()[0]["id"]
    locked, done = threading.Event(), threading.Event()

    def resolve() -> None:
        with second.transaction() as tx:
            resolving.resolve(tx, ANYBODY, task_id, outcome="solved", theme="Late")
            locked.set()
            done.wait(0.5)

    def answer() -> None:
        locked.wait(10)
        followup.apply(followup.response(new_id(), 2, account=globex))

    _beside(resolve, answer)
    assert sorted(task["state"] for task in followup.tasks()) == ["open", "resolved"]
    second.close()
