"""Pages of a list by cursor: opaque text that says after which row to go on."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from marshmallow import EXCLUDE, Schema, fields
from marshmallow.validate import Length, Range

from shared.errors import Invalid


class Cursor:
    """The sort values of the last row seen, as opaque text and back."""

    @staticmethod
    def encode(*values: Any) -> str:
        """Text for a link; `values` are what JSON can say, times and ids as text."""
        raw = json.dumps(values, separators=(",", ":"), default=str).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    @staticmethod
    def decode(text: str | None, length: int) -> list[Any] | None:
        """The values, or None without a cursor. Raises `Invalid` unless there are `length` of them."""
        if not text:
            return None
        try:
            raw = base64.urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
            values = json.loads(raw)
        except (binascii.Error, ValueError) as error:
            raise Invalid(
                "This page's cursor is damaged: start again from the first page.",
                fields={"cursor": "damaged"},
            ) from error
        plain = isinstance(values, list) and all(
            v is None or isinstance(v, str | int | float) for v in values
        )
        if not plain or len(values) != length:
            raise Invalid("This page's cursor belongs to another list.", fields={"cursor": "of another list"})
        return list(values)


class PageArgs(Schema):
    """Query parameters of every list: `limit` 1 to 100 (50), and the `cursor` of the page before."""

    class Meta:
        unknown = EXCLUDE

    limit = fields.Integer(
        load_default=50, validate=Range(1, 100), metadata={"description": "Rows per page."}
    )
    cursor = fields.String(
        load_default=None,
        allow_none=True,
        validate=Length(max=500),
        metadata={"description": "`next` of the page before."},
    )


page_args = PageArgs()
