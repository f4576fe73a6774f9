"""What an experiment found, for the table that `make faults` ends with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Trial:
    """Of one experiment; `acknowledged` counts operations, and the rest what the checker complained of."""

    trials: int = 1
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    differs: int = 0
    recovered: float | None = None
    """How long (s) it took at most until everything had arrived once the fault was over."""

    over_at: float | None = None

    said: list[str] = field(default_factory=list)
    """What is told below the table."""


now = Trial()


def begin() -> Trial:
    """The trial of the test that begins."""
    global now
    now = Trial()
    return now


def checked(acknowledged: int, wrong: Mapping[str, int] | None = None, trials: int | None = None) -> None:
    """A checker compared so many operations that had not been compared before, and found this (by kind)."""
    now.acknowledged += acknowledged
    for kind, count in (wrong or {}).items():
        setattr(now, kind, getattr(now, kind) + count)
    now.trials = trials or now.trials


def over() -> None:
    """The fault is over, or was but a moment: from here on it is recovered from."""
    now.over_at = time.monotonic()


def settled(since: float) -> None:
    """Everything has arrived; waited for since an instant (`time.monotonic`), if no outage was before."""
    now.recovered = max(time.monotonic() - (now.over_at or since), now.recovered or 0.0)
