"""`hearback log move` under traffic, killed at each step and run again: nothing lost, nothing doubled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.log import in_use, open_log
from tests.faults.conftest import history_on, settings_for
from tests.support.checker import check
from tests.support.history import History, Traffic
from tests.support.kafka import Broker
from tests.support.postgres import TestPostgres

STEPS = ("move.still", "move.drained", "move.half_switched", "move.told", "move.emptied")


@pytest.fixture(scope="module")
def moving(broker: Broker, postgres: TestPostgres) -> Iterator[History]:
    """Workers that know where Kafka is, and that nobody told which log to use."""
    with history_on(postgres, 1, None, settings_for(broker)) as made:
        yield made


def _logs(history: History) -> set[tuple[str, str | None]]:
    """What each service says its log is, and where it is moving."""
    found = set()
    for service in ("survey", "followup", "reporting"):
        with history.running.db(service).transaction() as tx:
            here = in_use.read(tx)
        assert here is not None
        found.add((here.log, here.moving_to))
    return found


def _other(history: History) -> str:
    [(here, _)] = _logs(history)
    return "embedded" if here == "kafka" else "kafka"


def _records(history: History, name: str) -> int:
    """How many events a log holds."""
    log = open_log(history.running.settings, name=name)
    try:
        return sum(topic.records for topic in log.topics())
    finally:
        log.close()


def _kill(history: History, step: str, to: str) -> None:
    """A move that is killed at this step."""
    killed = history.running.killed_command(step, "log", "move", "--to", to)
    history.running.wait(lambda: not killed.alive, None, "the move to be killed")
    assert killed.crashed(), killed.said()


@pytest.mark.parametrize("step", STEPS)
def test_a_move_killed_at_any_step_is_finished_by_running_it_again(moving: History, step: str) -> None:
    installation, to = moving.running, _other(moving)  # there, and with the next step back
    with Traffic(moving) as traffic:
        _kill(moving, step, to)
        traffic.wait_for_more()
        installation.command("log", "move", "--to", to)
        assert _logs(moving) == {(to, None)}
        traffic.wait_for_more()
    installation.settle()
    check(moving)
    assert _records(moving, to) > 0 == _records(moving, _other(moving))
    assert "already" in installation.command("log", "move", "--to", to).stdout


def test_a_move_that_was_begun_can_be_taken_back(moving: History) -> None:
    installation, to = moving.running, _other(moving)
    [(before, _)] = _logs(moving)
    with Traffic(moving) as traffic:
        _kill(moving, "move.still", to)
        assert _logs(moving) == {(before, to)}
        traffic.wait_for_more()
        installation.command("log", "move", "--to", before)
        assert _logs(moving) == {(before, None)}
        traffic.wait_for_more()
    installation.settle()
    check(moving)


def test_a_half_done_move_can_only_be_finished(moving: History) -> None:
    installation, to = moving.running, _other(moving)
    [(before, _)] = _logs(moving)
    _kill(moving, "move.half_switched", to)
    refused = installation.command("log", "move", "--to", before, check=False)
    assert refused.returncode == 1 and f"log move --to {to}" in refused.stderr
    installation.command("log", "move", "--to", to)
    installation.settle()
    check(moving)


def test_nothing_starts_on_another_log_than_the_one_in_use(moving: History) -> None:
    installation, other = moving.running, _other(moving)
    for role in ("relay", "consumer"):
        refused = installation.command("run", "survey", role, check=False, HEARBACK_LOG=other)
        assert refused.returncode == 1
        assert f"HEARBACK_LOG is {other}" in refused.stderr and f"log move --to {other}" in refused.stderr
    check(moving)
