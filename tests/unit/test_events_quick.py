"""The quick check of events accepts what is as it should be, and nothing that marshmallow would refuse."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from marshmallow import fields, validate

from shared.events import quick
from shared.events.catalog import TYPES, EventType

_ODD: list[Any] = [
    None, "", "text", 0, 1, -1, 11, 1.5, True, False, [], ["text"], [None], {}, {"text": "text"}, {1: 2},
    str(uuid.uuid4()), str(uuid.uuid4()).upper(), uuid.uuid4(), "2026-03-03T10:00:00Z", "2026-03-03T10:00:00",
    "2026-03-03T10:00:00Z\n", "email", "12.50", "09:00", ["09:00", "17:00"], {"mon": ["09:00", "17:00"]},
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_what_is_as_it_should_be_is_accepted_quickly(kind: EventType) -> None:
    assert quick.compiled(kind.schema)(_good(kind))


@pytest.mark.parametrize("kind", TYPES.values(), ids=TYPES)
def test_nothing_that_marshmallow_refuses_is_accepted(kind: EventType) -> None:
    check, good = quick.compiled(kind.schema), _good(kind)
    odd = [{**good, name: value} for name in good for value in _ODD]
    odd += [{name: value for name, value in good.items() if name != left} for left in good]
    odd += [{**good, "more": 1}]
    assert [data for data in odd if check(data) and kind.schema.validate(data)] == []


def _good(kind: EventType) -> dict[str, Any]:
    data = {name: _value(field) for name, field in kind.schema.fields.items()}
    assert kind.schema.validate(data) == {}
    return data


def _value(field: fields.Field[Any]) -> Any:
    for validator in field.validators:
        if isinstance(validator, validate.OneOf):
            return next(iter(validator.choices))
        if isinstance(validator, validate.Regexp):
            known = ("2026-03-03T10:00:00Z", "12.50", "09:00", "a" * 64)
            return next(text for text in known if re.match(str(validator.regex.pattern), text))
    if isinstance(field, fields.UUID):
        return str(uuid.uuid4())
    if isinstance(field, fields.String):
        return "text"
    if isinstance(field, fields.Integer):
        return 1
    if isinstance(field, fields.Boolean):
        return True
    if isinstance(field, fields.Nested):
        return {name: _value(inner) for name, inner in field.schema.fields.items()}
    if isinstance(field, fields.List):
        return [_value(field.inner), _value(field.inner)]
    assert isinstance(field, fields.Dict)
    return {
        _value(field.key_field) if field.key_field else "text": _value(field.value_field)
        if field.value_field
        else 1
    }
