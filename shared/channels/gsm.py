"""How text messages are counted: GSM-7 and UCS-2 segments, and words that fit the cheaper of the two."""

from __future__ import annotations

# GSM 03.38: the basic alphabet, and the characters that take two places.
_BASIC = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_DOUBLE = frozenset("^{}\\[~]|€")
# What typing programs put in by themselves, and what says the same within the alphabet.
_PLAIN = str.maketrans(
    {
        "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "`": "'", "´": "'",
        "–": "-", "—": "-", "‑": "-", "−": "-", "…": "...", "•": "-", "\t": " ", "\u00a0": " ", "\u202f": " ",
        "\u2009": " ",
    }
)  # fmt: skip


def segments(text: str) -> int:
    """How many segments `text` takes: GSM-7 160, or 153 each when several; else UCS-2 70, or 67 each."""
    if all(character in _BASIC or character in _DOUBLE for character in text):
        length = sum(2 if character in _DOUBLE else 1 for character in text)
        one, each = 160, 153
    else:
        length, one, each = len(text.encode("utf-16-be")) // 2, 70, 67
    return 1 if length <= one else -(-length // each)


def plain(text: str) -> str:
    """`text` with typographic quotes, dashes and spaces replaced by those of the GSM alphabet."""
    return text.translate(_PLAIN)
