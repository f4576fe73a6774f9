"""What a text message means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.survey.domain.sms import HELP_WORDS, START_WORDS, STOP_WORDS, keyword, read


@pytest.mark.parametrize(
    ("text", "score", "comment"),
    [
        ("3 too slow", 3, "too slow"),
        ("3", 3, None),
        ("10", 10, None),
        ("0.", 0, None),
        ("10/10!", 10, None),
        ("3/10 too slow", 3, "too slow"),
        ("3 out of 10, rude", 3, "rude"),
        ("3 von 10 leider", 3, "leider"),
        ("3 - too slow", 3, "too slow"),
        ("3, too slow", 3, "too slow"),
        ("3) too slow", 3, "too slow"),
        ("3\ntoo slow", 3, "too slow"),
        ("Score: 3 bad", 3, "bad"),
        ("my score 3", 3, None),
        ("Nota 8 muy bien", 8, "muy bien"),
        ("2 2.5 months", 2, "2.5 months"),
        ("7 ...", 7, "..."),
        ("9 9 the chap was kind", 9, "9 the chap was kind"),
        ("I'd say 4/10 because of the wait", 4, "I'd say 4/10 because of the wait"),
    ],
)
def test_reads_a_score_and_keeps_the_words_as_written(text: str, score: int, comment: str | None) -> None:
    reading = read(text)
    assert (reading.keyword, reading.score, reading.comment) == (None, score, comment)


@pytest.mark.parametrize(
    "text",
    [
        "11",
        "100",
        "3.5",
        "3,5 stars",
        "7-8",
        "10:30 works",
        "3rd time",
        "10%",
        "-3",
        "zehn",
        "who is this?",
        "I waited 3 weeks",
    ],
)
def test_takes_nothing_else_for_a_score(text: str) -> None:
    reading = read(text)
    assert (reading.keyword, reading.score, reading.comment) == (None, None, text)


@pytest.mark.parametrize(
    "text",
    ["STOP", " stop. ", "Stop!", "STOP ALL", "opt-out", "Unsubscribe", "end", "quit", "cancel", "revoke"],
)
def test_stop_words_alone_stop(text: str) -> None:
    assert read(text).keyword == "stop"


def test_a_score_with_nothing_but_stop_is_both() -> None:
    reading = read("3 STOP")
    assert (reading.keyword, reading.score, reading.comment) == ("stop", 3, "STOP")


@pytest.mark.parametrize(
    "text", ["please stop calling", "stop it now", "end of story", "yes it was fine", "stop 3"]
)
def test_keywords_within_words_do_nothing(text: str) -> None:
    assert read(text).keyword is None


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    reading = read(text)
    assert reading.score is None or 0 <= reading.score <= 10
    assert reading.comment is None or reading.comment in text or reading.comment.strip()


@given(st.integers(0, 10), st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1))
def test_a_score_a_space_and_words_are_score_and_words(score: int, words: str) -> None:
    words = words.strip()
    reading = read(f"{score} {words}".strip())
    assert reading.score == score
    if (
        words
        and words[0].isalnum()
        and not words.lower().startswith(("of", "out", "von", "aus", "de", "sobre"))
    ):
        assert reading.comment == words


@given(
    st.sampled_from(sorted(STOP_WORDS | START_WORDS | HELP_WORDS)),
    st.text(" .!?\n\t*-_", max_size=4),
    st.booleans(),
)
def test_keywords_survive_case_space_and_punctuation(word: str, around: str, upper: bool) -> None:
    expected = "stop" if word in STOP_WORDS else "start" if word in START_WORDS else "help"
    assert keyword(around + (word.upper() if upper else word) + around) == expected
