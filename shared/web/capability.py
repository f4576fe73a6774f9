"""Small signed leaves to do one thing, carried in a page that one service shows and another acts on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itsdangerous import BadData, SignatureExpired

from shared.errors import Gone, Invalid
from shared.web.service import service
from shared.web.signing import serializer

DAY = 86_400


def make(purpose: str, data: Mapping[str, Any]) -> str:
    """A token that lets its bearer do `purpose` ("notice-answer") with `data`."""
    here = service()
    value = serializer(here.settings, purpose, here.clock).dumps(dict(data))
    return value if isinstance(value, str) else value.decode()


def read(purpose: str, token: str, max_age: int = DAY) -> dict[str, Any]:
    """What `make` was given. Raises `Gone` when older than `max_age` seconds, `Invalid` when not ours."""
    here = service()
    try:
        data = serializer(here.settings, purpose, here.clock).loads(token, max_age=max_age)
    except SignatureExpired as error:
        raise Gone("This page was open for too long. Please open the link in your message again.") from error
    except BadData as error:
        raise Invalid("This form is damaged. Please open the link in your message again.") from error
    if not isinstance(data, dict):
        raise Invalid("This form is damaged. Please open the link in your message again.")
    return data
