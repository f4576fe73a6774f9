"""Shares of a funnel stage, and whether two periods' shares differ.

Source: A. Agresti and B. Caffo, "Simple and Effective Confidence Intervals for Proportions and Differences
of Proportions Result from Adding Two Successes and Two Failures", The American Statistician 54(4), 2000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.reporting.domain.nps import FEW, Z95


@dataclass(frozen=True, slots=True)
class RateChange:
    """How far a share moved, in percentage points, with its 95 % margin.

    `few`: one of the two shares is taken of fewer than 30; then `significant` is False.
    """

    points: float
    margin: float
    significant: bool
    few: bool


def rate(part: int, whole: int) -> float | None:
    """The share in percent, or None of nothing."""
    return None if whole == 0 else 100 * part / whole


def rate_change(before: tuple[int, int], after: tuple[int, int]) -> RateChange | None:
    """`after` less `before`, each a (part, whole); None when one whole is nothing.

    The margin is Agresti and Caffo's: one success and one failure added to each sample.
    """
    (part1, whole1), (part2, whole2) = before, after
    if whole1 == 0 or whole2 == 0:
        return None
    points = 100 * (part2 / whole2 - part1 / whole1)
    p1, p2 = (part1 + 1) / (whole1 + 2), (part2 + 1) / (whole2 + 2)
    margin = 100 * Z95 * math.sqrt(p1 * (1 - p1) / (whole1 + 2) + p2 * (1 - p2) / (whole2 + 2))
    few = min(whole1, whole2) < FEW
    return RateChange(points, margin, significant=not few and abs(100 * (p2 - p1)) > margin, few=few)
