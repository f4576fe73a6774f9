"""What the cells of a customer mean: money, languages, time zones, lengths."""

from __future__ import annotations

import functools
import re
import zoneinfo
from decimal import Decimal

MAX = {
    "external_id": 200,
    "email": 254,
    "phone": 40,
    "name": 200,
    "first_name": 100,
    "last_name": 100,
    "account": 200,
    "manager_email": 254,
    "tier": 100,
    "annual_value": 40,
    "language": 40,
    "time_zone": 64,
    "touchpoint": 100,
}
MAX_PROPERTY = 2_000
MAX_PROPERTIES_TOTAL = 30_000

_LANGUAGE_NAMES = {
    "english": "en", "englisch": "en", "ingles": "en", "inglés": "en",
    "german": "de", "deutsch": "de", "aleman": "de", "alemán": "de",
    "spanish": "es", "spanisch": "es", "espanol": "es", "español": "es",
    "french": "fr", "italian": "it", "dutch": "nl", "portuguese": "pt",
}  # fmt: skip
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")
_CURRENCY = re.compile(
    r"^(?:[A-Z]{3}|[$€£¥₹]|US\$|CHF|kr\.?|Fr\.?)?\s*(.*?)\s*(?:[A-Z]{3}|[$€£¥₹]|kr\.?|Fr\.?)?$"
)


class BadValue(ValueError):
    """A value cannot be read; the message is the reason, to be put after the column's name."""


def one_line(text: str) -> str:
    """Text on one line, without spaces at its ends or twice in a row."""
    return " ".join(text.split())


def account_key(name: str) -> str:
    """What tells one account from another: its name without case and extra spaces."""
    return one_line(name).casefold()


def email_key(address: str) -> str:
    """What tells one address from another."""
    return address.casefold()


def money(text: str) -> Decimal:
    """An amount as people write it: "1.234,56", "€1,234.56", "1 234", "1'234.50 CHF".

    A single separator before exactly three digits separates thousands, not decimals. Raises `BadValue`.
    """
    match = _CURRENCY.match(text.strip().replace("\u2212", "-"))
    digits = re.sub(r"[\s'’\u00a0\u202f]", "", match.group(1) if match else text)
    if digits.startswith("-") or (digits.startswith("(") and digits.endswith(")")):
        raise BadValue("must not be negative")
    if not re.fullmatch(r"\d[\d.,]*", digits):
        raise BadValue("is not an amount")
    last = max(digits.rfind("."), digits.rfind(","))
    whole, decimals = digits, ""
    if last >= 0:
        mark = digits[last]
        other = "," if mark == "." else "."
        single = digits.count(mark) == 1
        if single and (other in digits or len(digits) - last - 1 != 3):
            whole, decimals = digits[:last], digits[last + 1 :]
            if mark in whole or len(decimals) > 2:
                raise BadValue("has more than two decimals")
            mark = other
        elif other in digits:
            raise BadValue("mixes “.” and “,” in a way that cannot be read")
        if mark in whole and not re.fullmatch(rf"\d{{1,3}}(\{mark}\d{{3}})+", whole):
            raise BadValue("has its thousands separated in a way that cannot be read")
        whole = whole.replace(mark, "")
    # Checked first: an amount beyond the context's precision could not be quantized.
    amount = Decimal(f"{whole}.{decimals or '0'}")
    if amount >= 10**12:
        raise BadValue("is too large")
    return amount.quantize(Decimal("0.01"))


def language(text: str) -> str:
    """A language as a BCP 47 tag in lower case ("de", "pt-br"), from a tag or a name. Raises `BadValue`."""
    name = text.strip().casefold()
    if name in _LANGUAGE_NAMES:
        return _LANGUAGE_NAMES[name]
    tag = name.replace("_", "-").split(".")[0]
    if not _LANGUAGE.fullmatch(tag):
        raise BadValue("is not a language; write it like en, de or es")
    return tag


@functools.cache
def _zones() -> dict[str, str]:
    return {name.casefold(): name for name in zoneinfo.available_timezones()}


def time_zone(text: str) -> str:
    """A time zone by its IANA name, whatever its case. Raises `BadValue`."""
    name = _zones().get(text.strip().replace(" ", "_").casefold())
    if name is None or name in ("localtime", "Factory"):
        raise BadValue("is not a time zone; write it like Europe/Berlin")
    return name
