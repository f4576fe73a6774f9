"""Business time: when a promise made in business hours falls due, whatever the clocks of the zone do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

# A promise further away than this is a typing mistake in the settings, not a promise.
LONGEST = timedelta(days=3660)


@dataclass(frozen=True, slots=True)
class BusinessHours:
    """When a company works: for each weekday its opening and closing time on the wall, in its zone.

    A day that is absent, or that closes before it opens, is closed. A week without any open day
    counts round the clock: a deadline must exist.
    """

    zone: ZoneInfo
    week: Mapping[str, tuple[time, time]]

    @classmethod
    def of(cls, time_zone: str, hours: Mapping[str, Sequence[str]]) -> BusinessHours:
        """From the settings' form, `{"mon": ["09:00", "17:00"], …}`; `24:00` is midnight at the day's end.

        Raises `ValueError` for a time that is none, `zoneinfo.ZoneInfoNotFoundError` for an unknown zone.
        """
        week = {}
        for day in DAYS:
            if hours.get(day):
                opens, closes = hours[day]
                start, end = _wall(opens), time.max if closes == "24:00" else _wall(closes)
                if start < end:
                    week[day] = (start, end)
        return cls(ZoneInfo(time_zone), week)

    def add(self, start: datetime, work: timedelta) -> datetime:
        """The instant (UTC) by which `work` of business time has passed since `start`.

        With no work at all it is the first open instant at or after `start`. The result is in an
        open period, or at its very end.
        """
        left = max(work, timedelta(0))
        start = start.astimezone(UTC)
        if not self.week:
            return start + left
        for opens, closes in self._periods(start):
            begin = max(opens, start)
            if begin >= closes:
                continue
            if left <= closes - begin:
                return begin + left
            left -= closes - begin
        return start + LONGEST

    def between(self, start: datetime, end: datetime) -> timedelta:
        """How much business time lies between two instants; nothing when `end` is not after `start`."""
        start, end = start.astimezone(UTC), end.astimezone(UTC)
        if end <= start:
            return timedelta(0)
        if not self.week:
            return end - start
        total = timedelta(0)
        for opens, closes in self._periods(start):
            if opens >= end:
                break
            total += max(min(closes, end) - max(opens, start), timedelta(0))
        return total

    def today(self, now: datetime) -> date:
        """The company's day at the instant `now`."""
        return now.astimezone(self.zone).date()

    def _periods(self, start: datetime) -> Iterator[tuple[datetime, datetime]]:
        # The wall's times become instants before anything is added: on the day the clocks change an
        # open period is as long as it really is. A wall time that does not exist or exists twice is
        # read with the offset before the change (fold 0), which keeps opening before closing.
        day = start.astimezone(self.zone).date()
        last = min(start + LONGEST, datetime.max.replace(tzinfo=UTC) - timedelta(days=2)).date()
        while day <= last:
            period = self.week.get(DAYS[day.weekday()])
            if period:
                opens, closes = (self._instant(day, wall) for wall in period)
                if opens < closes:
                    yield opens, closes
            day += timedelta(days=1)

    def _instant(self, day: date, wall: time) -> datetime:
        if wall == time.max:
            day, wall = day + timedelta(days=1), time(0)
        return datetime.combine(day, wall, self.zone).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Promise:
    """By when somebody calls, and when to remind them of it."""

    due_at: datetime
    remind_at: datetime


def promise(hours: BusinessHours, start: datetime, first_contact_hours: float) -> Promise:
    """What `first_contact_hours` of business time from `start` come to; the reminder at three quarters."""
    work = timedelta(hours=first_contact_hours)
    return Promise(due_at=hours.add(start, work), remind_at=hours.add(start, work * 3 / 4))


def _wall(text: str) -> time:
    return time.fromisoformat(text)
