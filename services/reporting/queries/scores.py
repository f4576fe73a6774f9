"""The score: in all, by day and by touchpoint, for a period and the one before, from the rollup."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date

from services.reporting.domain.nps import Difference, Score, Tally, difference, score
from services.reporting.selection import Selection
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

    def compared(self) -> Compared:
        return Compared(score(self.now), score(self.before), difference(self.before, self.now))


def scores(tx: Tx, selection: Selection) -> Scores:
    """The scores of the selection, compared with as many days before."""
    before = selection.before()
    where, values = selection.where()
    rows = tx.all(
        f"""SELECT day, program_id, touchpoint, sum(promoters) AS promoters, sum(passives) AS passives,
                   sum(detractors) AS detractors, sum(quarantined) AS quarantined, sum(excluded) AS excluded
            FROM nps_day WHERE {where} GROUP BY day, program_id, touchpoint ORDER BY day""",  # noqa: S608 - our own text
        values | {"start": before.period.start},
    )
    total, touchpoints, programs = _Sums(), defaultdict[str, _Sums](_Sums), defaultdict[str, _Sums](_Sums)
    by_day: dict[date, Tally] = {}
    quarantined = excluded = 0
    for row in rows:
        tally = Tally(row["promoters"], row["passives"], row["detractors"])
        mine = (total, touchpoints[row["touchpoint"]], programs[str(row["program_id"])])
        if row["day"] < selection.period.start:
            for sums in mine:
                sums.before += tally
            continue
        quarantined += row["quarantined"]
        excluded += row["excluded"]
        for sums in mine:
            sums.now += tally
        if tally.n:
            by_day[row["day"]] = by_day.get(row["day"], Tally()) + tally
    return Scores(
        total.compared(),
        by_day,
        _compared(touchpoints),
        _compared(programs),
        quarantined,
        excluded,
    )


def _compared(groups: dict[str, _Sums]) -> dict[str, Compared]:
    """Those with answers in the period, most answers first."""
    ordered = sorted(groups.items(), key=lambda item: (-item[1].now.n, item[0]))
    return {name: sums.compared() for name, sums in ordered if sums.now.n}
