"""The event as it travels: one fact, its key, its version, and what goes along in headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """A fact on the log, past tense.

    `key` orders: events of one topic and key arrive in the order they were appended. `version` is the
    aggregate's, counted up under its row's lock; a consumer ignores a lower or equal one. `data` is
    None for an erasure (a null value with these headers). `replay` marks current state that an owner
    published again: it fills replicas, opens no task and sends nothing. `day` is the real date of the
    append; it is the same in every duplicate of one appended event, and says where the inbox has it.
    """

    id: str
    type: str
    topic: str
    key: str
    version: int
    occurred_at: datetime
    data: Mapping[str, Any] | None
    replay: bool = False
    trace: str = field(default="", compare=False)
    day: date | None = field(default=None, compare=False)

    def headers(self) -> dict[str, str]:
        """The headers of its record on the log, all text."""
        headers = {
            "id": self.id,
            "type": self.type,
            "version": str(self.version),
            "occurred_at": self.occurred_at.isoformat(),
        }
        if self.replay:
            headers["replay"] = "1"
        if self.day:
            headers["day"] = self.day.isoformat()
        if self.trace:
            headers["traceparent"] = self.trace
        return headers

    def value(self) -> bytes | None:
        """The record's value: JSON in UTF-8, or None for an erasure."""
        return None if self.data is None else encode(self.data)

    @classmethod
    def from_record(cls, topic: str, key: str, value: bytes | None, headers: Mapping[str, str]) -> Event:
        """The event a record carries. Raises `ValueError` or `KeyError` when it is none."""
        return cls(
            id=headers["id"],
            type=headers["type"],
            topic=topic,
            key=key,
            version=int(headers["version"]),
            occurred_at=datetime.fromisoformat(headers["occurred_at"]),
            data=None if value is None else json.loads(value),
            replay=headers.get("replay") == "1",
            trace=headers.get("traceparent", ""),
            day=date.fromisoformat(headers["day"]) if "day" in headers else None,
        )


def encode(data: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8, keys in their given order."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
