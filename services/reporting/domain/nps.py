"""The Net Promoter Score with its uncertainty: score, interval, and the difference of two periods.

Sources. The score is F. Reichheld's ("The One Number You Need to Grow", HBR, December 2003): the share of
promoters less the share of detractors. Intervals: B. Rocks, "Interval Estimation for the Net Promoter
Score", The American Statistician 70(4), 2016; his R package `NPS` implements the same forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: 95 % lie within ± this many standard errors."""

FEW = 30
"""Below so many answers a score says little; pages then say "too few to tell"."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many answers of each band. All counts are ≥ 0."""

    promoters: int = 0
    passives: int = 0
    detractors: int = 0

    def __post_init__(self) -> None:
        if min(self.promoters, self.passives, self.detractors) < 0:
            raise ValueError("a tally counts answers; it cannot be negative")

    @property
    def n(self) -> int:
        """How many answers in all."""
        return self.promoters + self.passives + self.detractors

    @property
    def few(self) -> bool:
        """Whether there are too few to tell."""
        return self.n < FEW

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.promoters + other.promoters,
            self.passives + other.passives,
            self.detractors + other.detractors,
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval, in points of the score; always within −100 … +100."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Score:
    """A score with what belongs to it. `nps` and `margin` are None when there is no answer at all."""

    tally: Tally
    nps: float | None
    margin: float | None
    interval: Interval | None
    method: Literal["wald", "adjusted-wald"] | None

    @property
    def n(self) -> int:
        return self.tally.n

    @property
    def few(self) -> bool:
        return self.tally.few


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the second score lies from the first, in points, with its 95 % interval.

    `few`: one of the two rests on too few answers to tell; then `significant` is False.
    """

    points: float
    margin: float
    interval: Interval
    significant: bool
    few: bool


def nps(tally: Tally) -> float:
    """100·(p − d), from −100 to +100. Raises `ValueError` without answers."""
    if tally.n == 0:
        raise ValueError("no answers, no score")
    return 100 * (tally.promoters - tally.detractors) / tally.n


def standard_error(promoters: float, detractors: float, n: float) -> float:
    """The standard error in points: 100·√((p + d − (p − d)²)/n), from the variance of +1, 0, −1.

    Takes fractional counts, which the adjusted form needs. Raises `ValueError` for n ≤ 0.
    """
    if n <= 0:
        raise ValueError("no answers, no error")
    p, d = promoters / n, detractors / n
    return 100 * math.sqrt(max(0.0, p + d - (p - d) ** 2) / n)


def wald(tally: Tally) -> Interval:
    """NPS ± 1.96 standard errors, cut at ±100. Too narrow for small n (Rocks 2016)."""
    return _around(nps(tally), Z95 * standard_error(tally.promoters, tally.detractors, tally.n))


def adjusted_wald(tally: Tally) -> Interval:
    """Wald's interval after adding ¾ to promoters, 1½ to passives and ¾ to detractors, three in all.

    Rocks 2016, AW(¾, 3): it covers close to 95 % also for few answers and never has no width.
    """
    n = tally.n + 3
    promoters, detractors = tally.promoters + 0.75, tally.detractors + 0.75
    return _around(100 * (promoters - detractors) / n, Z95 * standard_error(promoters, detractors, n))


def score(tally: Tally) -> Score:
    """The score with its interval at 95 %.

    Wald's form from 30 answers on; the adjusted one below, and where all answers agree, because Wald's
    would then claim to be certain. `margin` is half the interval's width: what stands behind "±".
    """
    if tally.n == 0:
        return Score(tally, None, None, None, None)
    alike = tally.n in (tally.promoters, tally.passives, tally.detractors)
    adjusted = tally.few or alike
    interval = adjusted_wald(tally) if adjusted else wald(tally)
    return Score(
        tally,
        nps(tally),
        (interval.high - interval.low) / 2 if adjusted else _margin(tally),
        interval,
        "adjusted-wald" if adjusted else "wald",
    )


def difference(before: Tally, after: Tally) -> Difference | None:
    """`after` less `before`, with the standard error √(SE₁² + SE₂²) of two independent samples.

    Where a sample is small or all of it agrees, its error is that of the adjusted form. None when one of
    the two has no answers.
    """
    if before.n == 0 or after.n == 0:
        return None
    points = nps(after) - nps(before)
    margin = math.hypot(_margin(before), _margin(after))
    few = before.few or after.few
    return Difference(
        points,
        margin,
        Interval(max(-200.0, points - margin), min(200.0, points + margin)),
        significant=not few and abs(points) > margin,
        few=few,
    )


def _margin(tally: Tally) -> float:
    if tally.few or tally.n in (tally.promoters, tally.passives, tally.detractors):
        return Z95 * standard_error(tally.promoters + 0.75, tally.detractors + 0.75, tally.n + 3)
    return Z95 * standard_error(tally.promoters, tally.detractors, tally.n)


def _around(centre: float, margin: float) -> Interval:
    return Interval(max(-100.0, centre - margin), min(100.0, centre + margin))
