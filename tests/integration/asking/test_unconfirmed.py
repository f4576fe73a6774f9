"""Clicks that nobody confirmed are told apart, once; answers can be excluded and put back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.survey.commands import exclude
from shared.errors import Conflict, Invalid
from tests.support.asking import Asking, score_link


def test_a_click_without_an_answer_is_told_after_a_quarter_of_an_hour_once(survey: Asking) -> None:
    message = survey.invited()
    survey.page(score_link(message, 5))
    survey.clock.advance(timedelta(minutes=1))
    survey.page(score_link(message, 2))
    survey.events()
    survey.clock.advance(timedelta(minutes=13))
    survey.due()
    assert survey.events() == []
    survey.clock.advance(timedelta(minutes=2))
    survey.due()
    survey.due()
    event = survey.events("response.unconfirmed")
    assert len(event) == 1
    assert (event[0]["data"]["score"], event[0]["data"]["band"], event[0]["version"]) == (5, "detractor", 1)
    survey.clock.advance(timedelta(minutes=20))
    survey.page(score_link(message, 1))
    survey.clock.advance(timedelta(minutes=20))
    survey.due()
    assert survey.events("response.unconfirmed") == []


def test_a_scanner_that_follows_every_link_is_told_as_nobody(survey: Asking) -> None:
    message = survey.invited()
    for score in range(11):
        survey.page(score_link(message, score))
    survey.clock.advance(timedelta(minutes=16))
    survey.due()
    assert survey.events("response.unconfirmed") == []
    # A person who comes after the scanner is still noticed.
    survey.page(score_link(message, 4))
    survey.clock.advance(timedelta(minutes=16))
    survey.due()
    assert [e["data"]["score"] for e in survey.events("response.unconfirmed")] == [4]


def test_an_answered_invitation_is_not_unconfirmed(survey: Asking) -> None:
    message = survey.invited()
    survey.submit(score_link(message, 4))
    survey.clock.advance(timedelta(minutes=16))
    survey.due()
    assert survey.events("response.unconfirmed") == []


def test_an_answer_is_excluded_with_a_reason_and_put_back(survey: Asking) -> None:
    survey.submit(score_link(survey.invited(), 4))
    response = str(survey.response()["id"])
    survey.events()
    with pytest.raises(Invalid), survey.db.transaction() as tx:
        exclude.exclude(tx, response, "  ", "Lea")
    with survey.db.transaction() as tx:
        exclude.exclude(tx, response, "our own trial", "Lea")
    with pytest.raises(Conflict), survey.db.transaction() as tx:
        exclude.exclude(tx, response, "again", "Lea")
    with survey.db.transaction() as tx:
        exclude.include(tx, response, "Lea")
    events = survey.events("response.excluded")
    told = [
        (e["version"], e["data"]["excluded"], e["data"]["reason"], e["data"]["by"], e["data"]["state"])
        for e in events
    ]
    assert told == [(2, True, "our own trial", "Lea", "excluded"), (3, False, None, "Lea", "counted")]


def test_a_revision_of_an_excluded_answer_stays_excluded(survey: Asking) -> None:
    message = survey.invited()
    survey.submit(score_link(message, 4))
    with survey.db.transaction() as tx:
        exclude.exclude(tx, str(survey.response()["id"]), "our own trial", "Lea")
    survey.clock.advance(timedelta(minutes=1))
    survey.submit(score_link(message, 9))
    row = survey.response()
    assert (row["score"], row["state"], row["state_reason"]) == (9, "excluded", "our own trial")
