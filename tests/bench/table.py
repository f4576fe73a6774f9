"""A table of ratios: each row is what we do beside what we compare it with, and the goal."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Row:
    """One measurement: figures of the repeats, in the order they were taken.

    With `base`, the ratio of each repeat is judged (its own neighbour in time, as the machine's speed
    changes); without, our figure. `at_most`: less is better. `missing` and `doubled` are counted in the
    database; None where nothing was acknowledged.
    """

    name: str
    unit: str
    ours: Sequence[float]
    base: Sequence[float] = ()
    goal: float | None = None
    at_most: bool = False
    missing: int | None = None
    doubled: int | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        return [ours / base for ours, base in zip(self.ours, self.base, strict=True)]

    @property
    def judged(self) -> float:
        """The median that the goal is about."""
        return statistics.median(self.ratios if self.base else self.ours)

    @property
    def missed(self) -> str:
        """By how much the goal is missed, in words; empty when it is met, or when there is none."""
        if self.goal is None or (self.judged <= self.goal if self.at_most else self.judged >= self.goal):
            return ""
        return f"missed by {abs(self.judged - self.goal) / self.goal:.0%}"

    @property
    def wrong(self) -> bool:
        """Whether something acknowledged is not there, or is there twice."""
        return bool(self.missing or self.doubled)

    def cells(self) -> list[str]:
        sign = "≤" if self.at_most else "≥"
        ratio = f"{self.judged:.2f} ({min(self.ratios):.2f}–{max(self.ratios):.2f})" if self.base else ""
        goal = "" if self.goal is None else f"{sign} {_figure(self.goal)}"
        return [
            self.name,
            f"{_figure(statistics.median(self.ours))} {self.unit}",
            f"{_figure(statistics.median(self.base))} {self.unit}" if self.base else "",
            ratio,
            f"{goal}{', ' if self.missed else ''}{self.missed}",
            "" if self.missing is None else str(self.missing),
            "" if self.doubled is None else str(self.doubled),
        ]


HEAD = ["measured", "ours", "compared with", "ratio (lowest–highest)", "goal", "missing", "doubled"]


@dataclass
class Table:
    """All rows of a run."""

    rows: list[Row] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as Markdown, in columns that also read well as they are."""
        lines = [HEAD, *(row.cells() for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
        said = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        return "\n".join([said[0], rule, *said[1:]])

    def notes(self) -> str:
        """What the measurements have to add, one line each."""
        return "\n".join(f"- {row.name}: {row.note}" for row in self.rows if row.note)


def calibration() -> float:
    """Seconds that a fixed piece of plain Python takes here: to compare figures of two machines."""
    began = time.perf_counter()
    total = 0
    for number in range(5_000_000):
        total = (total * 31 + number) % 1_000_003
    assert total == 216_093 or total >= 0
    return time.perf_counter() - began


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(len(ordered) * share * 1000) // 1000) - 1))]


def _figure(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
