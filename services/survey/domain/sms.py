"""What a customer's text message means: a keyword, a score, words."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

STOP_WORDS = frozenset({"stop", "stopall", "unsubscribe", "end", "quit", "cancel", "revoke", "optout"})
START_WORDS = frozenset({"start", "yes", "unstop"})
HELP_WORDS = frozenset({"help", "info"})

Keyword = Literal["stop", "start", "help"]

# A word or two that people write before the number ("Score: 3", "Note 3", "Puntos 3").
_LEAD = (
    r"(?:(?:my\s+)?(?:score|rating|answer|note|punkte|bewertung|nota|puntos|puntuaci[oó]n|respuesta)"
    r"\s*[:=]?\s*)?"
)
# The number itself: 0 to 10, and not the beginning of 3.5, 10:30, 7-8, 3rd, 100 or 10%.
_NUMBER = r"(?P<score>10|\d)(?![\d%])(?![.,:]\d)(?![-–]\d)(?![^\W\d_])"
_OF_TEN = r"(?:\s*(?:/|out\s+of|of|von|aus|de|sobre)\s*10(?!\d))?"
_SCORE = re.compile(
    r"^[\s\"'“„(#*]*" + _LEAD + _NUMBER + _OF_TEN + r"(?P<rest>.*)$", re.IGNORECASE | re.DOTALL
)
# "3 - too slow", "3, too slow", "3) too slow"; but the words of "3 ..." are the dots.
_SEPARATOR = re.compile(r"^(?:\s*[-–—:]+\s+|[.,;:!)\"'”“*]+(?:\s+|$)|\s+)")
# "10 days and still nobody called": a number of something, and no change of mind.
_COUNTED = re.compile(
    r"^\W*\d+\s*(?:days?|weeks?|months?|years?|hours?|hrs?|min(?:ute)?s?|times?|people|persons?|calls?|e?-?mails?|"
    r"tage?n?|wochen?|monate?n?|jahre?n?|stunden?|minuten?|mal|leute|anrufe?|"
    r"d[ií]as?|semanas?|mes(?:es)?|años?|horas?|minutos?|veces|personas?|llamadas?)\b",
    re.IGNORECASE,
)
# "…, I'd say 4/10": somewhere in the words, but plainly a score, and the only one.
_OF_TEN_WITHIN = re.compile(r"(?<![\d.,/])(10|\d)\s*(?:/|out\s+of|von|sobre)\s*10(?!\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text means: a keyword, a score with a comment, or only words.

    `keyword` stands alone or, as "stop", beside a score ("3 STOP": an answer whose only words are to
    leave the customer alone, so both count).
    """

    keyword: Keyword | None = None
    score: int | None = None
    comment: str | None = None


def keyword(text: str, *, stopped: bool = True) -> Keyword | None:
    """The carriers' keyword that `text` is, and nothing but that; case, spaces and punctuation aside.

    A "yes" starts again whom a STOP has `stopped`; from anybody else it is a word like others.
    """
    letters = re.sub(r"[\W\d_]", "", text.casefold()) if not re.search(r"\d", text) else ""
    if letters in STOP_WORDS:
        return "stop"
    if letters in START_WORDS and (stopped or letters != "yes"):
        return "start"
    return "help" if letters in HELP_WORDS else None


def counts_something(text: str) -> bool:
    """Whether the number that `text` begins with counts something: "10 days …"."""
    return _COUNTED.match(text) is not None


def read(text: str, *, stopped: bool = True) -> Reading:
    """Reads a customer's text; `stopped` as in `keyword`. Never raises; what is no keyword and has no score
    is a comment.

    Words are kept as they were written; only what separates them from the score goes.
    """
    text = text.strip()
    word = keyword(text, stopped=stopped)
    if word:
        return Reading(keyword=word)
    # Full-width digits and the like are read as what they mean.
    match = _SCORE.match(text) or _SCORE.match(unicodedata.normalize("NFKC", text))
    if match:
        comment = _SEPARATOR.sub("", match["rest"]).strip()
        stop = keyword(comment) == "stop"
        return Reading("stop" if stop else None, int(match["score"]), comment or None)
    within = _OF_TEN_WITHIN.findall(text)
    if len(within) == 1:
        return Reading(score=int(within[0]), comment=text)
    return Reading(comment=text or None)
