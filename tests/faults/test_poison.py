"""Fault 16: events that cannot be applied, an erasure, a replay, and a bug that hits everybody."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from services.survey.commands import erase
from services.survey.edge import opt_out_fingerprints
from shared.events import workers
from shared.events.consumer import PARK_LIMIT
from shared.roles import read_report
from tests.support.checker import check, words_in
from tests.support.history import History, Person
from tests.support.running import Running


@contextlib.contextmanager
def _broken(installation: Running, person: Person | None = None) -> Iterator[None]:
    """Followup cannot store answers (of one person, or at all), as if its handler had a bug."""
    when = f"WHEN (NEW.customer_id = '{person.id}')" if person else ""
    with installation.db("followup").transaction() as tx:
        tx.execute(
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'this one never works'; END $$"
        )
        tx.execute(
            "CREATE TRIGGER poison BEFORE INSERT OR UPDATE ON response"
            f" FOR EACH ROW {when} EXECUTE FUNCTION poison()"
        )
    yield
    with installation.db("followup").transaction() as tx:
        tx.execute("DROP FUNCTION poison CASCADE")


@contextlib.contextmanager
def _held(installation: Running, person: Person) -> Iterator[Callable[[], None]]:
    """Who stores an answer of this person in followup stands still until the call of what is given."""
    followup = installation.db("followup")
    with followup.transaction() as tx:
        tx.execute(
            "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_advisory_xact_lock(16); RETURN NEW; END $$"
        )
        tx.execute(
            "CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON response FOR EACH ROW"
            f" WHEN (NEW.customer_id = '{person.id}') EXECUTE FUNCTION hold()"
        )
    holder = followup.connect()
    try:
        holder.cursor().execute("SELECT pg_advisory_lock(16)")
        holder.commit()
        yield holder.close
    finally:
        holder.close()
    with followup.transaction() as tx:
        tx.execute("DROP FUNCTION hold CASCADE")


def _waiting_for_locks(installation: Running) -> int:
    """How many in followup stand still."""
    with installation.db("followup").transaction() as tx:
        return int(
            tx.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        )


def _parked(installation: Running, customer: str | None = None) -> int:
    with installation.db("followup").transaction() as tx:
        return int(
            tx.value(
                "SELECT count(*) FROM parked WHERE %(key)s::text IS NULL OR key = %(key)s", {"key": customer}
            )
        )


def test_fault_16_poison_parks_only_its_key_and_replay_applies_it_in_order(history: History) -> None:
    installation = history.running
    poisoned, *others = history.people
    with _broken(installation, poisoned):
        for score in (9, 2, 4):
            history.answer(poisoned, score)
        for person in others:
            history.answer(person)
        installation.settle()
        assert _parked(installation) == 3
        check(history, parked=1, waiting=frozenset({poisoned.id}))
        still = installation.command("log", "replay", "followup", check=False)
        assert still.returncode == 1 and "this one never works" in still.stderr
    # Beside a running consumer, while the customer goes on changing their mind.
    replaying = threading.Thread(target=installation.command, args=("log", "replay", "followup"))
    replaying.start()
    for score in (7, 1):
        history.answer(poisoned, score)
    replaying.join()
    installation.settle()
    installation.command("log", "replay", "followup")
    installation.settle()
    assert _parked(installation) == 0
    check(history)


def test_fault_16_what_comes_while_a_replay_applies_a_keys_last_event_waits_for_it(history: History) -> None:
    installation = history.running
    poisoned = history.people[0]
    with _broken(installation, poisoned):
        history.answer(poisoned, 9)
        installation.settle()
        assert _parked(installation) == 1
    with _held(installation, poisoned) as let_go:
        replaying = threading.Thread(target=installation.command, args=("log", "replay", "followup"))
        replaying.start()
        installation.wait(lambda: _waiting_for_locks(installation) == 1, None, "the replay to be at it")
        history.answer(poisoned, 2)
        installation.wait(
            lambda: _waiting_for_locks(installation) == 2 or _parked(installation) == 2,
            None,
            "the consumer to have the next",
        )
        let_go()
        replaying.join()
    installation.settle()
    installation.command("log", "replay", "followup")
    installation.settle()
    assert _parked(installation) == 0
    check(history)


def test_fault_16_an_erasure_passes_what_is_parked_for_its_customer(history: History) -> None:
    installation = history.running
    poisoned, *others = history.people[1:]
    with _broken(installation, poisoned):
        history.answer(poisoned, 1, "my name is Rumpelstiltskin")
        for person in others:
            history.answer(person)
        installation.settle()
        assert _parked(installation, poisoned.id) == 1
        with installation.db("survey").transaction() as tx:
            erase.erase(tx, poisoned.id, opt_out_fingerprints(installation.settings))
        history.forget(poisoned)
        installation.settle()
        assert _parked(installation, poisoned.id) == 0
    for service in ("survey", "followup", "reporting"):
        with installation.db(service).transaction() as tx:
            assert tx.one("SELECT 1 FROM erased WHERE customer_id = %s", (poisoned.id,)), service
        assert "Rumpelstiltskin" not in words_in(installation.db(service)), service
    check(history)


def test_fault_16_a_bug_that_hits_everybody_stops_the_consumer_with_an_alert(history: History) -> None:
    installation = history.running
    with _broken(installation):
        history.answer_all(revise=0)
        followup = installation.db("followup")
        installation.wait(lambda: workers.stopped(followup, "followup"), None, "the consumer to stop")
        assert _parked(installation) <= PARK_LIMIT

        def unready() -> bool:
            report = read_report(installation.settings.home, "followup-consumer")
            return report is not None and "parked" in report["roles"]["consumer"]["error"]

        installation.wait(unready, None, "the consumer to be unready")
        assert "has stopped" in installation.command("log", "lag").stderr
    installation.command("log", "resume", "followup")
    installation.settle()
    installation.command("log", "replay", "followup")
    installation.settle()
    check(history)
