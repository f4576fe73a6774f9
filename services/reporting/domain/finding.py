"""What a report's chart says in one sentence: the finding, never more than the numbers allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from services.reporting.domain.nps import FEW, Difference, Tally, difference, nps, score
from services.reporting.domain.period import Period

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Mark:
    """A change of ours on the time axis."""

    day: date
    title: str


@dataclass(frozen=True, slots=True)
class Finding:
    """`title` is the sentence; `detail` what it rests on."""

    title: str
    detail: str


def points(value: float) -> str:
    """A score or difference as "+34", "0" or "−5"."""
    whole = round(value)
    return f"{whole:+d}".replace("-", MINUS) if whole else "0"


def plain(value: float) -> str:
    """A score without a plus: "34" or "−5", as a sentence has it."""
    return str(round(value)).replace("-", MINUS)


def interval(found: Difference) -> str:
    """ "+5 to +21"."""
    return f"{points(found.interval.low)} to {points(found.interval.high)}"


def finding(by_day: Mapping[date, Tally], before: Tally, period: Period, marks: Sequence[Mark]) -> Finding:
    """The sentence for a period whose answers are `by_day`; `before` are those of as many days before.

    A change that the score clearly moved after comes first (after it, not because of it: the sentence claims
    no more); else the comparison with the days before; else the score as it is.
    """
    total = sum(by_day.values(), Tally())
    if total.n == 0:
        return Finding("No answers in this period", "Nobody answered, or every answer was set apart.")
    if total.few:
        answers = "1 answer" if total.n == 1 else f"{total.n} answers"
        return Finding(
            f"Too few to tell: {answers}", f"A score needs at least {FEW} answers to say anything."
        )
    for mark in sorted(marks, key=lambda mark: mark.day, reverse=True):
        earlier = sum((tally for day, tally in by_day.items() if day < mark.day), Tally())
        later = sum((tally for day, tally in by_day.items() if day >= mark.day), Tally())
        moved = difference(earlier, later)
        if moved and moved.significant:
            return Finding(
                f"NPS {_moved(earlier, later)} after “{mark.title}”; interval {interval(moved)}",
                f"{earlier.n:,} answers before it in this period, {later.n:,} from its day on.",
            )
    return _compared(total, before, period)


def _compared(total: Tally, before: Tally, period: Period) -> Finding:
    found = score(total)
    days = "day" if period.days == 1 else f"{period.days} days"
    moved = difference(before, total)
    now = f"{plain(nps(total))} ± {found.margin or 0:.0f}"
    if moved is None or moved.few:
        return Finding(f"NPS is {now}", f"Too few answers in the {days} before to compare with.")
    if not moved.significant:
        return Finding(
            f"NPS is {now}; no significant change",
            f"It was {plain(nps(before))} in the {days} before; the difference lies between "
            f"{interval(moved).replace(' to ', ' and ')}.",
        )
    return Finding(
        f"NPS {_moved(before, total)}; interval {interval(moved)}", f"Compared with the {days} before."
    )


def _moved(before: Tally, after: Tally) -> str:
    verb = "rose" if nps(after) > nps(before) else "fell"
    return f"{verb} from {plain(nps(before))} to {plain(nps(after))}"
