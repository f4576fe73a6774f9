"""What a sent answer does to the one that is recorded (rule 6): retry, revision, stale, quarantine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

# Scores of one mail that differ within this time contradict each other: no person clicks so fast,
# a scanner follows all eleven links at once.
CONTRADICTION = timedelta(seconds=5)
# How long a sent decoy taints the answers around it.
DECOY = timedelta(seconds=60)
# After how long without an answer a score click is reported as unconfirmed.
UNCONFIRMED_AFTER = timedelta(minutes=15)

COMMENT_LIMIT = 4000

Effect = Literal["first", "retry", "stale", "revision", "same"]
CALLBACKS = ("please", "dont")


@dataclass(frozen=True, slots=True)
class Recorded:
    """The answer as it stands; `version` 0 when there is none."""

    version: int = 0
    score: int | None = None
    comment: str | None = None
    callback: str | None = None


@dataclass(frozen=True, slots=True)
class Click:
    """Evidence: a link of the mail opened ('get'), a form sent ('confirmed'), the decoy ('decoy')."""

    kind: str
    score: int | None
    at: datetime


def effect(recorded: Recorded, seen: int, nonce_known: bool, wanted: Recorded) -> Effect:
    """What a form does that saw version `seen` and now says `wanted`.

    A nonce that is known is a retry whatever else it says; a form that saw an older version than the
    recorded one changes nothing.
    """
    if nonce_known:
        return "retry"
    if seen != recorded.version:
        return "stale"
    if recorded.version == 0:
        return "first"
    unchanged = (recorded.score, recorded.comment, recorded.callback) == (
        wanted.score,
        wanted.comment,
        wanted.callback,
    )
    return "same" if unchanged else "revision"


def suspicion(
    clicks: Iterable[Click], now: datetime, posted: int | None = None, *, from_mail: bool = True
) -> str | None:
    """Why an answer at `now` cannot be trusted ('decoy', 'contradiction'), or None.

    `posted` is the answer's own score; it counts among the mail's scores unless it was chosen on the
    page itself (`from_mail` false), where changing one's mind is what the row is for.
    """
    scores: set[int] = {posted} if posted is not None and from_mail else set()
    for click in clicks:
        age = now - click.at
        if click.kind == "decoy" and age <= DECOY:
            return "decoy"
        if click.kind == "get" and click.score is not None and age <= CONTRADICTION:
            scores.add(click.score)
    return "contradiction" if len(scores) > 1 else None


def tidy_comment(text: str | None) -> str | None:
    """A comment as it is kept: no space around it, no control characters, at most 4,000 characters."""
    if text is None:
        return None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(char for char in text if char in "\n\t" or char >= " ").strip()
    return text[:COMMENT_LIMIT].rstrip() or None


def parse_score(text: str | None) -> int | None:
    """A score 0–10 from a link or form, or None when it is none."""
    if text is not None and text.isascii() and text.isdigit() and len(text) <= 2 and int(text) <= 10:
        return int(text)
    return None
