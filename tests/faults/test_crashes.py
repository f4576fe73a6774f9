"""Faults 1, 2, 3, 7 and 8: a process is killed at its worst moment."""

from __future__ import annotations

import pytest

from tests.support.checker import check
from tests.support.history import History


def test_fault_01_web_dies_after_its_commit_before_the_reply(history: History) -> None:
    installation = history.running
    web = installation.web()
    installation.workers()
    history.invite()
    installation.settle()
    web.stop()
    web = installation.web(crash_at="web.after_commit")
    first = history.people[0]
    ack = history.answer(first, 3, "too slow", nonce="the-same-form-again")
    assert web.crashed()
    first.version = 0  # as the old form said
    again = history.answer(first, 3, "too slow", nonce="the-same-form-again")
    assert again == ack
    for person in history.people[1:]:
        history.answer(person)
    installation.settle()
    check(history)


def test_fault_02_relay_dies_after_the_log_confirmed(history: History) -> None:
    _relay_dies(history, "relay.after_flush")
    events = [entry.headers["id"] for entry in history.running.log().tail("responses", 1_000_000)]
    assert len(events) > len(set(events)), "nothing was sent twice: the fault was not there"


def test_fault_03_relay_dies_amid_a_batch(history: History) -> None:
    _relay_dies(history, "relay.mid_batch")


def test_relay_dies_before_it_sends(history: History) -> None:
    _relay_dies(history, "relay.before_send")


def _relay_dies(history: History, point: str) -> None:
    installation = history.running
    installation.web()
    installation.role("survey", "consumer", "sender", "clock")
    relay = installation.role("survey", "relay")
    installation.role("followup")
    installation.role("reporting")
    history.invite()
    installation.settle()
    relay.stop()
    history.answer_all()
    installation.wait_crash(installation.role("survey", "relay", crash_at=point))
    installation.role("survey", "relay")
    installation.settle()
    check(history)


@pytest.mark.parametrize("service", ["followup", "reporting"])
def test_fault_07_consumer_dies_after_its_commit_before_the_offset(history: History, service: str) -> None:
    _consumer_dies(history, service, "consumer.after_commit")


@pytest.mark.parametrize("service", ["followup", "reporting"])
def test_fault_08_consumer_dies_before_its_commit(history: History, service: str) -> None:
    _consumer_dies(history, service, "consumer.before_commit")


def _consumer_dies(history: History, service: str, point: str) -> None:
    installation = history.running
    installation.web()
    installation.role("survey")
    other = "reporting" if service == "followup" else "followup"
    installation.role(other)
    if service == "followup":
        installation.role("followup", "relay", "sender", "clock")
    consumer = installation.role(service, "consumer")
    history.invite()
    installation.settle()
    consumer.stop()
    history.answer_all()
    installation.wait_crash(installation.role(service, "consumer", crash_at=point))
    installation.role(service, "consumer")
    installation.settle()
    check(history)
