"""Whatever order and however often events come, the facts and figures end the same, and equal a recount."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from services.reporting import cli, rebuild
from services.reporting.handlers import apply
from services.reporting.queries.recount import recount
from shared.db import Database
from shared.errors import Unavailable
from shared.events.envelope import Event
from shared.settings import Settings
from tests.support.reporting import PROGRAMS, History
from tests.support.reporting_play import empty, random_history, shuffled_between_topics, state

Databases = Callable[[str], Database]


def play(db: Database, events: Sequence[Event], sizes: Sequence[int] = (1,)) -> None:
    rest, turn = list(events), 0
    while rest:
        size = sizes[turn % len(sizes)]
        with db.transaction() as tx:
            apply(tx, rest[:size])
        rest, turn = rest[size:], turn + 1


def assert_equals_recount(db: Database) -> None:
    with db.transaction() as tx:
        found = recount(tx)
    assert found.equal, found


@pytest.fixture
def db(database: Databases) -> Database:
    return database("reporting")


@given(seed=st.integers(0, 2**32), order=st.integers(0, 2**32), batch=st.sampled_from([2, 5, 17, 500]))
@examples(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_any_order_between_topics_and_any_repetition_end_in_the_same_state(
    db: Database, seed: int, order: int, batch: int
) -> None:
    events = random_history(seed)
    empty(db)
    play(db, events, (7,))
    assert_equals_recount(db)
    expected = state(db)

    dice = random.Random(order)
    mixed = shuffled_between_topics(events, dice)
    for event in dice.sample(events, len(events) // 3):
        mixed.insert(dice.randint(0, len(mixed)), event)
    empty(db)
    play(db, mixed, (batch,))
    assert_equals_recount(db)
    found = state(db)
    for name in expected:
        assert found[name] == expected[name], name


def test_after_an_erasure_nothing_of_the_customer_is_left_or_comes_back(db: Database) -> None:
    h = History()
    h.company()
    customer, other = h.customer("Ada"), h.customer("Bob")
    response = h.answer(h.ask(customer), 3, comment="Too slow")
    h.answer(h.ask(other), 9)
    task = h.task(response)
    h.click(h.ask(customer), 2)
    h.notice(h.change(), response)
    before = list(h.events)
    h.erase(customer)
    play(db, h.events)
    found = state(db)
    assert [row["name"] for row in found["customer"]] == ["Bob"]
    assert [row["score"] for row in found["response"]] == [9]
    assert not found["unconfirmed"] and not found["notice"]
    assert sum(row["asked"] for row in found["funnel_day"]) == 1
    play(db, before)
    h.resolve(task)
    play(db, h.events[-1:])
    after = state(db)
    for name in found:
        if name != "task":
            assert after[name] == found[name], name
    assert_equals_recount(db)


def test_a_day_is_a_day_in_the_companys_zone_and_moves_with_it(db: Database) -> None:
    h = History()
    h.company("UTC")
    h.now = h.now.replace(hour=22)
    h.answer(h.ask(h.customer()), 10)
    play(db, h.events)
    assert [str(row["day"]) for row in state(db)["nps_day"]] == ["2026-01-05"]
    h.company("Asia/Tokyo")
    play(db, h.events[-1:])
    after = state(db)
    assert [str(row["day"]) for row in after["nps_day"]] == ["2026-01-06"]
    assert [str(row["day"]) for row in after["funnel_day"]] == ["2026-01-06"]
    assert_equals_recount(db)


def test_revising_and_excluding_move_the_counts(db: Database) -> None:
    h = History()
    h.company()
    response = h.answer(h.ask(h.customer()), 2)
    play(db, h.events)
    steps: list[tuple[Callable[[], None], tuple[int, int, int, int]]] = [
        (lambda: h.revise(response, 8), (0, 1, 0, 0)),
        (lambda: h.revise(response, 9), (1, 0, 0, 0)),
        (lambda: h.exclude(response), (0, 0, 0, 1)),
        (lambda: h.exclude(response, False), (1, 0, 0, 0)),
    ]
    for change, expected in steps:
        change()
        play(db, h.events[-1:])
        with db.transaction() as tx:
            row = tx.one("SELECT promoters, passives, detractors, excluded FROM nps_day")
            answered = tx.value("SELECT sum(answered) FROM funnel_day")
        assert row is not None and tuple(row.values()) == expected
        assert answered == 1 - expected[3]


def test_a_rebuild_from_nothing_ends_equal(db: Database) -> None:
    events = random_history(4711, customers=30)
    play(db, events, (50,))
    before = state(db)
    with db.transaction() as tx:
        rebuild.clear(tx)
    assert not state(db)["response"] and not state(db)["nps_day"]
    play(db, [event for event in events if event.data is not None], (50,))
    after = state(db)
    for name in before:
        assert after[name] == before[name], name
    assert_equals_recount(db)


def test_a_recount_finds_a_figure_that_is_wrong(db: Database) -> None:
    h = History()
    h.company()
    h.answer(h.ask(h.customer(), list(PROGRAMS)[1]), 10)
    play(db, h.events)
    assert_equals_recount(db)
    with db.transaction() as tx:
        tx.execute("UPDATE nps_day SET promoters = 2")
        tx.execute("UPDATE invitation SET resolved = true")
        found = recount(tx)
    assert not found.equal
    assert found.stale_invitations == 1
    assert [(d.column, d.shown, d.counted) for d in found.differences] == [
        ("promoters", 2, 1),
        ("resolved", 0, 1),
    ]


def test_batches_of_different_topics_at_once_lose_nothing(db: Database) -> None:
    """Several consumers, each with some topics: what one writes about a thing the other must not miss."""
    for seed in range(4):
        events = random_history(seed, customers=40)
        empty(db)
        play(db, events, (25,))
        expected = state(db)
        empty(db)
        groups: dict[str, list[Event]] = {}
        for event in events:
            groups.setdefault(event.topic, []).append(event)
        start = threading.Barrier(len(groups))

        def consume(mine: list[Event], start: threading.Barrier = start) -> None:
            start.wait()
            rest = list(mine)
            while rest:
                try:
                    play(db, rest[:5], (5,))
                    rest = rest[5:]
                except Unavailable:  # a deadlock or a full pool: a consumer tries again
                    continue

        with ThreadPoolExecutor(len(groups)) as pool:
            for done in [pool.submit(consume, mine) for mine in groups.values()]:
                done.result(timeout=60)
        found = state(db)
        for name in expected:
            assert found[name] == expected[name], (name, seed)
        assert_equals_recount(db)


def test_the_terminal_says_whether_the_figures_are_right(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = replace(settings, database_urls={"reporting": settings.database_urls["reporting"]})
    monkeypatch.setattr(cli, "load", lambda **_: only)
    play(db, random_history(5), (50,))
    runner = CliRunner()
    right = runner.invoke(cli.recount_command, standalone_mode=False)
    assert right.return_value == 0 and "every figure is the same" in right.output
    with db.transaction() as tx:
        tx.execute("UPDATE nps_day SET passives = passives + 1")
    wrong = runner.invoke(cli.recount_command, standalone_mode=False)
    assert wrong.return_value == 1 and "passives: shown" in wrong.output
    as_json = runner.invoke(cli.recount_command, ["--json"], standalone_mode=False)
    assert json.loads(as_json.output)["equal"] is False
