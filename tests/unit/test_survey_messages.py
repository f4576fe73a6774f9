"""Messages in every language: their links, headers, weight, and words that are all there."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.survey import messages
from services.survey.queries.company import DEFAULTS
from services.survey.words import (
    LANGUAGES,
    day,
    day_and_time,
    default_wording,
    fill,
    language_of,
    words,
    zone_of,
)
from shared.channels.gsm import segments

PROGRAM: dict[str, Any] = {"wording": default_wording()}
COMPANY: dict[str, Any] = {
    **DEFAULTS,
    "name": "Müller & Söhne <GmbH>",
    "postal_address": "Am Markt 1\n10115 Berlin",
}


def test_every_language_says_everything_with_the_same_placeholders() -> None:
    def said(language: str) -> dict[tuple[str, str], set[str]]:
        return {
            (name, key): set(re.findall(r"\{\w+\}", text))
            for name, section in words(language).items()
            for key, text in section.items()
        }

    for language in LANGUAGES[1:]:
        assert said(language) == said("en")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_mail_has_eleven_links_in_both_parts(language: str) -> None:
    mail = messages.preview(PROGRAM, COMPANY, language, "email", "https://h.example.com")
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', mail.html)]
    for score in range(11):
        assert sum(link.endswith(f"?s={score}") for link in links) == 1
        assert f"?s={score}\n" in mail.text.replace("  (", "\n(")
    assert all(link.startswith("https://h.example.com/") for link in links)
    assert "Müller &amp; Söhne &lt;GmbH&gt;" in mail.html and "Müller & Söhne <GmbH>" in mail.text
    assert "{" not in mail.text + mail.subject
    assert len(mail.html) < 30_000
    # Outlook drops what follows a conditional comment that is never closed.
    assert mail.html.count("<!--[if") == mail.html.count("<![endif]")
    assert "fonts.googleapis" not in mail.html and "<img" not in mail.html


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_text_message_is_short_and_says_how_to_stop(language: str) -> None:
    text = messages.preview(
        PROGRAM, {**COMPANY, "name": "Example Ltd"}, language, "sms", "https://h.example.com"
    ).text
    assert "STOP" in text and "https://h.example.com/a/" in text
    assert segments(text) <= 2


def test_a_name_cannot_break_out_of_the_mail() -> None:
    links = {"trail": "http://x/a/t", "preferences": "http://x/u/t", "unsubscribe": "http://x/u/t"}
    mail = messages.invitation(
        delivery_id="1", channel="email", to="a@example.com", name="<script>{{ 7*7 }}{company}",
        language="en",
        links=links, program=PROGRAM, company=COMPANY,
    )  # fmt: skip
    assert "<script>" not in mail.html and "49" not in mail.text.split("\n")[0] and "{company}" in mail.text


@pytest.mark.parametrize(
    ("colour", "text"),
    [("#ffffff", "#000000"), ("#000000", "#ffffff"), ("#1f5fbf", "#ffffff"), ("#ffd500", "#000000")],
)
def test_words_on_a_colour_can_be_read(colour: str, text: str) -> None:
    assert messages.readable_on(colour) == text


def test_times_are_in_the_customers_zone_and_language() -> None:
    at = datetime(2026, 3, 5, 22, 30, tzinfo=UTC)
    assert day_and_time(at, "de", zone_of("Europe/Berlin")) == "Donnerstag, 5. März, 23:30 Uhr"
    assert day_and_time(at, "es", zone_of("America/Mexico_City")) == "jueves 5 de marzo, 16:30"
    assert day_and_time(at, "en", zone_of("Nowhere/Land", "Asia/Tokyo")).startswith("Friday, March 6, 7:30")
    assert day(at, "en", zone_of(None)) == "March 5, 2026"


@pytest.mark.parametrize(
    ("given", "found"), [(("de-AT",), "de"), ((None, "es"), "es"), (("fr", "de"), "de"), (("xx", None), "en")]
)
def test_the_first_language_we_speak_is_taken(given: tuple[str | None, ...], found: str) -> None:
    assert language_of(*given) == found


@given(st.text())
def test_filling_never_fails(text: str) -> None:
    fill(text, company="Example", score=None)
