"""The words around a change in a notice, per language, and the text message that must fit two segments."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from services.followup.domain.change import LANGUAGES
from services.followup.domain.quote import trim
from shared.channels.gsm import plain, segments

MAX_SEGMENTS = 2
_QUOTE_LENGTHS = (120, 90, 60, 40, 25)
_TITLE_LENGTHS = (80, 50, 30, 15)
_FIELD = re.compile(r"\{([a-z_]+)\}")


@cache
def words(language: str) -> Mapping[str, str]:
    """All words of a notice in one of our languages."""
    text = (files("services.followup") / "texts" / f"{language}.toml").read_text(encoding="utf-8")
    return MappingProxyType(tomllib.loads(text)["notice"])


def language_of(*candidates: str | None) -> str:
    """The first of `candidates` that we speak ("de-AT" is "de"), else English."""
    for candidate in candidates:
        short = (candidate or "").replace("_", "-").split("-")[0].lower()
        if short in LANGUAGES:
            return short
    return "en"


def fill(text: str, **values: object) -> str:
    """`text` with its {names} filled in; what is filled in is not looked at again."""
    return _FIELD.sub(lambda found: str(values.get(found[1], found[0])), text)


def day(at: datetime, language: str, zone: str) -> str:
    """The day of an instant as a customer reads it: "March 3, 2026", "3. März 2026"."""
    from babel.dates import format_date  # loaded where used: locale data is heavy

    try:
        here = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError):
        here = ZoneInfo("UTC")
    return format_date(at.astimezone(here).date(), "long", locale=language)


def sms(language: str, *, company: str, title: str, quote: str, link: str) -> str:
    """The text message of a notice: with as much of the quote and the title as two segments hold.

    The link and how to opt out always stay. Characters outside the GSM alphabet halve the room and so
    shorten the quote, or drop it.
    """
    known = words(language)
    company, title, quote = plain(trim(company, 30, "...")), plain(title), plain(quote)
    tries = [(length, 80) for length in _QUOTE_LENGTHS if quote] + [(0, length) for length in _TITLE_LENGTHS]
    for quote_length, title_length in tries:
        text = fill(
            plain(known["sms_quote" if quote_length else "sms"]),
            company=company,
            title=trim(title, title_length, "..."),
            quote=trim(quote, quote_length, "..."),
            link=link,
        )
        if segments(text) <= MAX_SEGMENTS:
            return text
    return fill(known["sms_short"], link=link)
