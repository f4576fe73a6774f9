"""Faults 1, 2, 3, 7, 8, a process is killed at its worst moment; and 22, what a newer version says."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from services.followup import handlers as followup
from services.reporting import handlers as reporting
from services.survey import handlers as survey
from shared.events import parking
from shared.events.consumer import PARK_LIMIT
from shared.log import Pass, Record
from shared.settings import SERVICES
from tests.support.checker import check, sent_twice
from tests.support.given import from_zero
from tests.support.history import History

_TOPICS = {"survey": survey.TOPICS, "followup": followup.TOPICS, "reporting": reporting.TOPICS}


def test_fault_01_web_dies_after_its_commit_before_the_reply(history: History) -> None:
    history.cast.web.stop()
    web = history.cast.web = history.running.web(crash_at="web.after_commit")
    first = history.people[0]
    shown = first.version
    ack = history.answer(first, 3, "too slow", nonce="the-same-form-again")
    assert web.crashed()
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
        pytest.param("relay.mid_batch", id="fault_03_amid_a_batch"),
        pytest.param("relay.before_send", id="before_it_sends"),
    ],
)
@pytest.mark.parametrize("service", ["survey", "followup"])
def test_relay_dies(history: History, service: str, point: str) -> None:
    twice = sent_twice(history)
    again = history.cast.relay_again if service == "survey" else history.cast.followup_again
    (history.cast.relay if service == "survey" else history.cast.others[1]).stop()
    history.answer_all()
    if service == "followup":  # what the answers mean is its to tell
        history.running.wait(lambda: _outbox(history, "followup") > 1, None, "followup's events")
    history.running.wait_crash(again(crash_at=point))
    again()
    history.running.settle()
    check(history)
    # On Kafka what was sent is there at once; the embedded log takes back what a dead relay had begun.
    there = {"relay.after_flush"} | (
        {"relay.mid_batch"} if history.running.settings.log == "kafka" else set()
    )
    assert (sent_twice(history) > twice) == (point in there)


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
    history.running.wait_crash(history.cast.consumer_again(service, crash_at=point))
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
