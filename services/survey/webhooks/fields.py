"""What providers say, as far as it can be kept: an odd character or type costs nothing but itself."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from shared.db import storable

LONGEST_REMARK = 200


class Text(fields.String):
    """Text without what the database cannot hold."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        return storable(super()._deserialize(value, attr, data, **kwargs))


class Remark(Text):
    """Text that decides nothing: its first `LONGEST_REMARK` characters, or "" when it is no text at all."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            return ""
        return super()._deserialize(value, attr, data, **kwargs)[:LONGEST_REMARK]
