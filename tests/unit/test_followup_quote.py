"""A customer's words are cut at a word's end, never made longer, and cannot misbehave."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from services.followup.domain.quote import trim


def test_short_words_stay_as_they_are() -> None:
    assert trim("  Too\n\nlate,  again ", 40) == "Too late, again"


def test_long_words_end_at_a_word() -> None:
    assert trim("Three days late, and nobody told me", 20) == "Three days late…"
    assert trim("Three days late - and nobody", 19) == "Three days late…"


def test_one_long_word_is_cut_inside() -> None:
    assert trim("Donaudampfschifffahrt", 10) == "Donaudamp…"


def test_an_accent_stays_with_its_letter() -> None:
    assert trim("a" * 8 + "e\u0301" + "b" * 9, 10) == "a" * 8 + "…"


def test_nothing_that_prints_is_nothing() -> None:
    assert trim(None, 10) == trim(" \n\u200b\u202e", 10) == ""


@given(st.text(), st.integers(0, 400))
def test_is_never_longer_than_asked_and_has_no_control_characters(words: str, limit: int) -> None:
    short = trim(words, limit)
    assert len(short) <= limit
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in short)
    assert "\u202e" not in short


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1), st.integers(12, 60))
def test_keeps_whole_words_from_the_beginning(words: list[str], limit: int) -> None:
    whole = " ".join(words)
    short = trim(whole, limit)
    if short != whole:
        assert (whole + " ").startswith(short.removesuffix("…") + " ")
