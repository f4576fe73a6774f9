"""What a report is about, read from the query of its URL: the URL is the state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any
from urllib.parse import urlencode

from services.reporting.domain.period import GRAINS, LONGEST, PRESETS, Grain, Period
from shared.errors import Invalid
from shared.ids import is_id

USUAL = 30


@dataclass(frozen=True, slots=True)
class Selection:
    """A period with filters. `preset` is its length when it ends today; without `grain` it is what suits."""

    period: Period
    preset: int | None = USUAL
    program: str | None = None
    touchpoint: str | None = None
    grain: Grain | None = None

    def where(self, day: str = "day") -> tuple[str, dict[str, Any]]:
        """The SQL condition on `day`, program_id and touchpoint, and its named values."""
        conditions, values = (
            [f"{day} BETWEEN %(start)s AND %(end)s"],
            {
                "start": self.period.start,
                "end": self.period.end,
                "program": self.program,
                "touchpoint": self.touchpoint,
            },
        )
        prefix = day.removesuffix("day")
        if self.program:
            conditions.append(f"{prefix}program_id = %(program)s::uuid")
        if self.touchpoint:
            conditions.append(f"{prefix}touchpoint = %(touchpoint)s")
        return " AND ".join(conditions), values

    def before(self) -> Selection:
        """The same for as many days before."""
        return replace(self, period=self.period.previous(), preset=None)

    def query(self, **changed: Any) -> str:
        """The query of the URL that says this, with some parameters changed; None drops one."""
        parts: dict[str, Any] = (
            {"days": self.preset}
            if self.preset
            else {"from": self.period.start.isoformat(), "to": self.period.end.isoformat()}
        )
        parts |= {"program": self.program, "touchpoint": self.touchpoint, "by": self.grain}
        if {"days", "from", "to"} & set(changed):
            for name in ("days", "from", "to"):
                parts.pop(name, None)
        parts |= changed
        return urlencode({name: value for name, value in parts.items() if value not in (None, "")})


def read(args: Mapping[str, str], today: date) -> Selection:
    """The selection that a URL's query asks for. Raises `Invalid` naming each parameter that is wrong.

    `days` (1 to 3,660, default 30) ends today; `from` and `to`, both included, win over it.
    """
    wrong: dict[str, str] = {}
    start, end, days = _day(args, "from", wrong), _day(args, "to", wrong), _days(args, wrong)
    period = Period.last(days or USUAL, today)
    if start or end:
        days = None
        try:
            period = Period(start or min(today, end or today), end or max(today, start or today))
        except ValueError as error:
            wrong["to"] = str(error)
    program = args.get("program") or None
    if program and not is_id(program):
        wrong["program"] = "There is no such program."
    grain = args.get("by") or None
    if grain is not None and grain not in GRAINS:
        wrong["by"] = "Group by day, week or month."
    if wrong:
        raise Invalid("The period or a filter cannot be read. " + " ".join(wrong.values()), fields=wrong)
    found = next((g for g in GRAINS if g == grain), None)
    return Selection(period, days, program, (args.get("touchpoint") or None), found)


def _days(args: Mapping[str, str], wrong: dict[str, str]) -> int | None:
    text = args.get("days") or str(USUAL)
    if text.isdecimal() and len(text) < 6 and 1 <= int(text) <= LONGEST:
        return int(text)
    wrong["days"] = f"Give a number of days from 1 to {LONGEST}, such as {USUAL}."
    return None


def _day(args: Mapping[str, str], name: str, wrong: dict[str, str]) -> date | None:
    text = args.get(name)
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        wrong[name] = "Give a day as 2026-03-31."
        return None


__all__ = ["PRESETS", "USUAL", "Selection", "read"]
