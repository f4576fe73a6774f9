"""The score along the time axis: days grouped into points, and our changes beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from services.reporting.charts.spec import Point
from services.reporting.domain.finding import Mark
from services.reporting.domain.nps import FEW, Tally, score
from services.reporting.domain.period import Grain, Period, bucket, buckets, grain_for
from services.reporting.queries.surroundings import Published
from services.reporting.selection import Selection


@dataclass(frozen=True, slots=True)
class Series:
    """Points at one grain; `digest` is the name of this very content."""

    grain: Grain
    points: tuple[Point, ...]
    marks: tuple[Mark, ...]
    period: Period

    @property
    def digest(self) -> str:
        """The same for the same points and marks, another for any other."""
        text = repr((self.grain, self.points, self.marks))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def last_day(self, point: Point) -> date:
        """The last day that a point covers."""
        later = [p.day for p in self.points if p.day > point.day]
        return min(later) - timedelta(days=1) if later else self.period.end


def series(by_day: Mapping[date, Tally], published: Sequence[Published], selection: Selection) -> Series:
    """The series at the grain that was asked for, else the finest whose points say something."""
    period = selection.period
    grain = selection.grain or grain_for(
        ((day, tally.n) for day, tally in by_day.items()), period, enough=FEW
    )
    sums = dict.fromkeys(buckets(grain, period), Tally())
    for day, tally in by_day.items():
        sums[bucket(day, grain, period)] += tally
    return Series(
        grain,
        tuple(Point(day, score(tally)) for day, tally in sorted(sums.items())),
        tuple(Mark(change.day, change.title) for change in published),
        period,
    )
