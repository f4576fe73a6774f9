"""Rebuilding: replicas emptied and filled again, nothing of followup's own lost, nothing done twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.followup import rebuild
from services.followup.commands import attempts, keys, locks, resolving
from services.followup.domain.by import By
from shared.events.envelope import Event
from tests.support.followup import Followup, account, new_id


def again(event: Event) -> Event:
    """The same state, published once more by its owner."""
    return Event(
        event.id, event.type, event.topic, event.key, event.version, event.occurred_at, event.data, True
    )


def test_replicas_fill_again_and_tasks_stay_as_they_are(followup: Followup) -> None:
    globex, carla = account(manager="ann@acme.example"), new_id()
    events = [
        followup.company(),
        followup.customer(carla, globex),
        followup.response(carla, 2, account=globex, comment="Late"),
    ]
    followup.staff("ann@acme.example")
    followup.apply(*events)
    before = followup.tasks()
    with followup.db.transaction() as tx:
        attempts.note(tx, By(None, "x"), before[0]["id"], text="kept")
        rebuild.clear(tx)
    assert not followup.all("SELECT * FROM response") and not followup.all("SELECT * FROM customer")
    published = len(followup.published())
    followup.apply(*(again(event) for event in events))
    assert followup.tasks() == before and len(followup.published()) == published
    assert followup.one("SELECT comment FROM response")["comment"] == "Late"
    assert followup.one("SELECT name FROM customer")["name"] == "Carla Customer"
    assert followup.one("SELECT text FROM task_entry WHERE kind = 'noted'")["text"] == "kept"


def test_an_event_that_comes_again_after_clearing_opens_nothing(followup: Followup) -> None:
    event = followup.response(new_id(), 2)
    followup.apply(event)
    with followup.db.transaction() as tx:
        rebuild.clear(tx)
    followup.apply(event)
    assert len(followup.tasks()) == 1 and len(followup.published("task.opened")) == 1


@pytest.mark.parametrize("words", ["It broke again", "Late"], ids=["new_words", "the_same_words"])
def test_a_customer_who_speaks_again_while_replicas_are_empty_is_called_again(
    followup: Followup, words: str
) -> None:
    carla, answer = new_id(), new_id()
    followup.apply(followup.company(), followup.response(carla, 2, response_id=answer, comment="Late"))
    task = followup.tasks()[0]["id"]
    with followup.db.transaction() as tx:
        resolving.resolve(tx, By(None, "Ann"), task, outcome="solved", theme="Late")
    for _ in range(2):  # the second time there is nothing to put aside
        with followup.db.transaction() as tx:
            rebuild.clear(tx)
    revision = followup.response(carla, 2, response_id=answer, comment=words)
    followup.apply(revision)
    followup.apply(again(revision))
    state = followup.tasks()[0]["state"]
    assert state == ("open" if words != "Late" else "resolved")
    with followup.db.transaction() as tx:
        rebuild.forget_before(tx)
    assert not followup.all("SELECT 1 FROM response_before")


def test_what_comes_again_while_replicas_are_empty_is_no_new_word(followup: Followup) -> None:
    carla, answer = new_id(), new_id()
    first = followup.response(carla, 3, response_id=answer, comment="Late")
    second = followup.response(carla, 2, response_id=answer, comment="Very late")
    followup.apply(followup.company(), first, second)
    with followup.db.transaction() as tx:
        resolving.resolve(tx, By(None, "Ann"), followup.tasks()[0]["id"], outcome="solved", theme="Late")
    for told in ([first], [first, second], [second]):
        with followup.db.transaction() as tx:
            rebuild.clear(tx)
        followup.apply(*told)
        assert followup.tasks()[0]["state"] == "resolved"


def test_who_is_erased_while_replicas_are_empty_leaves_nothing_behind(followup: Followup) -> None:
    carla = new_id()
    followup.apply(followup.response(carla, 2, comment="Late"))
    with followup.db.transaction() as tx:
        rebuild.clear(tx)
    assert followup.all("SELECT 1 FROM response_before")
    followup.apply(followup.erasure(carla))
    assert not followup.all("SELECT 1 FROM response_before")


def test_emptying_replicas_and_a_consumer_never_wait_in_a_ring(followup: Followup) -> None:
    low, high = sorted((account("Globex"), account("Initech")), key=lambda one: str(one["id"]))
    for one in (high, low):  # as they lie in the table
        followup.apply(followup.customer(new_id(), one))

    def clear() -> None:
        with followup.db.transaction() as tx:
            rebuild.clear(tx)

    with ThreadPoolExecutor(1) as pool:
        with followup.db.transaction() as tx:
            locks.lock(tx, [low["id"]], [])
            emptied = pool.submit(clear)
            while not followup.all(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            ):
                assert not emptied.done()
            locks.lock(tx, [high["id"]], [])
        emptied.result(10)


def test_a_revision_while_replicas_are_empty_withdraws_nothing_it_cannot_judge(followup: Followup) -> None:
    globex, answer = account(), new_id()
    carla, carl = new_id(), new_id()
    followup.apply(
        followup.response(carla, 2, account=globex, response_id=answer),
        followup.response(carl, 1, account=globex),
    )
    with followup.db.transaction() as tx:
        rebuild.clear(tx)
    followup.apply(followup.response(carla, 9, account=globex, response_id=answer))
    assert followup.tasks()[0]["state"] == "open"


def test_telling_tasks_again_and_a_consumer_never_wait_in_a_ring(followup: Followup) -> None:
    accounts = [account("Globex"), account("Initech")]
    for one in accounts:
        followup.apply(followup.response(new_id(), 2, account=one))
    first, second = sorted(task["id"] for task in followup.tasks())
    lock_task = "SELECT 1 FROM task WHERE id = %s FOR NO KEY UPDATE"
    with ThreadPoolExecutor(1) as pool:
        with followup.db.transaction() as tx:  # a consumer's batch: its subjects, then task after task
            locks.lock(tx, [one["id"] for one in accounts], [])
            tx.all(lock_task, (second,))
            told = pool.submit(rebuild.republish, followup.db, ["tasks"])
            while not followup.all(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            ):
                assert not told.done()
            tx.all(lock_task, (first,))
        assert told.result(10) == 2


def test_everything_owned_is_published_with_the_same_ids(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    with followup.db.transaction() as tx:
        keys.create(tx, name="x", scopes=["tasks:read"], created_by=None)
    followup.apply(followup.response(new_id(), 2))
    rows = "SELECT event_id, type, key, version, data::jsonb AS data, replay FROM outbox ORDER BY id"
    live = {(row["key"], row["version"]): row for row in followup.all(rows)}
    with followup.db.transaction() as tx:
        tx.execute("DELETE FROM outbox")
    assert rebuild.republish(followup.db, ["staff", "tasks"]) == 3
    for row in followup.all(rows):
        first = live[(row["key"], row["version"])]
        assert row["replay"] and row["event_id"] == first["event_id"] and row["data"] == first["data"]
