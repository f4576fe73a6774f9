"""A notice's words: three languages, whole links, text messages of at most two segments, readable buttons."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.followup.domain.change import LANGUAGES, Draft, mistakes, reason_text
from services.followup.notice_mail import Content, text_on, write
from services.followup.notice_words import language_of, sms, words
from shared.channels.gsm import plain, segments

LINK = "https://feedback.example.com/a/abcdefghijklmnopqrstuv?n=0195b1c0-0000-7000-8000-000000000001"
LINKS = {
    "trail": LINK.split("?")[0],
    "preferences": "https://f.example/u/p",
    "unsubscribe": "https://f.example/u/o",
}
COMPANY = {
    "name": "Nordwind & Söhne",
    "language": "es",
    "time_zone": "Europe/Berlin",
    "colour": "#0b5fff",
    "postal_address": "Hafenstr. 1\n20457 Hamburg",
}


def content(**more: object) -> Content:
    return Content(
        **{  # type: ignore[arg-type]
            "notice_id": "0195b1c0-0000-7000-8000-000000000001",
            "title": "Delivery on Saturdays",
            "was_wrong": "Orders came\non weekdays <only>.",
            "is_different": "They come on Saturdays too.",
            "change_language": "en",
            "quote": "Too late",
            "score": 3,
            "answered_at": datetime(2026, 3, 1, 23, 30, tzinfo=UTC),
            "company": COMPANY,
        }
        | more
    )


def test_every_language_has_every_word() -> None:
    keys = [set(words(language)) for language in LANGUAGES]
    assert all(one == other for one, other in pairwise(keys))


@pytest.mark.parametrize("language", LANGUAGES)
def test_mail_in_each_language_has_everything(language: str) -> None:
    mail = write(content(), channel="email", language=language, name="Ann", links=LINKS)
    known = words(language)
    for text in (known["yes"], known["no"], known["was_wrong"], known["preferences"], "Ann", "20457 Hamburg"):
        assert text in mail.text and text in mail.html
    assert f'lang="{language}"' in mail.html
    assert "Orders came<br />on weekdays &lt;only&gt;." in mail.html.replace("<br>", "<br />")
    assert "{" not in mail.text and "{{" not in mail.html
    # It loads nothing from anywhere: no font, no picture.
    assert set(re.findall(r"https?://([^/\"<]+)", mail.html)) <= {
        "feedback.example.com",
        "f.example",
        "www.w3.org",
    }
    assert "\n" not in mail.subject and "Delivery on Saturdays" in mail.subject


def test_an_unknown_language_is_the_companys() -> None:
    assert write(content(), channel="email", language="fr", name=None, links=LINKS).text.startswith("Hola:")
    assert language_of("de-AT", "en") == "de"
    assert language_of(None, "xx") == "en"


def test_the_day_is_the_companys() -> None:
    assert "March 2, 2026" in write(content(), channel="email", language="en", name=None, links=LINKS).text


def test_without_words_nothing_is_quoted() -> None:
    mail = write(content(quote=""), channel="email", language="en", name=None, links=LINKS)
    assert "wrote" not in mail.text and "blockquote" not in mail.html


@given(
    language=st.sampled_from(sorted(LANGUAGES)),
    company=st.text(min_size=1, max_size=120),
    title=st.text(min_size=1, max_size=80),
    quote=st.text(max_size=280),
)
def test_a_text_message_has_at_most_two_segments_and_its_link(
    language: str, company: str, title: str, quote: str
) -> None:
    text = sms(language, company=company, title=title, quote=quote, link=LINK)
    assert segments(text) <= 2
    assert LINK in text
    assert "STOP" in text


def test_a_text_message_quotes_as_much_as_fits() -> None:
    text = sms("en", company="Nordwind", title="Saturdays", quote="“Too late” — again…", link=LINK)
    assert '""Too late" - again..."' in text
    assert len(sms("en", company="N", title="Saturdays", quote="word " * 50, link=LINK)) > 250


def test_typographic_characters_do_not_cost_a_segment() -> None:
    assert segments(plain("“a” – b… ’c’")) == 1
    assert segments("a" * 160) == 1 and segments("a" * 161) == 2 and segments("a" * 307) == 3
    assert segments("€" * 80) == 1 and segments("€" * 81) == 2
    assert segments("ł" * 70) == 1 and segments("ł" * 71) == 2


@given(st.integers(0, 0xFFFFFF))
def test_words_on_the_companys_colour_can_be_read(colour: int) -> None:
    def luminance(text: str) -> float:
        parts = [int(text[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    behind = f"#{colour:06x}"
    lighter, darker = sorted((luminance(behind), luminance(text_on(behind))), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_a_complete_draft_has_no_mistakes() -> None:
    draft = Draft("Saturdays", "late", "not late", "en", date(2026, 3, 3), ("t", "t")).tidy()
    assert mistakes(draft, date(2026, 3, 3)) == {}
    assert draft.theme_ids == ("t",)


def test_names_each_mistake() -> None:
    draft = Draft("x" * 81, "y" * 1001, " ", "fr", date(2026, 3, 4)).tidy()
    assert set(mistakes(draft, date(2026, 3, 3))) == {
        "title", "was_wrong", "is_different", "language", "since", "theme_ids"
    }  # fmt: skip


def test_reasons_are_said_in_words() -> None:
    assert reason_text("opted_out") == "asked for no messages"
    assert reason_text("some_new_one") == "some new one"
