"""Checking addresses: e-mail by its form, phones to E.164; and their fingerprints for opt-outs."""

from __future__ import annotations

import functools
import hmac
import re
from collections.abc import Callable, Iterable, Sequence

from services.survey.domain.rows import Checks
from services.survey.domain.values import BadValue, email_key

# Most addresses: the full check (idna, quoting, length of labels) is for the others.
_PLAIN = re.compile(r"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,24}")


def email(text: str) -> str:
    """The address with its domain in lower case; nothing is looked up. Raises `BadValue`."""
    address = text.strip()
    local, _, domain = address.rpartition("@")
    if len(address) <= 200 and len(local) <= 64:
        simple = f"{local}@{domain.lower()}"
        if _PLAIN.fullmatch(simple) and not domain.lower().endswith(
            (".local", ".invalid", ".localhost", ".arpa")
        ):
            return simple
    from email_validator import EmailNotValidError, validate_email

    try:
        return validate_email(
            address, check_deliverability=False, test_environment=True, strict=True
        ).normalized
    except EmailNotValidError:
        raise BadValue("is not an e-mail address") from None


def phone(text: str, region: str | None = None) -> str:
    """The number in E.164. `region` (ISO 3166) is the country of numbers without a country code.

    Lengths are checked by country, ranges are not: they change faster than any list of them.
    Raises `BadValue`.
    """
    import phonenumbers

    number = text.strip()
    international = number.startswith(("+", "＋"))
    if not international and region is None:
        raise BadValue(
            "has no country code: write it like +49 30 1234567, or choose the country"
            " for such numbers at import"
        )
    try:
        parsed = phonenumbers.parse(number, None if international else region)
    except phonenumbers.NumberParseException:
        raise BadValue("is not a phone number") from None
    if parsed.extension or not phonenumbers.is_possible_number(parsed):
        raise BadValue(
            "has an extension" if parsed.extension else "is not a phone number: its length is not possible"
        )
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


def regions() -> list[str]:
    """The countries that numbers can be from (ISO 3166), sorted."""
    import phonenumbers

    return sorted(phonenumbers.SUPPORTED_REGIONS)


def checks(region: str | None = None) -> Checks:
    """How rows are checked, with the country for numbers without a country code."""
    return Checks(email=email, phone=functools.partial(phone, region=region))


Fingerprints = Callable[[str, str], list[bytes]]


def fingerprints(keys: Sequence[bytes]) -> Fingerprints:
    """How an address is stored of which nothing else may be kept: HMACs, one for each key in use.

    `keys` are `settings.keys("opt-out")`, oldest first; the last one is to be written.
    """

    def of(channel: str, address: str) -> list[bytes]:
        text = email_key(address) if channel == "email" else address
        message = f"{channel}|{text}".encode()
        return [hmac.digest(key, message, "sha256") for key in keys]

    return of


def distinct(found: Iterable[str]) -> list[str]:
    """Sorted without repetition."""
    return sorted(set(found))
