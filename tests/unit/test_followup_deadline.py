"""Deadlines in business hours: by example, and for whatever the clocks do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.followup.domain.deadline import DAYS, BusinessHours, promise

WEEK = {day: ["09:00", "17:00"] for day in DAYS[:5]}
BERLIN = BusinessHours.of("Europe/Berlin", WEEK)


def berlin(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.mark.parametrize(
    ("start", "hours", "due"),
    [
        ("2026-03-03 11:00", 4, "2026-03-03 15:00"),
        ("2026-03-03 11:00", 6, "2026-03-03 17:00"),
        ("2026-03-03 11:00", 8, "2026-03-04 11:00"),
        ("2026-03-03 07:00", 1, "2026-03-03 10:00"),
        ("2026-03-03 17:00", 1, "2026-03-04 10:00"),
        ("2026-03-06 16:30", 1, "2026-03-09 09:30"),  # over a weekend
        ("2026-03-07 12:00", 0, "2026-03-09 09:00"),
        ("2026-03-27 16:00", 2, "2026-03-30 10:00"),  # the clocks go forward in between
        ("2026-10-23 16:00", 2, "2026-10-26 10:00"),  # and back
        ("2026-03-03 11:00", 40, "2026-03-10 11:00"),
    ],
)
def test_hours_count_while_the_company_works(start: str, hours: int, due: str) -> None:
    assert BERLIN.add(berlin(start), timedelta(hours=hours)) == berlin(due)


def test_on_the_night_the_clocks_change_an_hour_is_an_hour() -> None:
    nights = BusinessHours.of("Europe/Berlin", {"sun": ["01:00", "05:00"]})
    # Forward: three real hours between one and five on the wall; back: five.
    assert nights.between(berlin("2026-03-29 00:00"), berlin("2026-03-29 12:00")) == timedelta(hours=3)
    assert nights.between(berlin("2026-10-25 00:00"), berlin("2026-10-25 12:00")) == timedelta(hours=5)


def test_a_week_without_open_days_counts_round_the_clock() -> None:
    start = datetime(2026, 3, 7, 12, tzinfo=UTC)
    assert BusinessHours.of("UTC", {}).add(start, timedelta(hours=8)) == start + timedelta(hours=8)


def test_a_day_may_last_until_midnight_and_one_that_ends_before_it_begins_is_closed() -> None:
    hours = BusinessHours.of("UTC", {"mon": ["20:00", "24:00"], "tue": ["17:00", "09:00"]})
    start = datetime(2026, 3, 2, 23, tzinfo=UTC)
    assert hours.add(start, timedelta(hours=1)) == datetime(2026, 3, 3, 0, tzinfo=UTC)
    assert hours.add(start, timedelta(hours=2)) == datetime(2026, 3, 9, 21, tzinfo=UTC)


def test_the_reminder_comes_before_the_promise_and_while_the_company_works() -> None:
    made = promise(BERLIN, berlin("2026-03-03 11:00"), 8)
    assert made.due_at == berlin("2026-03-04 11:00")
    assert made.remind_at == berlin("2026-03-03 17:00")


ZONES = st.sampled_from(
    [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "Asia/Kathmandu",
        "America/Sao_Paulo",
        "Africa/Casablanca",
    ]
)
STARTS = st.datetimes(
    datetime(2020, 1, 1), datetime(2035, 12, 31), timezones=st.just(UTC), allow_imaginary=False
)
WORK = st.timedeltas(timedelta(0), timedelta(hours=60))


@st.composite
def weeks(draw: st.DrawFn) -> dict[str, list[str]]:
    week = {}
    for day in draw(st.sets(st.sampled_from(DAYS), min_size=1)):
        opens = draw(st.integers(0, 23 * 60))
        closes = draw(st.integers(opens + 30, 24 * 60))
        week[day] = [f"{m // 60:02}:{m % 60:02}" for m in (opens, closes)]
    return week


@given(ZONES, weeks(), STARTS, WORK)
def test_exactly_the_promised_time_lies_between_start_and_due(
    zone: str, week: dict[str, list[str]], start: datetime, work: timedelta
) -> None:
    hours = BusinessHours.of(zone, week)
    due = hours.add(start, work)
    assert due >= start
    assert hours.between(start, due) == work


@given(ZONES, weeks(), STARTS, WORK, WORK)
def test_more_work_is_never_due_earlier_and_a_later_start_never_either(
    zone: str, week: dict[str, list[str]], start: datetime, work: timedelta, more: timedelta
) -> None:
    hours = BusinessHours.of(zone, week)
    assert hours.add(start, work) <= hours.add(start, work + more)
    assert hours.add(start, work) <= hours.add(start + more, work)


@given(ZONES, weeks(), STARTS, WORK, WORK)
def test_two_steps_come_to_the_same_as_one(
    zone: str, week: dict[str, list[str]], start: datetime, one: timedelta, two: timedelta
) -> None:
    hours = BusinessHours.of(zone, week)
    if two:
        assert hours.add(hours.add(start, one), two) == hours.add(start, one + two)
