"""The words customers read, per language, and how dates read in them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

LANGUAGES = ("en", "de", "es")
WORDING_FIELDS = ("subject", "question", "intro", "thanks", "sms")

Section = Mapping[str, str]


@cache
def words(language: str) -> Mapping[str, Section]:
    """All sections of one language's words; `language` is one of `LANGUAGES`."""
    text = (files("services.survey") / "texts" / f"{language}.toml").read_text(encoding="utf-8")
    sections = {name: value for name, value in tomllib.loads(text).items() if isinstance(value, dict)}
    return MappingProxyType({name: MappingProxyType(section) for name, section in sections.items()})


def language_of(*candidates: str | None) -> str:
    """The first of `candidates` that we speak ("de-AT" is "de"), else English."""
    for candidate in candidates:
        short = (candidate or "").replace("_", "-").split("-")[0].lower()
        if short in LANGUAGES:
            return short
    return "en"


_FIELD = re.compile(r"\{([a-z_]+)\}")


def fill(text: str, **values: object) -> str:
    """`text` with its {names} filled in; an unknown one (or None) stays: a slip fails no message."""
    known = {name: str(value) for name, value in values.items() if value is not None}
    return _FIELD.sub(lambda found: known.get(found[1], found[0]), text)


@lru_cache(maxsize=1024)
def section(
    language: str, name: str, *, company: str | None = None, score: int | None = None
) -> Mapping[str, str]:
    """One section of a language's words, filled in; kept, because every page shows the same ones."""
    filled = {key: fill(text, company=company, score=score) for key, text in words(language)[name].items()}
    return MappingProxyType(filled)


@cache
def score_labels(language: str) -> tuple[str, ...]:
    """What a screen reader says of each score's button, 0 to 10."""
    return tuple(fill(words(language)["answer"]["choose_score"], score=score) for score in range(11))


def default_wording() -> dict[str, dict[str, str]]:
    """The wording a new program starts with, in every language."""
    return {language: dict(words(language)["wording"]) for language in LANGUAGES}


def zone_of(*candidates: str | None) -> ZoneInfo:
    """The first of `candidates` that is a known time zone, else UTC."""
    for candidate in candidates:
        if candidate:
            try:
                return ZoneInfo(candidate)
            except (ZoneInfoNotFoundError, ValueError):
                continue
    return ZoneInfo("UTC")


def day_and_time(at: datetime, language: str, zone: ZoneInfo) -> str:
    """An instant as a customer reads it: "Thursday, March 5, 11:00 AM", "Donnerstag, 5. März, 11:00 Uhr"."""
    from babel.dates import format_date, format_time  # loaded where used: locale data is heavy

    dates = words(language)["dates"]
    date = format_date(at.astimezone(zone).date(), dates["day_pattern"], locale=language)
    time = format_time(at, "short", tzinfo=zone, locale=language)
    return fill(dates["by_sep"], date=date, time=time)


def day(at: datetime, language: str, zone: ZoneInfo) -> str:
    """The day of an instant: "March 5, 2026", "5. März 2026"."""
    from babel.dates import format_date

    return format_date(at.astimezone(zone).date(), "long", locale=language)
