"""The score and its uncertainty: known values, and what must hold for every tally."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reporting.domain.nps import (
    FEW,
    Tally,
    adjusted_wald,
    difference,
    nps,
    score,
    standard_error,
    wald,
)
from services.reporting.domain.rates import rate, rate_change

counts = st.integers(0, 100_000)
tallies = st.builds(Tally, counts, counts, counts)
some = tallies.filter(lambda tally: tally.n > 0)


def test_the_score_is_promoters_less_detractors_in_percent() -> None:
    assert nps(Tally(70, 20, 10)) == pytest.approx(60)
    assert nps(Tally(0, 5, 0)) == 0
    assert nps(Tally(0, 0, 3)) == -100


def test_the_margin_is_the_formula_for_a_large_sample() -> None:
    # p = .5, d = .2, n = 400: 100 * 1.96 * sqrt((.7 - .09) / 400) = 7.654
    found = score(Tally(200, 120, 80))
    assert found.margin == pytest.approx(7.654, abs=0.001)
    assert found.method == "wald"
    assert found.interval is not None
    assert found.interval.low == pytest.approx(30 - 7.654, abs=0.001)


def test_the_adjusted_interval_adds_three_answers() -> None:
    # 8, 1, 1 become 8.75, 2.5, 1.75 of 13: centre 53.846, error sqrt((.80769 - .28994) / 13) = .19957
    interval = adjusted_wald(Tally(8, 1, 1))
    assert interval.low == pytest.approx(53.846 - 39.115, abs=0.01)
    assert interval.high == pytest.approx(53.846 + 39.115, abs=0.01)


def test_few_answers_are_too_few_to_tell_and_use_the_adjusted_interval() -> None:
    assert score(Tally(FEW - 1, 0, 0)).few
    assert score(Tally(10, 10, 9)).method == "adjusted-wald"
    assert not score(Tally(10, 10, 10)).few
    assert score(Tally(10, 10, 10)).method == "wald"


def test_answers_that_all_agree_do_not_pretend_to_be_certain() -> None:
    found = score(Tally(500, 0, 0))
    assert found.method == "adjusted-wald"
    assert found.margin is not None and found.margin > 0


def test_no_answer_has_no_score() -> None:
    found = score(Tally())
    assert (found.nps, found.margin, found.interval) == (None, None, None)
    with pytest.raises(ValueError, match="no answers"):
        nps(Tally())
    with pytest.raises(ValueError, match="no answers"):
        standard_error(0, 0, 0)
    with pytest.raises(ValueError, match="negative"):
        Tally(-1, 0, 0)


def test_a_difference_has_both_errors() -> None:
    before, after = Tally(200, 120, 80), Tally(250, 100, 50)
    found = difference(before, after)
    assert found is not None
    assert found.points == pytest.approx(20)
    expected = 1.959964 * math.hypot(standard_error(200, 80, 400), standard_error(250, 50, 400))
    assert found.margin == pytest.approx(expected, abs=1e-4)
    assert found.significant


def test_a_small_difference_and_a_small_sample_are_not_significant() -> None:
    near = difference(Tally(200, 120, 80), Tally(203, 118, 79))
    assert near is not None and not near.significant and not near.few
    small = difference(Tally(10, 0, 0), Tally(0, 0, 400))
    assert small is not None and small.few and not small.significant
    assert difference(Tally(), Tally(1, 0, 0)) is None


@given(some)
def test_the_score_and_its_interval_stay_within_their_bounds(tally: Tally) -> None:
    found = score(tally)
    assert found.nps is not None and found.interval is not None and found.margin is not None
    assert -100 <= found.nps <= 100
    assert -100 <= found.interval.low <= found.interval.high <= 100
    assert found.margin >= 0


@given(some)
def test_swapping_promoters_and_detractors_turns_the_sign(tally: Tally) -> None:
    turned = Tally(tally.detractors, tally.passives, tally.promoters)
    assert nps(turned) == pytest.approx(-nps(tally))
    for method in (wald, adjusted_wald):
        assert method(turned).low == pytest.approx(-method(tally).high)


@given(some)
def test_four_times_the_answers_halve_the_error(tally: Tally) -> None:
    fourfold = tally + tally + tally + tally
    assert nps(fourfold) == pytest.approx(nps(tally))
    one = standard_error(tally.promoters, tally.detractors, tally.n)
    four = standard_error(fourfold.promoters, fourfold.detractors, fourfold.n)
    assert four == pytest.approx(one / 2, abs=1e-4)


@given(some, some)
def test_a_difference_turned_round_is_its_negative(one: Tally, two: Tally) -> None:
    there, back = difference(one, two), difference(two, one)
    assert there is not None and back is not None
    assert there.points == pytest.approx(-back.points)
    assert there.margin == pytest.approx(back.margin)
    assert there.significant == back.significant


def test_a_share_of_nothing_is_none() -> None:
    assert rate(0, 0) is None
    assert rate(1, 4) == 25
    assert rate_change((0, 0), (1, 2)) is None


def test_shares_differ_significantly_only_when_the_samples_say_so() -> None:
    clear = rate_change((100, 1000), (200, 1000))
    assert clear is not None and clear.significant and clear.points == pytest.approx(10)
    unclear = rate_change((30, 100), (33, 100))
    assert unclear is not None and not unclear.significant
    small = rate_change((0, 5), (5, 5))
    assert small is not None and small.few and not small.significant
