"""The field types that event schemas are made of: ids, instants, money and the blocks that repeat."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from marshmallow import Schema, fields, validate

_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")

_PLAIN = frozenset({str, int, bool, float, type(None)})

CHANNELS = ("email", "sms")
BANDS = ("detractor", "passive", "promoter")
ROLES = ("agent", "lead", "admin", "viewer")


class Instant(fields.String):
    """RFC 3339 text in UTC."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs["validate"] = validate.Regexp(_INSTANT, error="not an RFC 3339 time in UTC")
        super().__init__(**kwargs)


def id_() -> fields.UUID:
    """A UUID as text."""
    return fields.UUID(required=True)


def id_or_none() -> fields.UUID:
    return fields.UUID(required=True, allow_none=True)


def ids() -> fields.List[Any]:
    return fields.List(fields.UUID(), required=True)


def text() -> fields.String:
    return fields.String(required=True)


def text_or_none() -> fields.String:
    return fields.String(required=True, allow_none=True)


def at() -> Instant:
    return Instant(required=True)


def at_or_none() -> Instant:
    return Instant(required=True, allow_none=True)


def flag() -> fields.Boolean:
    return fields.Boolean(required=True, truthy={True}, falsy={False})


def flag_or_none() -> fields.Boolean:
    return fields.Boolean(required=True, allow_none=True, truthy={True}, falsy={False})


def whole(low: int = 0, high: int | None = None) -> fields.Integer:
    return fields.Integer(required=True, strict=True, validate=validate.Range(low, high))


def score() -> fields.Integer:
    return whole(0, 10)


def one_of(*choices: str) -> fields.String:
    return fields.String(required=True, validate=validate.OneOf(choices))


def one_of_or_none(*choices: str) -> fields.String:
    return fields.String(required=True, allow_none=True, validate=validate.OneOf(choices))


def texts() -> fields.List[Any]:
    return fields.List(fields.String(), required=True)


def mapping() -> fields.Dict:
    return fields.Dict(keys=fields.String(), required=True)


class Account(Schema):
    """The company a customer belongs to, as triage needs it; the annual value is a decimal as text."""

    id = id_()
    version = whole(1)
    name = text()
    tier = text_or_none()
    annual_value = fields.String(
        required=True,
        allow_none=True,
        validate=validate.Regexp(r"^-?\d+(\.\d+)?$", error="not a decimal as text"),
    )
    manager_email = text_or_none()


def account() -> fields.Nested:
    return fields.Nested(Account, required=True, allow_none=True)


class Theme(Schema):
    """A root cause by id and name."""

    id = id_()
    name = text()


def instant(at: datetime) -> str:
    """`at` as RFC 3339 text in UTC. Raises `ValueError` when it has no time zone."""
    if at.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """`value` as it travels: instants and ids as text, decimals as text, tuples as lists."""
    if type(value) in _PLAIN:  # most are, and asking for each kind takes its time
        return value
    if type(value) is dict:
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
