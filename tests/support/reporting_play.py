"""Generated histories, their events in other orders, and logged-in clients, for the tests of reporting."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from flask import Flask
from flask.testing import FlaskClient

from services.reporting import rebuild
from shared.db import Database, Row
from shared.events.envelope import Event
from shared.web.session import COOKIE
from shared.web.signing import serializer
from tests.support.reporting import PROGRAMS, History

MANAGERS = ("mina@acme.example", "max@acme.example")
_TABLES = {
    "company": "SELECT * FROM company",
    "program": "SELECT * FROM program ORDER BY id",
    "customer": "SELECT * FROM customer ORDER BY id",
    "invitation": "SELECT * FROM invitation WHERE version > 0 ORDER BY id",
    "skip": "SELECT * FROM skip ORDER BY id",
    "response": "SELECT * FROM response WHERE version > 0 ORDER BY id",
    "unconfirmed": "SELECT * FROM unconfirmed ORDER BY invitation_id",
    "delivery": "SELECT * FROM delivery ORDER BY id",
    "task": "SELECT * FROM task ORDER BY id",
    "task_response": "SELECT * FROM task_response ORDER BY 1, 2",
    "change": "SELECT * FROM change ORDER BY id",
    "notice": "SELECT * FROM notice WHERE version > 0 ORDER BY id",
    "nps_day": """SELECT * FROM nps_day
        WHERE promoters + passives + detractors + quarantined + excluded <> 0 ORDER BY 1, 2, 3""",
    "funnel_day": "SELECT * FROM funnel_day WHERE asked <> 0 ORDER BY 1, 2, 3",
}


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
        account = dice.choice([None, "Globex", "Initech"])
        managed_by = dice.choice(MANAGERS)
        customer = h.customer(f"Customer {number}.", h.account(account, managed_by) if account else None)
        if dice.random() < 0.2:
            h.change_customer(customer, name=f"Customer {number}. II")
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
        if dice.random() < 0.2:
            h.text(customer, f"texted by {customer}")
        if dice.random() < 0.3:
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
    response = h.answer(invitation, dice.randint(0, 10), state=state, comment=f"said about {invitation}")
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


def with_duplicates(events: Sequence[Event], dice: random.Random, count: int) -> list[Event]:
    """The events, and so many of them again, each somewhere behind its first time."""
    found = list(events)
    for event in dice.choices(events, k=count):
        found.insert(dice.randint(found.index(event) + 1, len(found)), event)
    return found


def words_of(events: Iterable[Event]) -> dict[str, list[str]]:
    """What nobody may find any more once a customer was erased: their name, their address, their words."""
    words: dict[str, list[str]] = {}
    for event in events:
        if event.data is None:
            continue
        personal = [event.data.get(name) for name in ("name", "email", "comment", "text")]
        if event.topic in ("customers", "responses", "deliveries"):
            words.setdefault(event.key, []).extend(text for text in personal if text)
    return words


def state(db: Database) -> dict[str, list[Row]]:
    """All facts and figures of reporting."""
    with db.transaction() as tx:
        return {name: tx.all(sql) for name, sql in _TABLES.items()}


def empty(db: Database) -> None:
    """Makes reporting forget everything, even whom it must not know."""
    with db.transaction() as tx:
        rebuild.clear(tx)
        tx.execute("TRUNCATE erased, staff, apikey")


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
