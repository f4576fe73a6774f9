"""Generated histories, their events in other orders, and logged-in clients, for the tests of reporting."""

from __future__ import annotations

import random
from collections.abc import Iterable

from flask import Flask
from flask.testing import FlaskClient

from shared.events.envelope import Event
from shared.web.session import COOKIE
from shared.web.signing import serializer
from tests.support.reporting import PROGRAMS, History


def random_history(seed: int, customers: int = 12) -> list[Event]:
    """A history in which everything may happen, in an order in which it can happen."""
    dice = random.Random(seed)
    h = History(random=dice)
    h.company(dice.choice(["UTC", "Pacific/Auckland", "America/New_York"]))
    h.programs()
    change = h.change()
    tasks: list[str] = []
    for number in range(customers):
        h.wait(hours=dice.randint(1, 40))
        customer = h.customer(f"Customer {number}")
        if dice.random() < 0.15:
            h.skip(customer, dice.choice(["recently_asked", "opted_out"]))
            continue
        program = dice.choice(list(PROGRAMS))
        invitation = h.ask(
            customer, program, test=dice.random() < 0.1, touchpoint=dice.choice([None, None, "store"])
        )
        _deliver(h, dice, invitation, customer)
        if dice.random() < 0.2:
            h.click(invitation, dice.randint(0, 10))
        if dice.random() < 0.25:
            h.expire(invitation)
            continue
        _answer(h, dice, invitation, change, tasks)
        if dice.random() < 0.1:
            h.erase(customer)
        if dice.random() < 0.08:
            h.company(dice.choice(["UTC", "Asia/Tokyo", "America/Los_Angeles"]))
    return h.events


def _deliver(h: History, dice: random.Random, invitation: str, customer: str) -> None:
    for state in ("delivered", "bounced", "complained"):
        if dice.random() < (0.8 if state == "delivered" else 0.1):
            h.wait(minutes=dice.randint(0, 200))
            h.report(invitation, customer, state)


def _answer(h: History, dice: random.Random, invitation: str, change: str, tasks: list[str]) -> None:
    h.wait(hours=dice.randint(0, 30))
    state = dice.choice(["counted"] * 8 + ["quarantined", "excluded"])
    response = h.answer(invitation, dice.randint(0, 10), state=state)
    if dice.random() < 0.3:
        h.revise(response, dice.randint(0, 10))
    for excluded in (True, False):
        if dice.random() < 0.2:
            h.exclude(response, excluded)
    if dice.random() < 0.5:
        if tasks and dice.random() < 0.3:
            task = dice.choice(tasks)
            h.join(task, response)
        else:
            task = h.task(response)
            tasks.append(task)
        for reached in (False, True):
            if dice.random() < 0.5:
                h.wait(hours=dice.randint(0, 10))
                h.attempt(task, reached=reached)
        if dice.random() < 0.5:
            h.resolve(task)
        elif dice.random() < 0.3:
            h.task_event(task, "withdrawn", state="withdrawn", withdrawn_reason="revised")
    if dice.random() < 0.5:
        notice = h.notice(change, response, skipped="opted_out" if dice.random() < 0.2 else None)
        if h.events[-1].type == "notice.sent":
            if dice.random() < 0.2:
                h.report(notice, h.events[-1].key, dice.choice(["bounced", "delivered"]), kind="notice")
            if dice.random() < 0.6:
                h.helped(notice, dice.random() < 0.7)


def shuffled_between_topics(events: Iterable[Event], dice: random.Random) -> list[Event]:
    """The events in an order that keeps each topic's keys in theirs, and nothing else."""
    queues: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        queues.setdefault((event.topic, event.key), []).append(event)
    order = [place for place, queue in queues.items() for _ in queue]
    dice.shuffle(order)
    return [queues[place].pop(0) for place in order]


def log_in(app: Flask, role: str) -> FlaskClient:
    """A client of `app` with a session of a staff member in `role`, who is made for it."""
    here = app.extensions["hearback"]
    staff_id = here.ids.new()
    with here.db.transaction() as tx:
        tx.execute(
            "INSERT INTO staff (id, version, email, name, role) VALUES (%s, 1, %s, %s, %s)",
            (staff_id, f"{staff_id}@acme.example", f"The {role}", role),
        )
    value = serializer(here.settings, "session", here.clock).dumps([staff_id, 0, 0])
    client = app.test_client()
    client.set_cookie(COOKIE, value if isinstance(value, str) else value.decode())
    return client
