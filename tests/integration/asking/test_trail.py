"""The trail: a promise, its being late, its being kept, changes, in the customer's zone and language."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shared.channels import Message
from tests.support.asking import Asking, score_link, task, told_of_a_change, trail_link


@pytest.fixture
def answered(survey: Asking) -> Message:
    message = survey.invited(time_zone="Europe/Madrid", language="en")
    survey.submit(score_link(message, 2), comment="Too slow & rude")
    return message


def tell(survey: Asking, version: int = 1, **changes: Any) -> None:
    id_, _, data = task(survey.response(), **changes)
    survey.apply("task.opened", "tasks", str(survey.response()["id"]), version, {**data, "task_id": id_})


@pytest.mark.parametrize(
    ("changes", "words", "not_words"),
    [
        ({"owner_name": "Maria"}, "Maria has it and will call you by Wednesday, March 4, 11:00", "late"),
        ({}, "Our team has it and will call you by", "late"),
        ({"owner_name": "Maria", "dont_call": True}, "has read your wish not to be called", "will call you"),
        (
            {"owner_name": "Maria", "due_at": "2026-03-03T09:00:00Z"},
            "We are late, and we are sorry.",
            "reminded",
        ),
        (
            {"owner_name": "Maria", "due_at": "2026-03-03T09:00:00Z", "escalated_at": "2026-03-03T09:30:00Z"},
            "Maria has been reminded.",
            "will call",
        ),
        ({"first_contact_at": "2026-03-03T10:00:00Z"}, "We tried to reach you on", "will call you"),
        (
            {
                "owner_name": "Maria",
                "first_contact_at": "2026-03-03T10:00:00Z",
                "contacted_at": "2026-03-03T10:00:00Z",
            },
            "Maria spoke with you on Tuesday, March 3, 11:00",
            "late",
        ),
        (
            {"contacted_at": "2026-03-05T09:00:00Z", "due_at": "2026-03-04T09:00:00Z"},
            "later than we promised",
            "The promise was kept",
        ),
        (
            # Their colleague was called before: this answer waits for a call of its own.
            {
                "owner_name": "Maria",
                "first_contact_at": "2026-03-02T09:00:00Z",
                "contacted_at": "2026-03-02T09:00:00Z",
                "call_by": "2026-03-05T10:00:00Z",
            },
            "Maria has it and will call you by Thursday, March 5, 11:00",
            "spoke with you",
        ),
        (
            {
                "owner_name": "Maria",
                "first_contact_at": "2026-03-03T10:00:00Z",
                "call_by": "2026-03-05T10:00:00Z",
            },
            "Maria has it and will call you by Thursday, March 5, 11:00",
            "late",
        ),
        (
            # The reminder was for the call before this one.
            {
                "owner_name": "Maria",
                "first_contact_at": "2026-03-03T08:30:00Z",
                "escalated_at": "2026-03-03T08:15:00Z",
                "call_by": "2026-03-03T08:45:00Z",
            },
            "We are late, and we are sorry.",
            "reminded",
        ),
        (
            {
                "owner_name": "Maria",
                "first_contact_at": "2026-03-03T10:00:00Z",
                "call_by": "2026-03-05T10:00:00Z",
                "dont_call": True,
            },
            "has read your wish not to be called",
            "will call you",
        ),
        ({"state": "resolved", "resolved_at": "2026-03-03T09:00:00Z"}, "We settled this on", "will call"),
        ({"reopened": True}, "taken this up again", "settled"),
    ],
)
def test_what_followup_says_is_told_as_it_is(
    survey: Asking, answered: Message, changes: dict[str, Any], words: str, not_words: str
) -> None:
    tell(survey, **changes)
    page = survey.page(trail_link(answered) + "/trail").text
    assert words in page and not_words not in page
    assert "Too slow &amp; rude" in page


def test_a_task_taken_up_again_after_a_call_promises_the_next_one(survey: Asking, answered: Message) -> None:
    called = "2026-03-03T10:00:00Z"
    tell(
        survey,
        first_contact_at=called,
        contacted_at=called,
        reopened=True,
        call_by="2026-03-05T10:00:00Z",
    )
    page = survey.page(trail_link(answered) + "/trail").text
    said = ["The promise was kept", "taken this up again", "will call you by Thursday, March 5"]
    assert sorted(said, key=page.index) == said


def test_after_a_try_in_vain_the_next_call_is_promised_and_its_being_late_is_said(
    survey: Asking, answered: Message
) -> None:
    tell(survey, first_contact_at="2026-03-03T10:00:00Z", call_by="2026-03-05T10:00:00Z")
    page = survey.page(trail_link(answered) + "/trail").text
    assert page.index("We tried to reach you") < page.index("will call you by Thursday, March 5")
    survey.clock.advance(timedelta(days=3))
    page = survey.page(trail_link(answered) + "/trail").text
    assert page.index("We tried to reach you") < page.index("We are late") and "will call you" not in page


def test_a_withdrawn_task_promises_nothing(survey: Asking, answered: Message) -> None:
    tell(survey, state="withdrawn", withdrawn_reason="revised")
    page = survey.page(trail_link(answered) + "/trail").text
    assert "call you" not in page and 'data-promised="0"' in page


def test_a_change_is_told_with_its_question_until_it_is_answered(survey: Asking, answered: Message) -> None:
    notice_id = told_of_a_change(survey)
    page = survey.page(trail_link(answered) + f"?n={notice_id}&helped=no").text
    assert "Saturday delivery" in page and 'name="capability"' in page and 'data-chosen="no"' in page
    with survey.db.transaction() as tx:
        tx.execute("UPDATE notice_replica SET data = data || '{\"helped\": false}'")
    page = survey.page(trail_link(answered)).text
    assert "You told us that it did not help." in page and 'name="capability"' not in page


def test_a_withdrawn_change_is_not_told_any_more(survey: Asking, answered: Message) -> None:
    told_of_a_change(survey)
    with survey.db.transaction() as tx:
        tx.execute('UPDATE change_replica SET data = data || \'{"withdrawn_at": "2026-03-03T10:00:00Z"}\'')
    assert "Saturday delivery" not in survey.page(trail_link(answered)).text


def test_the_trail_stays_readable_after_the_question_is_closed(survey: Asking, answered: Message) -> None:
    tell(survey, owner_name="Maria", contacted_at="2026-03-03T09:00:00Z")
    survey.clock.advance(timedelta(days=200))
    page = survey.page(trail_link(answered)).text
    assert "The promise was kept" in page and 'id="a"' not in page


def test_with_everything_on_it_the_page_stays_light(survey: Asking) -> None:
    message = survey.invited(language="de")
    survey.submit(score_link(message, 2), comment="Ärger " * 100, callback="please")
    tell(survey, owner_name="Maria", first_contact_at="2026-03-03T10:00:00Z", reopened=True)
    for _ in range(3):
        told_of_a_change(survey)
    assert len(survey.page(trail_link(message)).data) < 20_000
