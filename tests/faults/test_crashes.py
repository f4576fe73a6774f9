"""Faults 1, 2, 3, 7 and 8: a process is killed at its worst moment."""

from __future__ import annotations

import pytest

from tests.support.checker import check
from tests.support.history import History


def test_fault_01_web_dies_after_its_commit_before_the_reply(history: History) -> None:
    history.cast.web.stop()
    web = history.cast.web = history.running.web(crash_at="web.after_commit")
    first = history.people[0]
    shown = first.version
    ack = history.answer(first, 3, "too slow", nonce="the-same-form-again")
    assert web.crashed()
    first.version = shown  # as the old form says
    assert history.answer(first, 3, "too slow", nonce="the-same-form-again") == ack
    history.answer_all()
    history.running.settle()
    check(history)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("relay.after_flush", id="fault_02_after_the_log_confirmed"),
        pytest.param("relay.mid_batch", id="fault_03_amid_a_batch"),
        pytest.param("relay.before_send", id="before_it_sends"),
    ],
)
def test_relay_dies(history: History, point: str) -> None:
    twice = _sent_twice(history)
    history.cast.relay.stop()
    history.answer_all()
    history.running.wait_crash(history.cast.relay_again(crash_at=point))
    history.cast.relay_again()
    history.running.settle()
    check(history)
    # On Kafka what was sent is there at once; the embedded log takes back what a dead relay had begun.
    there = {"relay.after_flush"} | (
        {"relay.mid_batch"} if history.running.settings.log == "kafka" else set()
    )
    assert (_sent_twice(history) > twice) == (point in there)


@pytest.mark.parametrize("service", ["followup", "reporting"])
@pytest.mark.parametrize(
    "point",
    [
        pytest.param("consumer.after_commit", id="fault_07_after_its_commit_before_the_offset"),
        pytest.param("consumer.before_commit", id="fault_08_before_its_commit"),
    ],
)
def test_consumer_dies(history: History, service: str, point: str) -> None:
    history.cast.consumers[service].stop()
    history.answer_all()
    history.running.wait_crash(history.cast.consumer_again(service, crash_at=point))
    history.cast.consumer_again(service)
    history.running.settle()
    check(history)


def _sent_twice(history: History) -> int:
    log = history.running.log()
    events = [entry.headers["id"] for entry in log.tail("responses", 1_000_000)]
    log.close()
    return len(events) - len(set(events))
