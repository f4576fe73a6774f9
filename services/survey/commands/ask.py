"""Asks customers: an ask runs in batches, each one transaction of invitations, deliveries and skips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from psycopg2.extras import Json

from services.survey import facts
from services.survey.addresses import Fingerprints
from services.survey.commands import customers
from services.survey.commands.permits import SPENT, contacts
from services.survey.domain import budget
from services.survey.domain.rows import Row as CustomerRow
from services.survey.domain.values import email_key
from services.survey.queries.audience import AUDIENCE, TEST_PROPERTY, audience_sql, check_audience
from services.survey.queries.company import company
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound

BATCH = 500
# Queued messages count as well: two asks at once must not both ask.
_PLANNED = (*SPENT, "queued")


@dataclass(frozen=True, slots=True)
class Decision:
    """For one customer: the channel to ask on, or the reason not to."""

    customer_id: str
    touchpoint: str
    channel: str | None
    reason: str | None


def start(
    tx: Tx,
    program_id: str,
    audience: Mapping[str, Any],
    by: str,
    *,
    touchpoint: str | None = None,
    channel: str | None = None,
) -> Row:
    """Begins an ask and returns its run; `step` does the work. `audience` as `queries.audience` says.

    Raises `NotFound`, `Conflict` when the program is paused, `Invalid` for an audience nobody can mean.
    """
    program = tx.one("SELECT * FROM program WHERE id = %s", (program_id,))
    if program is None:
        raise NotFound("There is no such program.")
    if program["state"] != "active":
        raise Conflict("This program is paused. Start it first, then ask.", slug="program-paused")
    if channel is not None and channel not in budget.CHANNELS:
        raise Invalid("There is no such channel.", fields={"channel": "email or sms"})
    audience = check_audience(audience)
    where, args = audience_sql(audience)
    total = tx.value(f"SELECT count(*) FROM customer c {AUDIENCE} WHERE {where}", args)  # noqa: S608
    row = tx.one(
        "INSERT INTO ask_run (id, program_id, by, requested_at, audience, touchpoint, channel, state, total)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, 'running', %s) RETURNING *",
        (tx.ids.new(), program_id, by, tx.now, Json(audience), touchpoint or None, channel, total),
    )
    assert row is not None  # noqa: S101 - for the type checker; RETURNING gives the row
    return row


def stop(tx: Tx, run_id: str) -> None:
    """Ends a running ask after the batch it is at; who was asked stays asked. Raises `NotFound`."""
    row = tx.one("SELECT state FROM ask_run WHERE id = %s FOR NO KEY UPDATE", (run_id,))
    if row is None:
        raise NotFound("There is no such ask.")
    if row["state"] == "running":
        tx.execute("UPDATE ask_run SET state = 'stopped', ended_at = %s WHERE id = %s", (tx.now, run_id))


def step_any(tx: Tx) -> bool:
    """Does the next batch of the oldest ask nobody else is at; returns whether there was one."""
    row = tx.one(
        "SELECT id FROM ask_run WHERE state = 'running' ORDER BY requested_at LIMIT 1 FOR UPDATE SKIP LOCKED"
    )
    if row is None:
        return False
    step(tx, str(row["id"]))
    return True


def step(tx: Tx, run_id: str, size: int = BATCH) -> Row:
    """Does the next batch of one ask, in order of customers' ids, and returns the run as it then is."""
    run = tx.one("SELECT * FROM ask_run WHERE id = %s FOR UPDATE", (run_id,))
    if run is None:
        raise NotFound("There is no such ask.")
    if run["state"] != "running":
        return run
    program = tx.one("SELECT * FROM program WHERE id = %s", (run["program_id"],))
    assert program is not None  # noqa: S101 - a foreign key holds it
    if program["state"] != "active":  # paused meanwhile: nobody new is asked
        stop(tx, run_id)
        return {**run, "state": "stopped", "ended_at": tx.now}
    batch = next_customers(tx, run["audience"], run["cursor"], run["requested_at"], size)
    decisions = decide(tx, program, batch, run["touchpoint"], run["channel"], lock=True)
    asked = [d for d in decisions if d.channel]
    skipped = [d for d in decisions if d.reason]
    _invite(tx, program, run_id, asked)
    _skip(tx, program, run_id, skipped)
    done = len(batch) < size
    saved = tx.one(
        "UPDATE ask_run SET asked = asked + %s, skipped = skipped + %s, cursor = coalesce(%s, cursor),"
        " state = CASE WHEN %s THEN 'done' ELSE state END, ended_at = CASE WHEN %s THEN %s ELSE ended_at END,"
        " total = CASE WHEN %s THEN asked + skipped + %s ELSE total END"
        " WHERE id = %s RETURNING *",
        (
            len(asked), len(skipped), batch[-1]["id"] if batch else None,
            done, done, tx.now, done, len(asked) + len(skipped), run_id,
        ),
    )  # fmt: skip
    assert saved is not None  # noqa: S101 - locked above
    return saved


def next_customers(
    tx: Tx, audience: Mapping[str, Any], after: str | None, until: Any, size: int
) -> list[Row]:
    """The next customers of an audience that existed when it was asked for, in order of their ids."""
    where, args = audience_sql(audience)
    return tx.all(
        f"SELECT c.id, c.touchpoint FROM customer c {AUDIENCE} WHERE {where}"  # noqa: S608
        " AND (%(after)s::uuid IS NULL OR c.id > %(after)s::uuid) AND c.created_at <= %(until)s"
        " ORDER BY c.id LIMIT %(size)s",
        args | {"after": after, "until": until, "size": size},
    )


def decide(
    tx: Tx, program: Row, customers: Sequence[Row], touchpoint: str | None, channel: str | None, *, lock: bool
) -> list[Decision]:
    """Whom of `customers` (id, touchpoint) to ask and where, or why not; `lock` before acting on it."""
    ids = [str(row["id"]) for row in customers]
    present = {str(row["id"]) for row in facts.lock_customers(tx, ids)} if lock else set(ids)
    here = company(tx)
    known = contacts(tx, ids, states=_PLANNED, gap_days=here["ask_gap_days"])
    decisions = []
    for row in customers:
        id_ = str(row["id"])
        if id_ not in present or id_ not in known:
            continue
        contact = known[id_][0]
        chosen, reason = budget.choose_channel(contact, [channel] if channel else program["channels"])
        if chosen:
            reason = budget.may_ask(contact, tx.now, here["ask_gap_days"], here["contact_limit"])
        where = touchpoint or row["touchpoint"] or program["touchpoint"]
        decisions.append(Decision(id_, where, None if reason else chosen, reason))
    return decisions


def _invite(
    tx: Tx, program: Row, run_id: str | None, decisions: Sequence[Decision], *, test: bool = False
) -> list[str]:
    """Invitations with their queued deliveries; returns the invitations' ids."""
    expires = tx.now + timedelta(days=program["answer_days"])
    ids = [(tx.ids.new(), tx.ids.new()) for _ in decisions]
    rows = list(zip(ids, decisions, strict=True))
    tx.values(
        "INSERT INTO invitation (id, version, program_id, customer_id, ask_run_id, channel,"
        " touchpoint, test, state,"
        " created_at, expires_at) VALUES %s",
        [
            (
                invitation,
                1,
                program["id"],
                d.customer_id,
                run_id,
                d.channel,
                d.touchpoint,
                test,
                "queued",
                tx.now,
                expires,
            )
            for (invitation, _), d in rows
        ],
    )
    data = Json({"test": True} if test else {})
    tx.values(
        "INSERT INTO delivery (id, kind, ref_id, customer_id, channel, state, created_at, not_before,"
        " data) VALUES %s",
        [
            (delivery, "invitation", invitation, d.customer_id, d.channel, "queued", tx.now, tx.now, data)
            for (invitation, delivery), d in rows
        ],
    )
    return [invitation for invitation, _ in ids]


def _skip(tx: Tx, program: Row, run_id: str, decisions: Sequence[Decision]) -> None:
    rows = [
        (tx.ids.new(), program["id"], d.customer_id, run_id, d.touchpoint, d.reason, tx.now)
        for d in decisions
    ]
    tx.values(
        "INSERT INTO skip (id, program_id, customer_id, ask_run_id, touchpoint, reason, at) VALUES %s", rows
    )
    if rows:
        skips = tx.all(
            facts.SKIPS + " WHERE s.id = ANY(%s::uuid[]) ORDER BY s.customer_id", ([row[0] for row in rows],)
        )
        facts.publish(tx, [facts.skipped(row) for row in skips])


def send_test(
    tx: Tx, program_id: str, name: str, email: str | None, phone: str | None, fingerprints: Fingerprints
) -> str:
    """Sends a program's message to oneself, by mail or (with only a phone) SMS; returns the invitation.

    It spends no budget, knows no gap, and its answer is excluded as a test. Raises `NotFound`, and
    `Invalid` when the address cannot be used.
    """
    program = tx.one("SELECT * FROM program WHERE id = %s", (program_id,))
    if program is None:
        raise NotFound("There is no such program.")
    channel, column, address = ("email", "email", email) if email else ("sms", "phone", phone)
    if not address:
        raise Invalid("Where should the test go?", fields={"email": "Give an e-mail address."})
    customer_id = _recipient(tx, name, column, address, fingerprints)
    contact = contacts(tx, [customer_id])[customer_id][0]
    reason = budget.channel_refusal(contact, channel)
    if reason:
        said = (
            "this address has opted out"
            if reason == "opted_out"
            else "this address could not be reached before"
        )
        raise Invalid(f"The test message was not sent: {said}.", fields={column: said})
    decision = Decision(customer_id, program["touchpoint"], channel, None)
    return _invite(tx, program, None, [decision], test=True)[0]


def _recipient(tx: Tx, name: str, column: str, address: str, fingerprints: Fingerprints) -> str:
    """The customer with this address; made when there is none, and then left out when "all" are asked."""
    key, value = ("email_key", email_key(address)) if column == "email" else ("phone", address)
    found = tx.value(f"SELECT id FROM customer WHERE {key} = %s", (value,))  # noqa: S608 - one of two names
    if found is None:
        row = CustomerRow({column: address, "name": name or None}, {TEST_PROPERTY: "yes"})
        found = customers.upsert(tx, [row], fingerprints)[0].customer_id
    facts.lock_customers(tx, [str(found)])
    return str(found)
