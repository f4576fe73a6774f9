"""Reads the answers to play from a CSV: when, where in the journey, the score, and the words."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import Invalid

COLUMNS = ("answered_at", "touchpoint", "score", "comment")
DEFAULT_DATE_FORMAT = "%Y-%m-%d %H:%M"

# What a provider takes for "send me nothing more" (MECHANICS of the trade: Twilio's default keywords).
STOP_WORDS = frozenset({"stop", "stopall", "unsubscribe", "end", "quit", "cancel", "revoke", "optout"})


@dataclass(frozen=True, slots=True)
class Answer:
    """One customer to play. `line` is the physical line of the file; `channel` is email or sms."""

    line: int
    answered_at: datetime
    touchpoint: str
    score: int
    comment: str
    channel: str

    @property
    def opts_out(self) -> bool:
        """Whether this customer's text ends their texts: its comment is nothing but a stop word."""
        return self.channel == "sms" and re.sub(r"[\W_]+", "", self.comment).lower() in STOP_WORDS


def read(path: Path, date_format: str, sms_share: float, seed: int) -> list[Answer]:
    """All answers in order of their time; `sms_share` (0 to 1) of them by SMS, drawn with `seed`.

    Raises `Invalid` naming file, line and column for the first row that cannot be played: a simulation
    that left rows out could not promise that its counts are equal.
    """
    draw = random.Random(seed)
    answers = [
        Answer(line, at, touchpoint, score, comment, "sms" if draw.random() < sms_share else "email")
        for line, at, touchpoint, score, comment in _rows(path, date_format)
    ]
    if not answers:
        raise Invalid(f"{path} has no answers to play.")
    return sorted(answers, key=lambda answer: (answer.answered_at, answer.line))


def _rows(path: Path, date_format: str) -> Iterator[tuple[int, datetime, str, int, str]]:
    try:
        file = path.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise Invalid(f"{path} lacks the column {missing[0]}; it needs {', '.join(COLUMNS)}.")
        try:
            for row in reader:
                yield _row(path, reader.line_num, row, date_format)
        except UnicodeDecodeError as error:
            raise Invalid(f"{path} is not UTF-8 after line {reader.line_num}.") from error
        except csv.Error as error:
            raise Invalid(f"{path}, line {reader.line_num}: {error}.") from error


def _row(path: Path, line: int, row: dict[str, str], date_format: str) -> tuple[int, datetime, str, int, str]:
    where = f"{path}, line {line}"
    try:
        at = datetime.strptime((row["answered_at"] or "").strip(), date_format).replace(tzinfo=UTC)
    except ValueError as error:
        raise Invalid(
            f"{where}: answered_at is {row['answered_at']!r}, not of the form {date_format}; "
            "name its form with --date-format."
        ) from error
    if not re.fullmatch(r"10|[0-9]", (row["score"] or "").strip()):
        raise Invalid(f"{where}: score is {row['score']!r}, not a whole number from 0 to 10.")

    return line, at, (row["touchpoint"] or "").strip(), int(row["score"]), (row["comment"] or "").strip()
