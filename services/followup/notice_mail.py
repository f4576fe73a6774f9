"""A notice as the message one customer gets: mail in text and HTML, or a text message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from services.followup.notice_words import day, fill, language_of, sms, words

_DARK, _LIGHT, _INK = "#000000", "#ffffff", "#1d2433"


@dataclass(frozen=True, slots=True)
class Content:
    """What a notice says: the change, the customer's words, and the company as `company.changed` has it."""

    notice_id: str
    title: str
    was_wrong: str
    is_different: str
    change_language: str
    quote: str
    score: int
    answered_at: datetime
    company: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """The parts of a message; `html` is empty for a text message, and so is `subject`."""

    subject: str
    text: str
    html: str
    headers: dict[str, str]


def write(
    content: Content, *, channel: str, language: str | None, name: str | None, links: Mapping[str, str]
) -> Written:
    """The message in the customer's language (else the company's), with the permit's `links`: `trail`,
    `preferences`, `unsubscribe`."""
    company = content.company
    spoken = language_of(language, company.get("language"))
    if channel == "sms":
        link = _with(links["trail"], f"n={content.notice_id}")
        text = sms(spoken, company=company["name"], title=content.title, quote=content.quote, link=link)
        return Written("", text, "", {})
    known = words(spoken)
    subject = " ".join(fill(known["subject"], title=content.title).split())
    when = day(content.answered_at, spoken, company["time_zone"])
    lead = fill(known["quote_lead" if content.quote else "lead"], day=when, score=content.score)
    colour = str(company["colour"])
    values = {
        "language": spoken,
        "words": known,
        "subject": subject,
        "hello": fill(known["hello_name"], name=name) if name else known["hello"],
        "lead": lead,
        "quote": fill(known["quote"], quote=content.quote) if content.quote else "",
        "change": {
            "title": content.title,
            "was_wrong": content.was_wrong,
            "is_different": content.is_different,
            "language": content.change_language,
        },
        "company": company,
        "colour": colour,
        "on_colour": text_on(colour),
        # The company's colour for words only where they stand out from white.
        "name_colour": colour if text_on(colour) == _LIGHT else _INK,
        "why": fill(known["why"], company=company["name"]),
        "links": {
            "yes": _with(links["trail"], f"n={content.notice_id}&helped=yes"),
            "no": _with(links["trail"], f"n={content.notice_id}&helped=no"),
            "trail": links["trail"],
            "preferences": links["preferences"],
            "unsubscribe": links["unsubscribe"],
        },
    }
    return Written(
        subject,
        _templates().get_template("body.txt").render(values),
        _html(_templates().get_template("body.mjml").render(values)),
        {
            "List-Unsubscribe": f"<{links['unsubscribe']}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        },
    )


def text_on(colour: str) -> str:
    """Black or white, whichever is easier to read on `colour` ("#rrggbb"): at least 4.5 : 1 by WCAG 2."""
    try:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    except ValueError:
        return _LIGHT
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Contrast with white is 1.05 / (L + 0.05), with black (L + 0.05) / 0.05.
    return _LIGHT if 1.05 / (luminance + 0.05) >= (luminance + 0.05) / 0.05 else _DARK


def _html(mjml: str) -> str:
    from mjml import mjml2html  # loaded where used: only the sender writes mails

    # No fonts from elsewhere: opening a message must tell nobody but us.
    html = mjml2html(mjml, fonts={})
    return str(html)


def _with(link: str, query: str) -> str:
    return f"{link}{'&' if '?' in link else '?'}{query}"


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("services.followup", "templates/mail/notice"),
        autoescape=select_autoescape(("mjml",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["lines"] = _lines
    return templates


def _lines(text: str) -> Markup:
    return Markup("<br />").join(escape(line) for line in text.splitlines())
