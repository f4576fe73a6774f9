"""Followup's small pure rules: triage, owners, passwords, stages."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.followup.domain import passwords
from services.followup.domain.roles import Person, owner, unknown_scopes
from services.followup.domain.task import stage
from services.followup.domain.triage import (
    Answer,
    Callback,
    says_something_new,
    should_withdraw,
    turned_worse,
    wishes,
)

NOW = datetime(2026, 3, 3, 10, tzinfo=UTC)


def answer(
    score: int = 3, callback: Callback | None = None, state: str = "counted", **more: object
) -> Answer:
    facts: dict[str, object] = {"response_id": "r", "customer_id": "c", "comment": None, "answered_at": NOW}
    facts["revised_at"] = more.get("answered_at", NOW)
    return Answer(score=score, callback=callback, state=state, **{**facts, **more})  # type: ignore[arg-type]


answers = st.builds(
    Answer,
    response_id=st.sampled_from("abc"),
    customer_id=st.sampled_from("xy"),
    score=st.integers(0, 10),
    comment=st.none() | st.sampled_from(["one", "two"]),
    callback=st.none() | st.sampled_from(Callback),
    state=st.sampled_from(["counted", "quarantined", "excluded"]),
    answered_at=st.integers(0, 100).map(lambda n: NOW + timedelta(hours=n)),
    revised_at=st.integers(100, 200).map(lambda n: NOW + timedelta(hours=n)),
)


@given(answers)
def test_only_counted_answers_need_a_call_and_only_quarantined_ones_are_perhaps_unhappy(one: Answer) -> None:
    assert not (one.needs_call and one.state != "counted")
    assert not (one.perhaps_unhappy and one.state != "quarantined")
    assert one.needs_call or one.state != "counted" or one.score > 6


@given(st.lists(answers))
def test_a_task_is_withdrawn_only_when_nobody_behind_it_needs_a_call(found: list[Answer]) -> None:
    assert should_withdraw(found, contacted=False) is not any(one.needs_call for one in found)
    assert should_withdraw(found, contacted=True) is False


@given(answers, answers)
def test_getting_worse_means_needing_a_call_now_and_not_before(before: Answer, now: Answer) -> None:
    assert turned_worse(before, now) is (now.needs_call and not before.needs_call)
    assert turned_worse(None, now) is now.needs_call


def test_counting_an_answer_differently_is_not_the_customer_speaking() -> None:
    assert not says_something_new(answer(), answer(state="excluded"))
    assert says_something_new(answer(), answer(comment="x"))
    assert says_something_new(None, answer())


def test_the_last_wish_of_each_customer_holds_and_silence_changes_none() -> None:
    later = NOW + timedelta(hours=1)
    dont = answer(callback=Callback.DONT)
    assert wishes([dont, answer(answered_at=later)]).dont_call
    changed = wishes([dont, answer(callback=Callback.PLEASE, answered_at=later)])
    assert (changed.dont_call, changed.call_please) == (False, True)
    please = answer(callback=Callback.PLEASE, answered_at=later)
    said_last = wishes([answer(callback=Callback.DONT, revised_at=later + timedelta(hours=1)), please])
    assert (said_last.dont_call, said_last.call_please) == (True, False)
    other = answer(callback=Callback.PLEASE, customer_id="d")
    both = wishes([dont, other])
    assert both.dont_call and both.call_please
    assert wishes([answer(state="excluded")]).lowest_score is None


TODAY = date(2026, 3, 3)


def person(id_: str, **more: object) -> Person:
    return Person(**{"id": id_, "email": f"{id_}@x", "role": "agent", "disabled": False, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        ([person("ann"), person("fay")], "ann"),
        ([person("fay")], "fay"),
        ([], None),
        ([person("ann", disabled=True), person("fay")], "fay"),
        ([person("ann", role="viewer"), person("fay")], "fay"),
        ([person("ann", absent_from=TODAY, deputy_id="ben"), person("ben"), person("fay")], "ben"),
        (
            [person("ann", absent_from=TODAY, deputy_id="ben"), person("ben", disabled=True), person("fay")],
            "fay",
        ),
        ([person("ann", absent_from=TODAY), person("fay")], "fay"),
        ([person("ann", absent_from=date(2026, 3, 4), deputy_id="ben"), person("ben")], "ann"),
        ([person("ann", absent_from=date(2026, 3, 1), absent_until=date(2026, 3, 2))], "ann"),
        (
            [
                person("ann", absent_from=TODAY, absent_until=TODAY, deputy_id="fay"),
                person("fay", absent_from=TODAY),
            ],
            None,
        ),
    ],
)
def test_who_owns_a_task(people: list[Person], expected: str | None) -> None:
    by_email = {one.email: one for one in people}
    by_id = {one.id: one for one in people}
    found = owner("ann@x", "fay@x", by_email.get, by_id.get, TODAY)
    assert (found.id if found else None) == expected


def test_scopes_that_do_not_exist_are_named() -> None:
    assert unknown_scopes(["tasks:read", "all", "admin"]) == ["admin", "all"]


@pytest.mark.parametrize(
    ("password", "good"),
    [
        ("short", False),
        ("x" * 201, False),
        ("aaaaaaaaaaaaaa", False),
        ("my name is Ann Berger", False),
        ("Hearback2026!!", False),
        ("three unrelated words", True),
        ("пароль из слов", True),
    ],
)
def test_which_passwords_will_do(password: str, good: bool) -> None:
    assert (passwords.problem(password, ["Ann Berger", "ann@x", "ann"]) is None) is good


@given(st.binary(min_size=10, max_size=40))
def test_a_one_time_password_can_be_read_out_and_is_good_enough(random: bytes) -> None:
    text = passwords.one_time(random)
    assert len(text) == 19 and set(text) <= set("abcdefghijklmnopqrstuvwxyz234567-")


def test_stages_and_promises() -> None:
    earlier, later = NOW - timedelta(hours=1), NOW + timedelta(hours=1)
    assert stage("open", earlier, False, NOW) == "overdue"
    assert stage("open", later, False, NOW) == "waiting"
    assert stage("open", None, True, NOW) == "talking"
    assert stage("resolved", None, True, NOW) == "closed"
