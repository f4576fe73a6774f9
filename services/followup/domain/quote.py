"""A customer's own words, cut to the length a message has room for."""

from __future__ import annotations

import re
import unicodedata

_SPACES = re.compile(r"\s+")
# Cut before these, so that no quote ends in "…, " or "… -".
_TRAILING = " ,;:-–—/(["


def trim(words: str | None, limit: int, ellipsis: str = "…") -> str:
    """`words` on one line and at most `limit` characters long, cut at a word's end.

    Nothing that prints gives "". A single word longer than `limit` is cut inside, but never between a
    letter and its accents.
    """
    text = _SPACES.sub(" ", "".join(_visible(words or ""))).strip()
    if len(text) <= limit:
        return text
    room = limit - len(ellipsis)
    if room <= 0:
        return ""
    cut = text[: room + 1]
    at_word = cut.rpartition(" ")[0].rstrip(_TRAILING)
    if at_word:
        return at_word + ellipsis
    end = room
    while end > 0 and (unicodedata.combining(text[end]) or text[end] in "\u200d\ufe0f"):
        end -= 1
    return text[:end] + ellipsis if end else ""


def _visible(text: str) -> list[str]:
    """Its characters without control characters and marks that turn the direction of what follows."""
    return [
        " " if unicodedata.category(character) == "Cc" else character
        for character in text
        if character == "\u200d" or unicodedata.category(character) not in ("Cf", "Cs", "Co")
    ]
