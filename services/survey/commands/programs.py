"""Changes programs: wording, channels, touchpoint, pause and start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg2 import errors
from psycopg2.extras import Json

from services.survey import facts
from services.survey.domain.budget import CHANNELS
from services.survey.words import LANGUAGES, WORDING_FIELDS, default_wording
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound

DEFAULT_NAME = "Recommend"
DEFAULT_TOUCHPOINT = "general"
_LIMITS = {"subject": 150, "question": 300, "intro": 1000, "thanks": 500, "sms": 459}


def ensure_default(tx: Tx) -> Row:
    """The program to begin with; made when there is none at all."""
    tx.execute("LOCK TABLE program IN SHARE ROW EXCLUSIVE MODE")
    row = tx.one("SELECT * FROM program ORDER BY created_at, id LIMIT 1")
    return row or create(tx, DEFAULT_NAME)


def create(tx: Tx, name: str, touchpoint: str = DEFAULT_TOUCHPOINT) -> Row:
    """A new active program with the default wording. Raises `Invalid`; `Conflict` for a name twice."""
    name, touchpoint = _name(name), _touchpoint(touchpoint)
    tx.execute("SAVEPOINT named")
    try:
        row = tx.one(
            "INSERT INTO program (id, version, name, touchpoint, channels, wording, answer_days, state,"
            " created_at)"
            " VALUES (%s, 1, %s, %s, %s, %s, 30, 'active', %s) RETURNING *",
            (tx.ids.new(), name, touchpoint, list(CHANNELS), Json(default_wording()), tx.now),
        )
    except errors.UniqueViolation as error:
        tx.execute("ROLLBACK TO SAVEPOINT named")
        raise Conflict("There is a program with this name already.", fields={"name": "is taken"}) from error
    assert row is not None  # noqa: S101 - for the type checker; RETURNING gives the row
    facts.publish(tx, [facts.program_changed(row)])
    return row


def change(tx: Tx, program_id: str, changes: Mapping[str, Any]) -> Row:
    """Sets any of name, touchpoint, channels, wording (per language, merged), answer_days, state.

    The same values again change nothing. Raises `NotFound`, `Conflict`, `Invalid` naming each field
    ("wording.de.sms").
    """
    row = tx.one("SELECT * FROM program WHERE id = %s FOR NO KEY UPDATE", (program_id,))
    if row is None:
        raise NotFound("There is no such program.")
    new = row | _checked(row, changes)
    if new == row:
        return row
    tx.execute("SAVEPOINT named")
    try:
        saved = tx.one(
            "UPDATE program SET version = version + 1, name = %(name)s, touchpoint = %(touchpoint)s,"
            " channels = %(channels)s, wording = %(wording)s, answer_days = %(answer_days)s,"
            " state = %(state)s"
            " WHERE id = %(id)s RETURNING *",
            new | {"wording": Json(new["wording"])},
        )
    except errors.UniqueViolation as error:
        tx.execute("ROLLBACK TO SAVEPOINT named")
        raise Conflict("There is a program with this name already.", fields={"name": "is taken"}) from error
    assert saved is not None  # noqa: S101 - locked above
    facts.publish(tx, [facts.program_changed(saved)])
    return saved


def _checked(row: Row, changes: Mapping[str, Any]) -> dict[str, Any]:
    wrong: dict[str, str] = {}
    new: dict[str, Any] = {}
    for name, value in changes.items():
        try:
            new[name] = _check(name, value, row)
        except Invalid as error:
            wrong |= error.fields or {name: error.message}
    if wrong:
        raise Invalid("Nothing was saved: something needs another look.", fields=wrong)
    return new


def _check(name: str, value: Any, row: Row) -> Any:
    if name == "name":
        return _name(value)
    if name == "touchpoint":
        return _touchpoint(value)
    if name == "channels":
        channels = list(dict.fromkeys(value))
        if not channels or set(channels) - set(CHANNELS):
            raise Invalid("", fields={"channels": "Choose at least one of e-mail and SMS."})
        return channels
    if name == "answer_days":
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 365:
            raise Invalid("", fields={"answer_days": "Give a whole number of days from 1 to 365."})
        return value
    if name == "state":
        if value not in ("active", "paused"):
            raise Invalid("", fields={"state": "A program is active or paused."})
        return value
    if name == "wording":
        return _wording(value, row["wording"])
    raise Invalid("", fields={name: "A program has no such setting."})


def _wording(value: Mapping[str, Any], before: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    wrong: dict[str, str] = {}
    merged = {language: dict(texts) for language, texts in before.items()}
    for language, texts in value.items():
        if language not in LANGUAGES:
            wrong[f"wording.{language}"] = "We speak " + ", ".join(LANGUAGES) + "."
            continue
        for name, text in texts.items():
            field = f"wording.{language}.{name}"
            if name not in WORDING_FIELDS:
                wrong[field] = "There is no such text."
                continue
            tidy = " ".join(str(text).split()) if name in ("subject", "sms") else str(text).strip()
            if not tidy:
                wrong[field] = "Write a few words; this cannot be empty."
            elif len(tidy) > _LIMITS[name]:
                wrong[field] = f"Shorten this to {_LIMITS[name]} characters; it has {len(tidy)}."
            elif name == "sms" and "{link}" not in tidy:
                wrong[field] = "Keep {link}: without it nobody can answer by web."
            elif name == "sms" and "STOP" not in tidy:
                wrong[field] = "Keep the word STOP: every message must say how to end them."
            else:
                merged.setdefault(language, {})[name] = tidy
    if wrong:
        raise Invalid("", fields=wrong)
    return merged


def _name(value: Any) -> str:
    name = " ".join(str(value).split())
    if not 1 <= len(name) <= 80:
        raise Invalid("The program needs a name.", fields={"name": "Give a name of 1 to 80 characters."})
    return name


def _touchpoint(value: Any) -> str:
    touchpoint = " ".join(str(value).split())
    if not 1 <= len(touchpoint) <= 80:
        raise Invalid(
            "The program needs a touchpoint.",
            fields={"touchpoint": "Give a word or two, like order or support."},
        )
    return touchpoint
