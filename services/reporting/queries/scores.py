"""The score: in all, by day and by touchpoint, for a period and the one before, from the rollup."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date

from services.reporting.domain.nps import Difference, Score, Tally, difference, score
from services.reporting.selection import Selection
from services.reporting.store.rollup import NPS_COLUMNS
from shared.db import Tx


@dataclass(frozen=True, slots=True)
class Compared:
    """A score, the one of the period before, and how they differ (None when one has no answers)."""

    now: Score
    before: Score
    change: Difference | None


@dataclass(frozen=True, slots=True)
class Scores:
    """Everything about the score that a report shows. `by_day` has the days with answers, in order."""

    total: Compared
    by_day: dict[date, Tally]
    by_touchpoint: dict[str, Compared]
    by_program: dict[str, Compared]
    quarantined: int
    excluded: int


@dataclass(slots=True)
class _Sums:
    now: Tally = field(default_factory=Tally)
    before: Tally = field(default_factory=Tally)

    def add(self, tally: Tally, is_now: bool) -> None:
        if is_now:
            self.now += tally
        else:
            self.before += tally

    def compared(self) -> Compared:
        return Compared(score(self.now), score(self.before), difference(self.before, self.now))


def scores(tx: Tx, selection: Selection) -> Scores:
    """The scores of the selection, compared with as many days before."""
    before = selection.before()
    where, values = selection.where()
    sums = ", ".join(f"sum({c}) AS {c}" for c in NPS_COLUMNS)
    rows = tx.all(
        f"""SELECT day >= %(first)s AS now, day, touchpoint, program_id, {sums},
                   grouping(day) = 0 AS of_day, grouping(touchpoint) = 0 AS of_touchpoint,
                   grouping(program_id) = 0 AS of_program
            FROM nps_day WHERE {where}
            GROUP BY GROUPING SETS ((day >= %(first)s), (day >= %(first)s, touchpoint),
                                    (day >= %(first)s, program_id), (day))
            HAVING grouping(day) = 1 OR day > %(eve)s""",  # noqa: S608 - our own text
        values | {"start": before.period.start, "first": selection.period.start, "eve": before.period.end},
    )
    total, touchpoints, programs = _Sums(), defaultdict[str, _Sums](_Sums), defaultdict[str, _Sums](_Sums)
    by_day: dict[date, Tally] = {}
    quarantined = excluded = 0
    for row in rows:
        tally = Tally(row["promoters"], row["passives"], row["detractors"])
        if row["of_day"]:
            by_day[row["day"]] = tally
        elif row["of_touchpoint"]:
            touchpoints[row["touchpoint"]].add(tally, row["now"])
        elif row["of_program"]:
            programs[str(row["program_id"])].add(tally, row["now"])
        else:
            total.add(tally, row["now"])
            if row["now"]:
                quarantined, excluded = row["quarantined"], row["excluded"]
    return Scores(
        total.compared(),
        {day: by_day[day] for day in sorted(by_day) if by_day[day].n},
        _compared(touchpoints),
        _compared(programs),
        quarantined,
        excluded,
    )


def _compared(groups: dict[str, _Sums]) -> dict[str, Compared]:
    """Those with answers in the period, most answers first."""
    ordered = sorted(groups.items(), key=lambda item: (-item[1].now.n, item[0]))
    return {name: sums.compared() for name, sums in ordered if sums.now.n}
