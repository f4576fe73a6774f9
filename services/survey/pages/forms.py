"""What forms share: errors by field, with nothing for a field that is right."""

from __future__ import annotations


class Wrong(dict[str, str]):
    """What is wrong, by field; a field that is right gives an empty text."""

    def __missing__(self, name: str) -> str:
        return ""
