"""The days a report is about, and how they are grouped along its time axis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from statistics import median
from typing import Literal

Grain = Literal["day", "week", "month"]
GRAINS: tuple[Grain, ...] = ("day", "week", "month")
PRESETS = (7, 30, 90)
MOST_POINTS = 130
"""More points than this cannot be told apart along one line."""

LONGEST = 3660
"""A period has at most so many days, about ten years."""


@dataclass(frozen=True, slots=True)
class Period:
    """Days in the company's zone, both ends included. Raises `ValueError` when it ends before it starts."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError("The last day lies before the first.")
        if self.days > LONGEST:
            raise ValueError(f"A report covers at most {LONGEST} days.")

    @property
    def days(self) -> int:
        return (self.end - self.start).days + 1

    def previous(self) -> Period:
        """As many days, ending the day before this one starts."""
        return Period(self.start - timedelta(days=self.days), self.start - timedelta(days=1))

    @classmethod
    def last(cls, days: int, today: date) -> Period:
        """The last `days` days, today included."""
        return cls(today - timedelta(days=days - 1), today)


def bucket(day: date, grain: Grain, period: Period) -> date:
    """The first day of the week (Monday) or month that `day` is in, but not before the period starts."""
    if grain == "week":
        first = day - timedelta(days=day.weekday())
    elif grain == "month":
        first = day.replace(day=1)
    else:
        first = day
    return max(first, period.start)


def buckets(grain: Grain, period: Period) -> list[date]:
    """All buckets of the period, those without answers too, in order."""
    days = (period.start + timedelta(days=i) for i in range(period.days))
    return sorted({bucket(day, grain, period) for day in days})


def grain_for(answers: Iterable[tuple[date, int]], period: Period, enough: int) -> Grain:
    """The finest grain at which the typical point rests on `enough` answers, of at most `MOST_POINTS`.

    `answers` are counts by day. Falls back to the coarsest grain that still has four points, so that there
    is a line to look at.
    """
    counts = list(answers)
    fallback: Grain = "day"
    for grain in GRAINS:
        points = buckets(grain, period)
        if grain != "day" and len(points) < 4:
            break
        if len(points) > MOST_POINTS:
            continue
        fallback = grain
        sums = dict.fromkeys(points, 0)
        for day, count in counts:
            sums[bucket(day, grain, period)] += count
        if median(sums.values()) >= enough:
            return grain
    return fallback
