"""Faults 1, 2, 3, 7, 8, a process is killed at its worst moment; and 22, what a newer version says."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest

from services.followup import handlers as followup
from services.reporting import handlers as reporting
from services.survey import handlers as survey
from shared.events import parking
from shared.events.consumer import PARK_LIMIT
from shared.log import Pass, Record
from shared.settings import SERVICES
from tests.faults.conftest import SEEDS
from tests.support.checker import check, sent_twice
from tests.support.given import from_zero
from tests.support.history import History, Traffic
from tests.support.running import Process

_TOPICS = {"survey": survey.TOPICS, "followup": followup.TOPICS, "reporting": reporting.TOPICS}


def test_fault_01_web_dies_after_its_commit_before_the_reply(history: History) -> None:
    history.cast.web.stop()
    web = history.cast.web = history.running.web(crash_at="web.after_commit")
    first = history.people[0]
    shown = first.version
    refused = history.refused
    ack = history.answer(first, 3, "too slow", nonce="the-same-form-again")
    # This request died of it, and none of another worker's was acknowledged in its stead.
    assert web.crashed() and history.refused > refused
    first.version = shown  # as the old form says
    assert history.answer(first, 3, "too slow", nonce="the-same-form-again") == ack
    # Before anything else is said of them: a revision would tell what was lost as well.
    history.running.settle()
    check(history)
    history.answer_all()
    history.running.settle()
    check(history)


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("relay.after_flush", id="fault_02_after_the_log_confirmed"),
        pytest.param("relay.before_send", id="before_it_sends"),
    ],
)
@pytest.mark.parametrize("service", ["survey", "followup"])
def test_relay_dies(history: History, service: str, point: str) -> None:
    assert _relay_dies(history, service, point) == (point == "relay.after_flush")


# On Kafka one request carries the batch, so that this would be fault 2 once more; it is in test_broker.
@pytest.mark.parametrize("service", ["survey", "followup"])
@pytest.mark.parametrize(
    "history", [("embedded", one) for one in SEEDS], ids=lambda one: f"{one[0]}-seed{one[1]}", indirect=True
)
def test_fault_03_a_relay_dies_amid_a_batch(history: History, service: str) -> None:
    assert not _relay_dies(history, service, "relay.mid_batch"), "the log did not take it back"


def _relay_dies(history: History, service: str, point: str) -> bool:
    """Whether what it had sent was sent once more."""
    twice = sent_twice(history)
    again = history.cast.relay_again if service == "survey" else history.cast.followup_again
    (history.cast.relay if service == "survey" else history.cast.others[1]).stop()
    history.answer_all()
    if service == "followup":  # what the answers mean is its to tell
        history.running.wait(lambda: _outbox(history, "followup") > 1, None, "followup's events")
    _dies(history, again, point)
    again()
    history.running.settle()
    check(history)
    return sent_twice(history) > twice


def _dies(history: History, start: Callable[[str], Process], point: str) -> None:
    """At the first, second or third pass, by the seed; whatever waits makes one, and answers make more."""
    times = 1 + (history.seed - 1) % 3
    with Traffic(history) if times > 1 else nullcontext():
        history.running.wait_crash(start(f"{point}:{times}"))


@pytest.mark.parametrize("service", SERVICES)
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
    _dies(history, lambda at: history.cast.consumer_again(service, crash_at=at), point)
    history.cast.consumer_again(service)
    history.running.settle()
    check(history)
    assert not (missed := _not_noted(history, service)), f"{service} has not noted {len(missed)} events"


def test_fault_22_what_a_newer_version_says_is_carried_or_parked_and_stops_nobody(history: History) -> None:
    installation = history.running
    log = installation.log()
    known = [parking.decode(e.topic, e.key, e.value, e.headers) for e in log.tail("customers", 1_000)]
    customer = next(event for event in known if event.key == history.people[0].id)
    assert customer.data is not None
    more = {**customer.data, "name": "Of the Next Version", "mood": "sunny"}
    events = [
        replace(customer, id=str(uuid.uuid4()), version=customer.version + 1_000, data=more),
        *(
            replace(
                customer,
                id=str(uuid.uuid4()),
                key=str(uuid.uuid4()),
                type="customer.praised",
                data={"by": ["whom", {"a": 1}]},
            )
            for _ in range(2 * PARK_LIMIT)
        ),
    ]
    log.sink().send(
        [Record(e.topic, e.key, e.value(), e.headers()) for e in events], Pass("the-next-version", 1)
    )
    log.close()
    history.answer_all()
    installation.settle()
    for service in ("followup", "reporting"):
        assert history.cast.consumers[service].alive
        with installation.db(service).transaction() as tx:
            for event in events:
                assert tx.value("SELECT count(*) FROM inbox WHERE event_id = %s", (event.id,)) == 1
            waiting = {row["key"] for row in tx.all("SELECT key FROM parked_key")}
        assert waiting == {event.key for event in events[1:]}, service
    with installation.db("followup").transaction() as tx:
        name = tx.value("SELECT name FROM customer WHERE id = %s", (customer.key,))
    assert name == "Of the Next Version"
    check(history, parked=2 * len(waiting))
    for service in ("followup", "reporting"):  # they still know no such type
        history.cast.consumers[service].stop()
        history.cast.consumer_again(service)
    history.answer_all()
    installation.settle()
    for service in ("followup", "reporting"):
        with installation.db(service).transaction() as tx:
            assert tx.value("SELECT count(*) FROM parked_key") == len(waiting)
        for event in events[1:]:
            parking.discard(installation.db(service), service, event.topic, event.key)


def _outbox(history: History, service: str) -> int:
    with history.running.db(service).transaction() as tx:
        return int(tx.value("SELECT count(*) FROM outbox"))


def _not_noted(history: History, service: str) -> set[str]:
    """The events on the log that a service's inbox does not have: they would be applied once more."""
    log = history.running.log()
    there = {entry.headers["id"] for entry in from_zero(log, _TOPICS[service])}
    log.close()
    with history.running.db(service).transaction() as tx:
        return there - {str(row["event_id"]) for row in tx.all("SELECT event_id FROM inbox")}
