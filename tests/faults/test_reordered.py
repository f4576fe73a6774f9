"""Faults 17 and 7: events come twice, late, in any order between topics: in this process, and on the logs."""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import Phase, given
from hypothesis import seed as random_seed
from hypothesis import settings as examples
from hypothesis import strategies as st

from services.followup import handlers as followup
from services.reporting import handlers as reporting
from services.reporting.queries.recount import recount
from services.survey import handlers as survey
from services.survey.commands import erase
from services.survey.edge import opt_out_fingerprints
from shared.clock import ManualClock
from shared.db import Database, Row, Tx
from shared.events import inbox
from shared.events.catalog import TOPICS
from shared.events.consumer import Apply, Consumer
from shared.events.envelope import Event
from shared.ids import SystemIds
from shared.log import Pass, Record
from shared.settings import SERVICES
from tests.faults.conftest import SEEDS
from tests.support import trial
from tests.support.checker import check, words_in
from tests.support.given import Given, entries
from tests.support.history import History, Traffic
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.reporting import START, make
from tests.support.reporting_play import (
    MANAGERS,
    empty,
    random_history,
    shuffled_between_topics,
    state,
    with_duplicates,
    words_of,
)

CUSTOMERS = 8
EXAMPLES = 8
AT_ONCE = 100

_FOLLOWUP = {
    "company": "SELECT * FROM company",
    "program": "SELECT * FROM program ORDER BY id",
    "account": "SELECT * FROM account WHERE version > 0 ORDER BY id",
    "customer": "SELECT * FROM customer WHERE version > 0 ORDER BY id",
    "response": "SELECT * FROM response ORDER BY id",
    "response_version": "SELECT * FROM response_version ORDER BY 1, 2",
    "unconfirmed": "SELECT * FROM unconfirmed ORDER BY invitation_id",
    "inbound_message": "SELECT * FROM inbound_message ORDER BY id",
    # Whether two answers were behind one task or two hangs on which came first, and so does what became of
    # a task that has lost its reason. Not so who is to be called, by whom, and how often they are asked.
    "to be called": """SELECT r.customer_id, r.id, r.score, t.account_id, t.owner_id, count(*) AS tasks
        FROM response r JOIN task_response x ON x.response_id = r.id
        JOIN task t ON t.id = x.task_id AND t.state = 'open'
        WHERE r.state = 'counted' AND r.band = 'detractor' GROUP BY 1, 2, 3, 4, 5 ORDER BY 2""",
    "open": """SELECT coalesce(account_id, customer_id) AS subject, count(*) FROM task
        WHERE state = 'open' GROUP BY 1 ORDER BY 1""",
    "erased": "SELECT customer_id FROM erased ORDER BY 1",
}
_SURVEY = {
    "task_replica": "SELECT * FROM task_replica ORDER BY id",
    "task_response": "SELECT * FROM task_response ORDER BY 1, 2",
    "change_replica": "SELECT * FROM change_replica ORDER BY id",
    "notice_replica": "SELECT * FROM notice_replica ORDER BY id",
    "staff": "SELECT * FROM staff ORDER BY id",
    "customer": "SELECT id FROM customer ORDER BY id",
    "erased": "SELECT customer_id FROM erased ORDER BY 1",
}


@dataclass
class Service:
    """A service's database, and what its consumer does."""

    db: Database
    group: str
    topics: Sequence[str]
    apply: Apply

    def play(self, events: Sequence[Event], batch: int, *, noted: bool = True) -> None:
        """Applies what its consumer would read; with an inbox that forgets at once unless `noted`."""

        handed: list[str] = []

        def apply(tx: Tx, events: Sequence[Event]) -> None:
            handed.extend(event.id for event in events)
            self.apply(tx, events)
            if not noted:
                inbox.clear(tx, self.group)

        given = Given(entries(event for event in events if event.topic in self.topics))
        consumer = Consumer(self.group, self.db, given, apply, batch=batch)
        while consumer.run_once():
            pass
        # Handlers that compare versions would hide it: what comes again must not get as far as them.
        again = [event for event, times in Counter(handed).items() if times > 1] if noted else []
        assert not again, f"{self.group} was handed {len(again)} events more than once"
        with self.db.transaction() as tx:
            parked = tx.all("SELECT topic, reason FROM parked")
        assert not parked, parked


@pytest.fixture(scope="module")
def services(postgres: TestPostgres) -> Iterator[dict[str, Service]]:
    urls = FreshDatabases(postgres)
    made = {}
    for name, module in (("survey", survey), ("followup", followup), ("reporting", reporting)):
        db = Database(urls[name], ManualClock(START), SystemIds(), name=name)
        made[name] = Service(db, module.GROUP, module.TOPICS, module.apply)
    with made["followup"].db.transaction() as tx:
        for email in MANAGERS:
            tx.execute(
                "INSERT INTO staff (id, version, email, name, role) VALUES (%s, 1, %s, %s, 'agent')",
                (tx.ids.new(), email, email),
            )
    yield made
    for service in made.values():
        service.db.close()
    urls.drop()


def _forget(service: Service, *kept: str) -> None:
    """Empties a service's tables."""
    with service.db.transaction() as tx:
        tables = tx.all(
            "SELECT format('%%I', relname) AS name FROM pg_class WHERE relkind IN ('r', 'p')"
            " AND relnamespace = 'public'::regnamespace AND NOT relispartition AND relname <> ALL(%s)",
            (["alembic_version", *kept],),
        )
        tx.execute("TRUNCATE " + ", ".join(row["name"] for row in tables))


def _followup(service: Service, events: Sequence[Event], batch: int, *, noted: bool) -> dict[str, list[Row]]:
    _forget(service, "staff", "theme")
    service.play(events, batch, noted=noted)
    with service.db.transaction() as tx:
        found = {name: tx.all(sql) for name, sql in _FOLLOWUP.items()}
    assert all(row["tasks"] == 1 for row in found["to be called"]), found["to be called"]
    assert all(row["count"] == 1 for row in found["open"]), found["open"]
    return found


def _reporting(service: Service, events: Sequence[Event], batch: int, *, noted: bool) -> dict[str, list[Row]]:
    with service.db.transaction() as tx:
        inbox.clear(tx, service.group)
    empty(service.db)
    service.play(events, batch, noted=noted)
    with service.db.transaction() as tx:
        counted = recount(tx)
        erased = tx.all("SELECT customer_id FROM erased ORDER BY 1")
        staff = tx.all("SELECT * FROM staff ORDER BY id")
    assert counted.equal, counted
    return {**state(service.db), "erased": erased, "staff": staff}


def _survey(
    service: Service, events: Sequence[Event], batch: int, erase_after: int, *, noted: bool
) -> dict[str, list[Row]]:
    """Survey erases by itself, in the midst of what it hears of tasks and notices."""
    _forget(service)
    erased = [event.key for event in events if event.data is None]
    with service.db.transaction() as tx:
        for customer in dict.fromkeys(event.key for event in events if event.topic == "customers"):
            tx.execute(
                "INSERT INTO customer (id, version, name, created_at, updated_at) VALUES (%s, 1, %s, %s, %s)",
                (customer, f"Customer of {customer}", tx.now, tx.now),
            )
    service.play(events[:erase_after], batch, noted=noted)
    with service.db.transaction() as tx:
        for customer in dict.fromkeys(erased):
            assert erase.erase(tx, customer, lambda channel, address: [b""])
    service.play(events[erase_after:], batch, noted=noted)
    with service.db.transaction() as tx:
        for table in ("notice_replica", "customer"):
            column = "id" if table == "customer" else "customer_id"
            assert not tx.all(f"SELECT 1 FROM {table} WHERE {column} = ANY(%s::uuid[])", (erased,)), table
        found = {name: tx.all(sql) for name, sql in _SURVEY.items()}
    for table, topic in (("task_replica", "tasks"), ("change_replica", "changes"), ("staff", "staff")):
        told = {event.key for event in events if event.topic == topic}
        assert {row["id"] for row in found[table]} == told, f"{table} is not what was told of"
    return found


def _with_staff(events: Sequence[Event], dice: random.Random) -> list[Event]:
    """The events, and amid them what becomes of two who may log in."""
    found = list(events)
    for email in MANAGERS:
        key = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        data = {"id": key, "email": email, "name": email, "role": "agent", "disabled": False, "epoch": 0}
        places = sorted(dice.randint(0, len(found)) for _ in range(3))
        for version, place in enumerate(places):
            changed = {"name": f"{email} {version}", "disabled": version == 2}
            told = make("staff.changed", key, version + 1, data | changed, START)
            found.insert(place + version, told)
    return found


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
@pytest.mark.parametrize("noted", [True, False], ids=["through_the_inbox", "when_the_inbox_has_forgotten"])
def test_fault_17_twice_late_and_in_any_order_between_topics_events_end_as_they_would_in_order(
    services: dict[str, Service], noted: bool, seed: int
) -> None:
    trials = 0

    @random_seed(seed)
    # A history from a smaller number is not a simpler one: nothing to shrink.
    @examples(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate])
    @given(history=st.integers(0, 2**32), order=st.integers(0, 2**32), batch=st.sampled_from([1, 3, 17, 500]))
    def played(history: int, order: int, batch: int) -> None:
        nonlocal trials
        trials += 1
        dice = random.Random(order)
        events = _with_staff(random_history(history, CUSTOMERS), dice)
        mixed = with_duplicates(shuffled_between_topics(events, dice), dice, len(events) // 3)
        gone = {event.key for event in events if event.data is None}
        for name, play in (("followup", _followup), ("reporting", _reporting)):
            expected = play(services[name], events, 7, noted=True)
            found = play(services[name], mixed, batch, noted=noted)
            for table, rows in expected.items():
                assert found[table] == rows, f"{table} of {name}"
        expected = _survey(services["survey"], events, 7, len(events), noted=True)
        found = _survey(services["survey"], mixed, batch, dice.randint(0, len(mixed) // 2), noted=noted)
        for table, rows in expected.items():
            assert found[table] == rows, f"{table} of survey"
        _nobody_reappears(services, events, gone)

    played()
    trial.checked(0, trials=trials)


def _nobody_reappears(services: dict[str, Service], events: Sequence[Event], gone: set[str]) -> None:
    """Nothing that is personal of somebody who was erased stands anywhere."""
    words = words_of(events)
    for name, service in services.items():
        there = words_in(service.db)
        for customer in gone:
            found = [word for word in words.get(customer, []) if word in there]
            assert not found, f"{name} has {found} of an erased customer"


@pytest.mark.parametrize("noted", [True, False], ids=["through_the_inbox", "when_the_inbox_has_forgotten"])
def test_fault_17_all_that_was_told_comes_again_in_any_order_beside_what_is_new(
    history: History, noted: bool
) -> None:
    installation = history.running
    history.answer_all()
    erased = history.people[-1]
    with installation.db("survey").transaction() as tx:
        assert erase.erase(tx, erased.id, opt_out_fingerprints(installation.settings))
    history.forget(erased)
    installation.settle()
    log = installation.log()
    told = [entry for topic in TOPICS for entry in log.tail(topic, 1_000_000)]
    assert any(erased.email.encode() in (entry.value or b"") for entry in told)
    history.random.shuffle(told)
    with Traffic(history, history.people[:5]):
        for begin in range(0, len(told), AT_ONCE):
            if not noted:
                for service in SERVICES:
                    with installation.db(service).transaction() as tx:
                        inbox.clear(tx, service)
            records = [
                Record(entry.topic, entry.key, entry.value, entry.headers)
                for entry in told[begin : begin + AT_ONCE]
            ]
            log.sink().send(records, Pass(f"once more {noted}", begin + 1))
    log.close()
    installation.settle()
    check(history)


def test_fault_07_what_waits_behind_a_parked_event_waits_once_though_its_consumer_died(
    history: History,
) -> None:
    """Whatever else it does compares versions, and would not show that it was done twice."""
    installation, person = history.running, history.people[0]
    followup = installation.db("followup")
    with followup.transaction() as tx:
        tx.execute(
            "INSERT INTO parked_key (consumer, topic, key, parked_at)"
            " VALUES ('followup', 'responses', %s, %s)",
            (person.id, tx.now),
        )
    history.cast.consumers["followup"].stop()
    history.answer(person, 2)
    installation.wait_crash(history.cast.consumer_again("followup", crash_at="consumer.after_commit"))
    history.cast.consumer_again("followup")
    installation.settle()
    with followup.transaction() as tx:
        waiting = tx.value("SELECT count(*) FROM parked WHERE key = %s", (person.id,))
    trial.checked(0, {"lost": waiting < 1, "doubled": max(0, waiting - 1)})
    assert waiting == 1, f"one answer waits {waiting} times"
    installation.command("log", "replay", "followup")
    installation.settle()
    check(history)
