"""Time, passed in: so that a test can stop it and a demo can travel."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """What the product knows of time."""

    def now(self) -> datetime:
        """The instant, timezone-aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never step back; for durations only."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved.

    Invariant: `monotonic` never steps back, whatever `now` is set to.
    """

    def __init__(self, at: datetime) -> None:
        if at.tzinfo is None:
            raise ValueError("a clock needs a timezone-aware instant")
        self._now = at.astimezone(UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, by: timedelta) -> None:
        """Moves on by `by`; a negative step moves `now` only, as a stepped wall clock does."""
        self._now += by
        self._monotonic += max(0.0, by.total_seconds())

    def set(self, at: datetime) -> None:
        """Moves to the instant `at`."""
        self.advance(at.astimezone(UTC) - self._now)
