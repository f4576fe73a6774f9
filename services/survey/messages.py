"""Writes the messages customers get: the mail in two forms, the short text, in the customer's language."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from services.survey.words import fill, language_of, words
from shared.channels import Message
from shared.channels.gsm import plain
from shared.db import Row


def wording_of(program: Mapping[str, Any], language: str) -> dict[str, str]:
    """A program's texts in `language`; what staff have not written is ours."""
    return {**words(language)["wording"], **program["wording"].get(language, {})}


def invitation(
    *,
    delivery_id: str,
    channel: str,
    to: str,
    name: str | None,
    language: str,
    links: Mapping[str, str],
    program: Mapping[str, Any],
    company: Mapping[str, Any],
    test: bool = False,
) -> Message:
    """The question, as a mail with eleven score links or as a text with one."""
    said = {key: fill(text, company=company["name"]) for key, text in wording_of(program, language).items()}
    if channel == "sms":
        return _sms(delivery_id, to, name, fill(said["sms"], link=links["trail"]), company)
    mail = words(language)["mail"]
    values = {
        "language": language,
        "colour": company["colour"],
        "on_colour": readable_on(company["colour"]),
        "company": company["name"],
        "postal_address": company["postal_address"],
        "hello": fill(mail["hello_name"], name=name) if name else mail["hello"],
        "subject": said["subject"],
        "question": said["question"],
        "intro": said["intro"],
        "intro_lines": said["intro"].splitlines(),
        "line_break": Markup("<br>"),
        "words": {key: fill(text, company=company["name"]) for key, text in mail.items()},
        "scores": [
            (score, f"{links['trail']}?s={score}", fill(mail["score_label"], score=score))
            for score in range(11)
        ],
        "preferences": links["preferences"],
        "test": test,
    }
    return Message(
        delivery_id=delivery_id,
        channel="email",
        to=to,
        to_name=name or "",
        subject=said["subject"],
        text=_text().render(values),
        html=_html().render(values),
        headers={
            # RFC 8058: both are covered by the DKIM signature that the provider adds.
            "List-Unsubscribe": f"<{links['unsubscribe']}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
            "Auto-Submitted": "auto-generated",
        },
        sender_name=company["sender_name"],
        sender_email=company["sender_email"],
        reply_to=company["reply_to"],
    )


def reply(
    *,
    delivery_id: str,
    to: str,
    name: str | None,
    language: str,
    links: Mapping[str, str],
    company: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Message:
    """The short text that answers a customer's own: their answer noted, help, or welcome back."""
    text = words(language)["sms"][data["what"]]
    link = links.get("trail", links["preferences"])
    filled = fill(
        text, company=company["name"], score=data.get("score"), link=link, reply_to=company["reply_to"]
    )
    return _sms(delivery_id, to, name, filled, company)


def preview(
    program: Mapping[str, Any], company: Row, language: str, channel: str, public_url: str
) -> Message:
    """A message as it would be sent, with links that lead nowhere."""
    links = {
        "trail": f"{public_url}/a/{'x' * 22}",
        "preferences": f"{public_url}/u/{'x' * 22}",
        "unsubscribe": f"{public_url}/u/{'x' * 22}",
    }
    return invitation(
        delivery_id="",
        channel=channel,
        to="",
        name=None,
        language=language_of(language),
        links=links,
        program=program,
        company=company,
    )


def _sms(delivery_id: str, to: str, name: str | None, text: str, company: Mapping[str, Any]) -> Message:
    return Message(
        delivery_id=delivery_id,
        channel="sms",
        to=to,
        to_name=name or "",
        text=plain(text),
        sender_name=company["sender_name"],
    )


def readable_on(colour: str) -> str:
    """Black or white, whichever reads better on `colour` ('#rrggbb'), by WCAG's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


@cache
def _environment() -> Environment:
    # An environment of our own: the sender has no Flask.
    return Environment(
        undefined=StrictUndefined,
        autoescape=False,  # plain text; the HTML gets an overlay that escapes  # noqa: S701
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _source(name: str) -> str:
    return (files("services.survey") / "templates" / "mail" / "invitation" / name).read_text(encoding="utf-8")


@cache
def _text() -> Template:
    return _environment().from_string(_source("text.txt"))


@cache
def _html() -> Template:
    """The mail's HTML: MJML compiled once in each process; its placeholders are filled in per message."""
    from mjml import mjml2html  # loaded where used

    markup = mjml2html(_source("html.mjml"), disable_comments=False, fonts={})
    return _environment().overlay(autoescape=True).from_string(markup)
