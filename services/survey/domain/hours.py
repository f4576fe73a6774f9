"""Business hours as people write them: "mon-fri 09:00-17:00, sat 10:00-14:00"."""

from __future__ import annotations

import re
from collections.abc import Mapping

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TO = r"\s*(?:-|–|to)\s*"
_PART = re.compile(rf"([a-z]{{3}})[a-z]*(?:{_TO}([a-z]{{3}})[a-z]*)?\s+(\d{{1,2}}:\d\d){_TO}(\d{{1,2}}:\d\d)")
_TIME = re.compile(r"([01]?\d|2[0-3]):[0-5]\d|24:00")

Hours = dict[str, list[str]]


def parse(text: str) -> Hours:
    """The hours of each open day as ["HH:MM", "HH:MM"]. Raises `ValueError` with what is wrong."""
    found: Hours = {}
    for part in filter(None, (part.strip().casefold() for part in re.split(r"[,;]", text))):
        match = _PART.fullmatch(part)
        if match is None or match[1] not in DAYS or (match[2] or match[1]) not in DAYS:
            raise ValueError(f"“{part}” cannot be read; write it like “mon-fri 09:00-17:00, sat 10:00-14:00”")
        first, last = DAYS.index(match[1]), DAYS.index(match[2] or match[1])
        days = DAYS[first : last + 1] if first <= last else DAYS[first:] + DAYS[: last + 1]
        for day in days:
            if day in found:
                raise ValueError(f"{day} is given twice")
            found[day] = [match[3].zfill(5), match[4].zfill(5)]
    check(found)
    return {day: found[day] for day in DAYS if day in found}


def check(hours: Mapping[str, list[str]]) -> None:
    """Raises `ValueError` unless some day is open, and each open day ends after it begins."""
    if not hours:
        raise ValueError("at least one day must be open: a promise in business hours would never fall due")
    for day, pair in hours.items():
        if day not in DAYS:
            raise ValueError(f"“{day}” is no day; days are {', '.join(DAYS)}")
        if len(pair) != 2 or not all(_TIME.fullmatch(time) and len(time) == 5 for time in pair):
            raise ValueError(f"{day}: give the time from and until as HH:MM")
        if pair[0] >= pair[1]:
            raise ValueError(f"{day}: it closes at {pair[1]}, not after it opens at {pair[0]}")


def text(hours: Mapping[str, list[str]]) -> str:
    """The hours in words that `parse` reads, days with the same hours together."""
    runs: list[tuple[str, str, list[str]]] = []
    for day in (day for day in DAYS if day in hours):
        before = runs[-1] if runs else None
        if before and before[2] == hours[day] and DAYS.index(before[1]) + 1 == DAYS.index(day):
            runs[-1] = (before[0], day, before[2])
        else:
            runs.append((day, day, hours[day]))
    return ", ".join(f"{a if a == b else f'{a}-{b}'} {h[0]}-{h[1]}" for a, b, h in runs)
