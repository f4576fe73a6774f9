"""Compares what was acknowledged with what is there: in three services, on the log, at the provider."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from services.reporting.queries.recount import recount
from shared.db import Database
from shared.events.catalog import TOPICS, TYPES
from shared.events.envelope import Event
from shared.settings import SERVICES
from tests.support import trial
from tests.support.given import from_zero
from tests.support.history import Answers
from tests.support.running import Running

Wrong = tuple[Literal["lost", "doubled", "disordered", "differs"], str]
"""What kind of thing went wrong, and what exactly."""


def check(history: Answers, *, parked: int = 0, waiting: frozenset[str] = frozenset()) -> None:
    """Raises `AssertionError` with everything that is wrong. `parked` keys are expected to wait.

    Of the customers in `waiting` (whose events are parked) nothing is asked beyond survey.
    """
    running = history.running
    assert history.acks, "nothing was acknowledged, so nothing can be checked"
    wrong = [
        *_survey(history),
        *_replicas(history, "reporting", waiting),
        *_replicas(history, "followup", waiting),
        *_tasks(history, waiting),
        *_versions_in_order(running),
        *_handed_over_once(history),
        *_told(running, waiting),
        *_figures(running, waiting),
        *_parked(running, parked),
        *_gone(history),
    ]
    trial.checked(max(0, len(history.acks) - history.checked), Counter(kind for kind, _ in wrong))
    history.checked = len(history.acks)
    assert not wrong, "\n".join(f"{kind}: {text}" for kind, text in wrong)


def _survey(history: Answers) -> list[Wrong]:
    """Every acknowledged answer is kept as a version of one response, with the words that were sent."""
    with history.running.db("survey").transaction() as tx:
        rows = tx.all(
            """SELECT r.customer_id, v.version, v.score, coalesce(v.comment, '') AS comment
            FROM response_version v JOIN response r ON r.id = v.response_id"""
        )
    kept = {(row["customer_id"], row["version"]): (row["score"], row["comment"]) for row in rows}
    wrong: list[Wrong] = []
    for ack in history.acks:
        found = kept.get((ack.person.id, ack.version))
        if found != (ack.score, ack.comment):
            said = f"survey has {found} for {ack.person.email} version {ack.version}, not {ack.score}"
            wrong.append(("lost", said))
    versions = Counter(row["customer_id"] for row in rows)
    wrong += [
        ("doubled", f"survey has {versions[customer]} versions of {len(nonces)} forms of {customer}")
        for customer, nonces in history.nonces.items()
        if versions[customer] > len(nonces)
    ]
    return wrong


def _responses(running: Running, service: str) -> dict[str, dict[str, Any]]:
    with running.db(service).transaction() as tx:
        rows = tx.all("SELECT * FROM response WHERE version > 0")
    assert len({row["customer_id"] for row in rows}) == len(rows), (
        f"{service} has two answers of one invitation"
    )
    return {row["customer_id"]: row for row in rows}


def _replicas(history: Answers, service: str, waiting: frozenset[str]) -> list[Wrong]:
    """What a service has of each answer is what survey has."""
    truth, replica = _responses(history.running, "survey"), _responses(history.running, service)
    wrong: list[Wrong] = [
        ("differs", f"{service} knows an answer of {customer} that survey does not have")
        for customer in replica.keys() - truth.keys()
    ]
    for customer, ack in history.final().items():
        if customer in waiting:
            continue
        there = replica.get(customer)
        if there is None:
            wrong.append(("lost", f"{service} has no answer of {ack.person.email}"))
            continue
        for name in ("id", "version", "score", "comment", "state"):
            if there[name] != truth[customer][name]:
                said = (
                    f"{service}: {name} of {ack.person.email} is {there[name]}, not {truth[customer][name]}"
                )
                wrong.append(("lost", said))
    return wrong


def _tasks(history: Answers, waiting: frozenset[str]) -> list[Wrong]:
    """Each detractor is behind exactly one open task; an account has at most one."""
    with history.running.db("followup").transaction() as tx:
        rows = tx.all(
            """SELECT r.customer_id, t.id, t.account_id FROM task t JOIN task_response x ON x.task_id = t.id
            JOIN response r ON r.id = x.response_id WHERE t.state = 'open'"""
        )
    behind = Counter(row["customer_id"] for row in rows)
    wrong: list[Wrong] = []
    for customer, ack in history.final().items():
        if customer not in waiting and ack.score <= 6 and behind[customer] != 1:
            said = f"{ack.person.email} answered {ack.score} and is behind {behind[customer]} open tasks"
            wrong.append(("doubled" if behind[customer] else "lost", said))
    owners = Counter(
        row["account_id"] for row in {row["id"]: row for row in rows}.values() if row["account_id"]
    )
    wrong += [
        ("doubled", f"account {account} has {count} open tasks")
        for account, count in owners.items()
        if count > 1
    ]
    return wrong


def _versions_in_order(running: Running) -> list[Wrong]:
    """Leaving duplicates aside, whatever counts versions has them on the log in their order.

    What was told out of order and is put right by those who hear it is wrong all the same: others may read.
    """
    log = running.log()
    wrong: list[Wrong] = []
    last: dict[tuple[str, str], int] = {}
    seen: set[str] = set()
    try:
        for entry in from_zero(log, tuple(TOPICS)):
            event = Event.from_record(entry.topic, entry.key, entry.value, entry.headers)
            kind = TYPES.get(event.type)  # a newer version's are not ours to judge
            if kind is None or event.replay or event.id in seen:
                continue
            seen.add(event.id)
            whose = event.key if kind.aggregate is None or event.data is None else kind.aggregate(event.data)
            before = last.get((event.topic, whose), 0)
            if event.version <= before:
                said = f"version {event.version} of {whose} is in {event.topic} after {before}"
                wrong.append(("disordered", said))
            last[event.topic, whose] = event.version
    finally:
        log.close()
    return wrong


def _handed_over_once(history: Answers) -> list[Wrong]:
    """No delivery reached the provider twice, and each that is said to have been handed over did."""
    running = history.running
    arrived = Counter(message.delivery_id for message in history.messages())
    wrong: list[Wrong] = [
        ("doubled", f"delivery {delivery} was handed over {n} times")
        for delivery, n in arrived.items()
        if n > 1
    ]
    for service in ("survey", "followup"):
        with running.db(service).transaction() as tx:
            said = tx.all("SELECT id, kind, ref_id FROM delivery WHERE state IN ('handed', 'delivered')")
        wrong += [("lost", f"delivery {row['id']} never arrived") for row in said if row["id"] not in arrived]
        twice = Counter(
            (row["kind"], row["ref_id"]) for row in said if row["kind"] in ("invitation", "notice")
        )
        wrong += [
            ("doubled", f"{service} handed {kind} {ref} over {count} times")
            for (kind, ref), count in twice.items()
            if count > 1
        ]
    return wrong


# Who owns it, who hears of it, and what the one has that the other must have after all has arrived.
_TOLD = (
    ("survey", "followup", "SELECT id FROM customer", "SELECT id FROM customer WHERE version > 0"),
    ("survey", "reporting", "SELECT id FROM customer", "SELECT id FROM customer WHERE version > 0"),
    (
        "survey",
        "reporting",
        "SELECT id FROM invitation WHERE sent_at IS NOT NULL AND NOT test",
        "SELECT id FROM invitation WHERE asked",
    ),
    (
        "survey",
        "reporting",
        "SELECT id, state FROM delivery WHERE kind <> 'staff' AND state IN ('delivered', 'bounced')"
        " AND NOT data ? 'complained_at' AND customer_id IN (SELECT id FROM customer)",
        "SELECT id, state FROM delivery WHERE state IN ('delivered', 'bounced')",
    ),
    (
        "followup",
        "reporting",
        "SELECT id, version, state FROM task",
        "SELECT id, version, state FROM task WHERE version > 0",
    ),
    (
        "followup",
        "reporting",
        "SELECT id, version FROM notice WHERE sent_at IS NOT NULL"
        " AND customer_id NOT IN (SELECT customer_id FROM erased)",
        "SELECT id, version FROM notice WHERE sent_at IS NOT NULL",
    ),
    (
        "followup",
        "survey",
        "SELECT id FROM notice WHERE sent_at IS NOT NULL"
        " AND customer_id NOT IN (SELECT customer_id FROM erased)",
        "SELECT id FROM notice_replica",
    ),
    ("followup", "survey", "SELECT id, version FROM task", "SELECT id, version FROM task_replica"),
    (
        "followup",
        "survey",
        "SELECT id, version FROM change WHERE published_at IS NOT NULL",
        "SELECT id, version FROM change_replica",
    ),
    ("followup", "survey", "SELECT id, version FROM staff", "SELECT id, version FROM staff"),
)


def _told(running: Running, waiting: frozenset[str]) -> list[Wrong]:
    """What one service has decided or learnt, the others have heard."""
    wrong: list[Wrong] = []
    for owner, other, has, must_have in _TOLD if not waiting else ():
        found = []
        for service, sql in ((owner, has), (other, must_have)):
            with running.db(service).transaction() as tx:
                found.append({tuple(map(str, row.values())) for row in tx.all(sql)})
        truth, there = found
        wrong += [("lost", f"{other} has not heard of {what}: {has}") for what in sorted(truth - there)[:5]]
        wrong += [
            ("differs", f"{owner} does not have {what}: {must_have}") for what in sorted(there - truth)[:5]
        ]
    return wrong


def _figures(running: Running, waiting: frozenset[str]) -> list[Wrong]:
    """Reporting's figures are a recount of its facts, and those are survey's answers."""
    with running.db("reporting").transaction() as tx:
        found = recount(tx)
        bands = tx.all(
            "SELECT band, count(*) AS n FROM response WHERE version > 0 AND state = 'counted' GROUP BY band"
        )
    wrong: list[Wrong] = [] if found.equal else [("differs", f"reporting differs from its recount: {found}")]
    if waiting:
        return wrong
    with running.db("survey").transaction() as tx:
        raw = tx.all(
            """SELECT CASE WHEN score <= 6 THEN 'detractor' WHEN score <= 8 THEN 'passive' ELSE 'promoter' END
                AS band, count(*) AS n FROM response WHERE state = 'counted' GROUP BY 1"""
        )
    shown, truth = ({row["band"]: row["n"] for row in rows} for rows in (bands, raw))
    if shown != truth:
        wrong.append(("differs", f"reporting counts {shown}, the raw answers are {truth}"))
    return wrong


def _gone(history: Answers) -> list[Wrong]:
    """Who was erased stands nowhere in the services' databases any more."""
    wrong: list[Wrong] = []
    for service in SERVICES if history.gone else ():
        words = words_in(history.running.db(service))
        wrong += [("differs", f"{service} knows {one.email}") for one in history.gone if one.email in words]
    return wrong


def _parked(running: Running, expected: int) -> list[Wrong]:
    found = 0
    for service in ("survey", "followup", "reporting"):
        with running.db(service).transaction() as tx:
            found += tx.value("SELECT count(*) FROM parked_key")
    return [] if found == expected else [("differs", f"{found} keys are parked, not {expected}")]


def words_in(db: Database) -> str:
    """All that stands in its tables."""
    with db.transaction() as tx:
        tables = tx.all(
            "SELECT format('%I', relname) AS name FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'public'::regnamespace AND NOT relispartition"
        )
        return "\n".join(
            row["line"]
            for table in tables
            for row in tx.all(f"SELECT t::text AS line FROM {table['name']} t")
        )


def sent_twice(history: Answers) -> int:
    """How many events are on the log once more than they should; that is no harm, their effect is one."""
    log = history.running.log()
    events = [
        entry.headers["id"]
        for topic in TOPICS
        for entry in log.tail(topic, 1_000_000)
        if not entry.headers.get("replay")
    ]
    log.close()
    return len(events) - len(set(events))
