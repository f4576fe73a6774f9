"""Periods, points on the time axis, the finding, the chart and what a URL asks for."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from services.reporting.charts.render import digest, svg
from services.reporting.charts.series import series
from services.reporting.charts.spec import Width, spec
from services.reporting.domain.finding import Mark, finding
from services.reporting.domain.nps import Tally
from services.reporting.domain.period import GRAINS, Grain, Period, bucket, buckets, grain_for
from services.reporting.queries.surroundings import Published
from services.reporting.selection import Selection, read
from shared.errors import Invalid

TODAY = date(2026, 3, 3)
MARCH = Period(date(2026, 2, 2), TODAY)
PROGRAM = "11111111-1111-7111-8111-111111111111"

days = st.dates(date(2020, 1, 1), date(2030, 1, 1))
periods = st.builds(
    lambda start, length: Period(start, start + timedelta(days=length)), days, st.integers(0, 400)
)


def test_a_period_includes_both_ends_and_the_previous_one_touches_it() -> None:
    assert MARCH.days == 30
    assert MARCH.previous() == Period(date(2026, 1, 3), date(2026, 2, 1))
    assert Period.last(1, TODAY) == Period(TODAY, TODAY)
    with pytest.raises(ValueError, match="before the first"):
        Period(TODAY, date(2026, 3, 2))
    with pytest.raises(ValueError, match="at most"):
        Period(date(1990, 1, 1), TODAY)


@given(periods, st.sampled_from(GRAINS))
def test_every_day_of_a_period_is_in_exactly_one_of_its_buckets(period: Period, grain: Grain) -> None:
    found = buckets(grain, period)
    assert found[0] == period.start
    assert found == sorted(set(found))
    for offset in range(period.days):
        assert bucket(period.start + timedelta(days=offset), grain, period) in found


def test_weeks_begin_on_monday_and_months_on_the_first_but_not_before_the_period() -> None:
    period = Period(date(2026, 1, 7), TODAY)  # a Wednesday
    assert buckets("week", period)[:2] == [date(2026, 1, 7), date(2026, 1, 12)]
    assert buckets("month", period) == [date(2026, 1, 7), date(2026, 2, 1), date(2026, 3, 1)]


def test_the_grain_is_the_finest_at_which_a_typical_point_says_something() -> None:
    many = [(MARCH.start + timedelta(days=i), 40) for i in range(30)]
    some = [(day, 6) for day, _ in many]
    assert grain_for(many, MARCH, 30) == "day"
    assert grain_for(some, MARCH, 30) == "week"
    assert grain_for([], Period.last(7, TODAY), 30) == "day"
    year = Period.last(365, TODAY)
    assert grain_for([(year.start + timedelta(days=i), 400) for i in range(365)], year, 30) == "week"
    assert grain_for([], Period.last(3660, TODAY), 30) == "month"


def test_a_finding_says_no_more_than_the_numbers_allow() -> None:
    early, late = date(2026, 2, 5), date(2026, 2, 20)
    mark = Mark(date(2026, 2, 10), "Saturday delivery")
    none = finding({}, Tally(), MARCH, [])
    assert none.title == "No answers in this period"
    assert finding({early: Tally(5, 1, 1)}, Tally(), MARCH, []).title == "Too few to tell: 7 answers"
    assert finding({early: Tally(1, 0, 0)}, Tally(), MARCH, []).title == "Too few to tell: 1 answer"
    moved = finding({early: Tally(100, 100, 100), late: Tally(250, 30, 20)}, Tally(), MARCH, [mark])
    assert moved.title.startswith("NPS rose from 0 to 77 after “Saturday delivery”; interval +6")
    same = finding({early: Tally(50, 30, 20), late: Tally(52, 30, 20)}, Tally(100, 60, 40), MARCH, [mark])
    assert same.title == "NPS is 31 ± 11; no significant change"
    assert "the difference lies between −" in same.detail
    fell = finding({late: Tally(20, 60, 120)}, Tally(120, 60, 20), MARCH, [])
    assert fell.title.startswith("NPS fell from 50 to −50; interval −1")
    alone = finding({late: Tally(200, 60, 20)}, Tally(1, 1, 1), MARCH, [])
    assert alone.title == "NPS is 64 ± 7"


def test_the_url_is_the_state() -> None:
    assert read({}, TODAY) == Selection(Period.last(30, TODAY), 30)
    chosen = read(
        {"from": "2026-01-01", "to": "2026-01-31", "program": PROGRAM, "touchpoint": "order", "by": "week"},
        TODAY,
    )
    assert chosen == Selection(Period(date(2026, 1, 1), date(2026, 1, 31)), None, PROGRAM, "order", "week")
    assert chosen.query() == f"from=2026-01-01&to=2026-01-31&program={PROGRAM}&touchpoint=order&by=week"
    assert chosen.query(days=7, program=None) == "touchpoint=order&by=week&days=7"
    assert read({"from": "2026-02-01"}, TODAY).period == Period(date(2026, 2, 1), TODAY)
    assert read({"to": "2026-02-01"}, TODAY).period == Period(date(2026, 2, 1), date(2026, 2, 1))


@given(
    st.builds(Selection, periods, st.none(), st.none(), st.sampled_from([None, "order", "a b&c"]), st.none())
)
def test_a_selection_survives_its_own_query(selection: Selection) -> None:
    from urllib.parse import parse_qsl

    assert read(MultiDict(parse_qsl(selection.query())), TODAY) == selection


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"days": "x"}, "days"),
        ({"days": "0"}, "days"),
        ({"days": "99999999"}, "days"),
        ({"from": "yesterday"}, "from"),
        ({"from": "2026-03-02", "to": "2026-03-01"}, "to"),
        ({"from": "1066-10-14", "to": "2026-03-01"}, "to"),
        ({"program": "x"}, "program"),
        ({"by": "hour"}, "by"),
    ],
)
def test_a_url_that_cannot_be_read_is_named(query: dict[str, str], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        read(query, TODAY)
    assert set(caught.value.fields) == {field}


@pytest.mark.parametrize("width", ["wide", "medium", "narrow"])
def test_the_chart_is_drawn_at_every_width_and_with_gaps(width: Width) -> None:
    by_day = {date(2026, 2, 3): Tally(30, 5, 2), date(2026, 2, 9): Tally(2, 0, 1)}
    published = [Published("x", "Saturday delivery", date(2026, 2, 8)), Published("y", "B", date(2026, 2, 8))]
    line = series(by_day, published, Selection(MARCH, grain="day"))
    drawn = svg(spec(line.points, line.marks, line.grain, "dark", width))
    root = ET.fromstring(drawn.plain)
    assert root.tag.endswith("svg")
    assert b"1, 2" in drawn.plain  # two changes of one day share their mark
    assert svg(spec(line.points, line.marks, line.grain, "dark", width)) is drawn


def test_a_chart_without_any_answer_is_still_drawn() -> None:
    line = series({}, [], Selection(Period(TODAY, TODAY)))
    assert svg(spec(line.points, line.marks, line.grain, "light", "wide")).plain.startswith(b"<svg")


def test_other_content_has_another_name() -> None:
    one = series({TODAY: Tally(1, 0, 0)}, [], Selection(MARCH))
    two = series({TODAY: Tally(0, 1, 0)}, [], Selection(MARCH))
    assert one.digest != two.digest
    light, dark = (spec(one.points, (), one.grain, theme, "wide") for theme in ("light", "dark"))
    assert digest(light) != digest(dark)
