"""The task itself: opening, locking and saving it, its history, and the event with its full state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2.extras import Json

from services.followup.commands.locks import Subject
from services.followup.domain.by import By
from services.followup.domain.deadline import BusinessHours, Promise, promise
from services.followup.domain.task import GONE
from services.followup.queries import company
from shared.db import Row, Tx
from shared.errors import Conflict, NotFound
from shared.events import outbox
from shared.ids import is_id

HEARBACK = By(None, "Hearback")


class ChangedMeanwhile(Conflict):
    """Somebody else acted on the task since the page was opened; the edge shows what they did."""

    slug = "changed-meanwhile"


def insert(
    tx: Tx, subject: Subject, *, owner_id: str | None, lowest_score: int, due: Promise, **flags: bool
) -> Row:
    """A new open task; the caller holds the subject's lock and has seen that there is none."""
    row = tx.one(
        """INSERT INTO task (id, version, account_id, customer_id, state, owner_id, opened_at, due_at,
                             call_by, remind_at, dont_call, call_please, lowest_score, changed_at)
           VALUES (%s, 0, %s, %s, 'open', %s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING *""",
        (
            tx.ids.new(),
            subject.account_id,
            subject.customer_id,
            owner_id,
            tx.now,
            due.due_at,
            due.due_at,
            _reminder(tx, due),
            flags["dont_call"],
            flags["call_please"],
            lowest_score,
            tx.now,
        ),
    )
    assert row is not None  # noqa: S101 - for the type checker
    return row


@dataclass(frozen=True, slots=True)
class Opening:
    """A task to open: about whom, for which answer, whose it is and what it promises."""

    subject: Subject
    response_id: str
    owner_id: str | None
    lowest_score: int
    due: Promise
    dont_call: bool
    call_please: bool


def open_many(tx: Tx, openings: Sequence[Opening]) -> list[Row]:
    """Opens tasks with their first answers, their histories and their events, a statement for each table.

    The caller holds the subjects' locks and has seen that none of them, each here once, has an open one.
    """
    # Ids of one millisecond are in no order; tasks that are due at once are shown as their answers came.
    ids = dict(zip(sorted(tx.ids.new() for _ in openings), openings, strict=True))
    rows = tx.values(
        """INSERT INTO task (id, version, account_id, customer_id, state, owner_id, opened_at, due_at,
                             call_by, remind_at, dont_call, call_please, lowest_score, changed_at)
           VALUES %s RETURNING *""",
        [
            (
                id_,
                1,
                one.subject.account_id,
                one.subject.customer_id,
                "open",
                one.owner_id,
                tx.now,
                one.due.due_at,
                one.due.due_at,
                _reminder(tx, one.due),
                one.dont_call,
                one.call_please,
                one.lowest_score,
                tx.now,
            )
            for id_, one in ids.items()
        ],
        fetch=True,
    )
    tx.values(
        "INSERT INTO task_response (task_id, response_id, customer_id, joined_at) VALUES %s",
        [(id_, one.response_id, one.subject.customer_id, tx.now) for id_, one in ids.items()],
    )
    owners = {
        row["id"]: row
        for row in tx.all(
            "SELECT id, name, email FROM staff WHERE id = ANY(%s::uuid[])",
            (sorted({one.owner_id for one in openings if one.owner_id}),),
        )
    }
    nobody: Row = {"name": None, "email": None}
    events = []
    lines = []
    for row in sorted(rows, key=lambda row: str(row["id"])):
        response_id = ids[row["id"]].response_id
        who = owners.get(row["owner_id"], nobody)
        more = {
            "owner_name": who["name"], "owner_email": who["email"], "theme": None,
            "responses": [response_id], "customers": [row["customer_id"]],
        }  # fmt: skip
        events.append(
            outbox.New("task.opened", row["id"], 1, _state(row, more), occurred_at=row["changed_at"])
        )
        data = Json({"response_id": response_id, "to": who["name"]})
        lines.append((tx.ids.new(), row["id"], "opened", tx.now, HEARBACK.name, data))
    outbox.append_many(tx, events)
    tx.values("INSERT INTO task_entry (id, task_id, kind, at, by_name, data) VALUES %s", lines)
    return rows


def _reminder(tx: Tx, due: Promise) -> datetime | None:
    # Too late for a reminder: the first mail says all there is to say.
    return due.remind_at if due.remind_at > tx.now else None


def link(tx: Tx, task_id: str, response_id: str, customer_id: str) -> None:
    """Puts an answer behind a task; once is enough."""
    tx.execute(
        """INSERT INTO task_response (task_id, response_id, customer_id, joined_at) VALUES (%s, %s, %s, %s)
           ON CONFLICT DO NOTHING""",
        (task_id, response_id, customer_id, tx.now),
    )


def open_of(tx: Tx, subject: Subject) -> Row | None:
    """The subject's open task, locked; the caller holds the subject's lock, so none can appear."""
    if subject.account_id:
        where, key = "account_id = %s", subject.account_id
    else:
        where, key = "account_id IS NULL AND customer_id = %s", subject.customer_id
    # A task that is resolved while we wait for its lock is no longer found: PostgreSQL looks again.
    return tx.one(f"SELECT * FROM task WHERE state = 'open' AND {where} FOR NO KEY UPDATE", (key,))  # noqa: S608


def lock(tx: Tx, task_id: str, by: By, version: int | None = None) -> Row:
    """The task, locked for whoever acts on it.

    Raises `NotFound` when it is not there or none of `by`'s business, `ChangedMeanwhile` when it is
    not at `version` any more (None: whatever it is at).
    """
    row = tx.one("SELECT * FROM task WHERE id = %s FOR NO KEY UPDATE", (task_id,)) if is_id(task_id) else None
    if row is None or (by.limited and row["owner_id"] not in (None, by.staff_id)):
        raise NotFound(GONE)
    if version is not None and version != row["version"]:
        raise ChangedMeanwhile(
            "Somebody else acted on this task meanwhile. Nothing you wrote was lost: look at what changed, "
            "then decide."
        )
    return row


def require_open(row: Row) -> None:
    """Raises `Conflict` unless the task is open."""
    if row["state"] != "open":
        raise Conflict(f"This task is {row['state']} already. Reopen it first.", slug=f"task-{row['state']}")


def save(tx: Tx, task_id: str, event: str, **columns: Any) -> Row:
    """Writes columns, counts the version up and publishes the full state; the caller holds the lock."""
    sets = "".join(f", {name} = %({name})s" for name in columns)
    if columns.get("call_by"):
        # A clock that was ahead may have escalated the last call later than now; this one is not missed yet.
        sets += ", escalated_at = least(escalated_at, %(now)s)"
    row = tx.one(
        f"UPDATE task SET version = version + 1, changed_at = %(now)s {sets} WHERE id = %(id)s RETURNING *",  # noqa: S608
        {**columns, "id": task_id, "now": tx.now},
    )
    assert row is not None  # noqa: S101 - its row is locked
    publish(tx, row, event)
    return row


def entry(
    tx: Tx,
    task_id: str,
    kind: str,
    by: By,
    *,
    text: str | None = None,
    channel: str | None = None,
    reached: bool | None = None,
    customer_id: str | None = None,
    **data: Any,
) -> None:
    """Writes one line of a task's history."""
    tx.execute(
        """INSERT INTO task_entry (id, task_id, kind, at, by, by_name, channel, reached, text,
                                   customer_id, data)
           VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)""",
        (
            tx.ids.new(),
            task_id,
            kind,
            tx.now,
            by.staff_id,
            by.name,
            channel,
            reached,
            text,
            customer_id,
            Json(data),
        ),
    )


def sole_customer(tx: Tx, task_id: str) -> str | None:
    """The one customer behind a task; None when there are several: their words cannot be told apart."""
    rows = tx.all("SELECT DISTINCT customer_id FROM task_response WHERE task_id = %s LIMIT 2", (task_id,))
    return rows[0]["customer_id"] if len(rows) == 1 else None


def due(tx: Tx, start: datetime) -> Promise:
    """What the company's settings promise for something that happened at `start`."""
    known = company.settings(tx)
    return promise(hours(known), start, known.get("first_contact_hours", DEFAULT_CONTACT_HOURS))


def hours(known: dict[str, Any]) -> BusinessHours:
    """The company's business hours; weekdays from nine to five until it says otherwise."""
    return BusinessHours.of(known["time_zone"], known.get("business_hours", DEFAULT_HOURS))


DEFAULT_CONTACT_HOURS = 8
DEFAULT_HOURS = {day: ["09:00", "17:00"] for day in ("mon", "tue", "wed", "thu", "fri")}


def publish(tx: Tx, row: Row, event: str, *, replay: bool = False) -> None:
    """Appends `task.<event>` with the task's full state; the caller holds its row."""
    outbox.append(
        tx,
        f"task.{event}",
        row["id"],
        row["version"],
        event_of(tx, row),
        replay=replay,
        occurred_at=row["changed_at"],
    )


def last_event(row: Row) -> str:
    """Under which name a task's present state is published again; every name carries the full state."""
    if row["state"] != "open":
        return str(row["state"])
    return "reopened" if row["reopened"] else "opened"


def event_of(tx: Tx, row: Row) -> dict[str, Any]:
    """The data of every `task.…` event."""
    more = tx.one(
        """SELECT s.name AS owner_name, s.email AS owner_email, th.name AS theme,
                  array(SELECT response_id::text FROM task_response WHERE task_id = t.id ORDER BY 1)
                      AS responses,
                  array(SELECT DISTINCT customer_id::text FROM task_response WHERE task_id = t.id ORDER BY 1)
                      AS customers
           FROM task t LEFT JOIN staff s ON s.id = t.owner_id LEFT JOIN theme th ON th.id = t.theme_id
           WHERE t.id = %s""",
        (row["id"],),
    )
    assert more is not None  # noqa: S101 - its row is locked
    return _state(row, more)


def _state(row: Row, more: Row) -> dict[str, Any]:
    return {
        "task_id": row["id"],
        "state": row["state"],
        "account_id": row["account_id"],
        "customer_id": row["customer_id"],
        "customer_ids": more["customers"],
        "response_ids": more["responses"],
        "owner_id": row["owner_id"],
        "owner_name": more["owner_name"],
        "owner_email": more["owner_email"],
        "opened_at": row["opened_at"],
        "due_at": row["due_at"],
        "call_by": row["call_by"],
        "first_contact_at": row["first_contact_at"],
        "contacted_at": row["contacted_at"],
        "dont_call": row["dont_call"],
        "call_please": row["call_please"],
        "lowest_score": row["lowest_score"],
        "theme_id": row["theme_id"],
        "theme": more["theme"],
        "outcome": row["outcome"],
        "resolved_at": row["resolved_at"],
        "escalated_at": row["escalated_at"],
        "withdrawn_reason": row["withdrawn_reason"],
        "reopened": row["reopened"],
        "at": row["changed_at"],
    }
