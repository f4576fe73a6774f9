"""The funnel of a period's invitations, compared with as many days before, from the rollup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.reporting.domain.funnel import BY_NAME, COLUMNS, STAGES, Stage
from services.reporting.domain.rates import RateChange, rate, rate_change
from services.reporting.selection import Selection
from shared.db import Tx


@dataclass(frozen=True, slots=True)
class Step:
    """One stage with its count, its share in percent of the stage it is a share of, and how that moved."""

    stage: Stage
    count: int
    count_before: int
    share: float | None
    share_before: float | None
    change: RateChange | None

    @property
    def of(self) -> Stage | None:
        return BY_NAME[self.stage.of] if self.stage.of else None


@dataclass(frozen=True, slots=True)
class Funnel:
    """The steps in the loop's order, and all counts by name, the notes' too."""

    steps: tuple[Step, ...]
    counts: Mapping[str, int]


def funnel(tx: Tx, selection: Selection) -> Funnel:
    """How far the invitations of the selection came."""
    before = selection.before()
    where, values = selection.where()
    sums = ", ".join(
        f"coalesce(sum({c}) FILTER (WHERE day >= %(first)s), 0)::int AS now_{c}, "
        f"coalesce(sum({c}) FILTER (WHERE day < %(first)s), 0)::int AS before_{c}"
        for c in COLUMNS
    )
    (row,) = tx.all(
        f"SELECT {sums} FROM funnel_day WHERE {where}",  # noqa: S608 - our own text
        values | {"start": before.period.start, "first": selection.period.start},
    )
    now = {c: int(row[f"now_{c}"]) for c in COLUMNS}
    earlier = {c: int(row[f"before_{c}"]) for c in COLUMNS}
    return Funnel(tuple(_step(stage, now, earlier) for stage in STAGES), now)


def _step(stage: Stage, now: Mapping[str, int], before: Mapping[str, int]) -> Step:
    count, earlier = now[stage.name], before[stage.name]
    if stage.of is None:
        return Step(stage, count, earlier, None, None, None)
    whole, whole_before = now[stage.of], before[stage.of]
    return Step(
        stage,
        count,
        earlier,
        rate(count, whole),
        rate(earlier, whole_before),
        rate_change((earlier, whole_before), (count, whole)),
    )
