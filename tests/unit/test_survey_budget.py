"""Bands, NPS, channels and the contact budget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.survey.domain.bands import band, net_promoter_score
from services.survey.domain.budget import (
    CHANNELS,
    Contact,
    channel_refusal,
    choose_channel,
    may_ask,
    may_send,
)

NOW = datetime(2026, 3, 3, 10, 0, tzinfo=UTC)
channels = st.frozensets(st.sampled_from(CHANNELS))
contacts = st.builds(
    Contact,
    st.sampled_from([None, "a@example.com"]),
    st.sampled_from([None, "+4930123456"]),
    channels,
    channels,
    st.integers(0, 10),
    st.one_of(st.none(), st.integers(0, 90).map(lambda days: NOW - timedelta(days=days))),
)


@given(st.integers())
def test_every_score_has_one_band(score: int) -> None:
    if 0 <= score <= 10:
        assert band(score) == ("detractor" if score < 7 else "passive" if score < 9 else "promoter")
    else:
        with pytest.raises(ValueError, match="0 to 10"):
            band(score)


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_nps_lies_between_minus_and_plus_hundred_and_its_margin_is_positive(p: int, q: int, d: int) -> None:
    found = net_promoter_score(p, q, d)
    if p + q + d == 0:
        assert found is None
    else:
        assert found is not None and -100 <= found[0] <= 100 and 0 < found[1] < 200


@given(contacts, st.lists(st.sampled_from(CHANNELS), unique=True, min_size=1))
def test_a_chosen_channel_is_the_first_that_may_be_used(contact: Contact, preference: list[str]) -> None:
    channel, reason = choose_channel(contact, preference)
    usable = [one for one in preference if channel_refusal(contact, one) is None]
    assert channel == (usable[0] if usable else None)
    assert (reason is None) == bool(usable)


@given(contacts, st.sampled_from(CHANNELS))
def test_an_opted_out_or_dead_channel_is_never_used(contact: Contact, channel: str) -> None:
    chosen, _ = choose_channel(contact, [channel])
    if channel in contact.opted_out | contact.bounced or contact.address(channel) is None:
        assert chosen is None


@given(contacts, st.integers(0, 60), st.integers(1, 10))
def test_gap_and_limit_are_both_kept(contact: Contact, gap: int, limit: int) -> None:
    reason = may_ask(contact, NOW, gap, limit)
    if reason is None:
        assert contact.spent < limit and may_send(contact, limit) is None
        assert contact.last_asked is None or NOW - contact.last_asked >= timedelta(days=gap)
    else:
        assert reason in ("recently_asked", "contact_limit")


def test_a_decision_is_told_before_a_fault() -> None:
    contact = Contact("a@example.com", None, frozenset({"email"}), frozenset())
    assert choose_channel(contact, ["sms", "email"]) == (None, "opted_out")
