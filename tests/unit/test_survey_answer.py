"""What a sent form does to a recorded answer, and when it cannot be trusted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.survey.domain.answer import (
    COMMENT_LIMIT,
    CONTRADICTION,
    DECOY,
    Click,
    Recorded,
    effect,
    parse_score,
    suspicion,
    tidy_comment,
)

NOW = datetime(2026, 3, 3, 10, 0, tzinfo=UTC)
versions = st.integers(0, 5)
answers = st.builds(
    Recorded,
    versions,
    st.integers(0, 10),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from([None, "please"]),
)


@given(answers, versions, answers)
def test_a_known_nonce_is_a_retry_whatever_it_says(recorded: Recorded, seen: int, wanted: Recorded) -> None:
    assert effect(recorded, seen, True, wanted) == "retry"


@given(answers, versions, answers)
def test_only_a_form_that_saw_the_present_version_changes_anything(
    recorded: Recorded, seen: int, wanted: Recorded
) -> None:
    found = effect(recorded, seen, False, wanted)
    assert (found == "stale") == (seen != recorded.version)
    if found == "first":
        assert recorded.version == 0
    if found == "same":
        assert (recorded.score, recorded.comment, recorded.callback) == (
            wanted.score,
            wanted.comment,
            wanted.callback,
        )


def click(score: int | None, before: timedelta, kind: str = "get") -> Click:
    return Click(kind, score, NOW - before)


def test_one_score_clicked_twice_is_no_contradiction() -> None:
    assert suspicion([click(7, timedelta(seconds=1)), click(7, timedelta(0))], NOW, 7) is None


def test_two_scores_of_one_mail_within_seconds_contradict() -> None:
    assert suspicion([click(7, CONTRADICTION)], NOW, 3) == "contradiction"
    assert suspicion([click(7, CONTRADICTION + timedelta(seconds=1))], NOW, 3) is None


def test_the_row_on_the_page_is_for_changing_ones_mind() -> None:
    assert suspicion([click(7, timedelta(seconds=2))], NOW, 3, from_mail=False) is None


def test_the_decoy_taints_for_a_minute() -> None:
    assert suspicion([click(None, DECOY, "decoy")], NOW, 3) == "decoy"
    assert suspicion([click(None, DECOY + timedelta(seconds=1), "decoy")], NOW, 3) is None


@given(st.text())
def test_a_comment_is_tidied_once_and_for_all(text: str) -> None:
    tidy = tidy_comment(text)
    assert tidy is None or (tidy == tidy_comment(tidy) and len(tidy) <= COMMENT_LIMIT and "\0" not in tidy)


@given(st.text())
def test_only_whole_numbers_from_0_to_10_are_scores(text: str) -> None:
    score = parse_score(text)
    assert score is None or (0 <= score <= 10 and int(text) == score)


@pytest.mark.parametrize("text", ["11", "-1", "1.0", "٣", "", " 1", "010", None])
def test_what_looks_like_a_score_is_none(text: str | None) -> None:
    assert parse_score(text) is None
