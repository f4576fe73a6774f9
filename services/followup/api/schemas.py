"""What the tasks' API takes and gives."""

from __future__ import annotations

from typing import Any

from marshmallow import RAISE, Schema, fields
from marshmallow.validate import Length, OneOf

from services.followup.domain.task import CHANNELS, LONGEST_NOTE, OUTCOMES
from shared.db import Row
from shared.events.fields import plain
from shared.web import PageArgs


class TaskQuery(PageArgs):
    """Which tasks."""

    state = fields.String(load_default=None, validate=OneOf(["open", "resolved", "withdrawn"]))
    owner = fields.String(
        load_default=None, metadata={"description": "A staff id, `me`, or `none` for unowned ones."}
    )
    overdue = fields.Boolean(load_default=None)
    account_id = fields.UUID(load_default=None)
    customer_id = fields.UUID(load_default=None)


class Owner(Schema):
    """A staff member."""

    id = fields.String(required=True)
    name = fields.String(required=True)
    email = fields.String(required=True)


class Account(Schema):
    """An account as the task shows it; the annual value is a decimal as text."""

    id = fields.String(required=True)
    name = fields.String(required=True, allow_none=True)
    tier = fields.String(required=True, allow_none=True)
    annual_value = fields.String(required=True, allow_none=True)


class Answer(Schema):
    """An answer behind a task."""

    response_id = fields.String(required=True)
    customer_id = fields.String(required=True)
    customer_name = fields.String(required=True, allow_none=True)
    phone = fields.String(required=True, allow_none=True)
    email = fields.String(required=True, allow_none=True)
    score = fields.Integer(required=True)
    comment = fields.String(required=True, allow_none=True)
    callback = fields.String(required=True, allow_none=True)
    state = fields.String(required=True)
    touchpoint = fields.String(required=True)
    answered_at = fields.String(required=True)


class Entry(Schema):
    """One line of a task's history."""

    kind = fields.String(required=True)
    at = fields.String(required=True)
    by = fields.String(required=True, allow_none=True)
    channel = fields.String(required=True, allow_none=True)
    reached = fields.Boolean(required=True, allow_none=True)
    text = fields.String(required=True, allow_none=True)


class Task(Schema):
    """A callback task. `call_by` is when the next call is due; null when none is."""

    id = fields.String(required=True)
    version = fields.Integer(required=True)
    state = fields.String(required=True)
    overdue = fields.Boolean(required=True)
    account = fields.Nested(Account, required=True, allow_none=True)
    customer_id = fields.String(required=True)
    owner = fields.Nested(Owner, required=True, allow_none=True)
    score = fields.Integer(required=True, metadata={"description": "The lowest score behind it."})
    comment = fields.String(required=True, allow_none=True)
    dont_call = fields.Boolean(required=True)
    call_please = fields.Boolean(required=True)
    opened_at = fields.String(required=True)
    due_at = fields.String(required=True)
    call_by = fields.String(required=True, allow_none=True)
    first_contact_at = fields.String(required=True, allow_none=True)
    contacted_at = fields.String(required=True, allow_none=True)
    escalated_at = fields.String(required=True, allow_none=True)
    resolved_at = fields.String(required=True, allow_none=True)
    theme = fields.String(required=True, allow_none=True)
    outcome = fields.String(required=True, allow_none=True)
    withdrawn_reason = fields.String(required=True, allow_none=True)


class OneTask(Task):
    """A task with its answers and its history, newest first."""

    answers = fields.List(fields.Nested(Answer), required=True)
    history = fields.List(fields.Nested(Entry), required=True)


class TaskList(Schema):
    """A page of tasks; `next` is the cursor of the following one."""

    tasks = fields.List(fields.Nested(Task), required=True)
    next = fields.String(required=True, allow_none=True)


class _Write(Schema):
    class Meta:
        unknown = RAISE

    version = fields.Integer(
        load_default=None,
        strict=True,
        metadata={"description": "The task as you saw it; refused with 409 when it changed since."},
    )


def _words(description: str) -> fields.String:
    return fields.String(
        load_default=None,
        allow_none=True,
        validate=Length(max=LONGEST_NOTE),
        metadata={"description": description},
    )


class Attempt(_Write):
    """One try to reach the customer."""

    channel = fields.String(required=True, validate=OneOf(list(CHANNELS)))
    reached = fields.Boolean(required=True)
    note = _words("What was said.")


class Note(Schema):
    """A note."""

    class Meta:
        unknown = RAISE

    text = fields.String(required=True, validate=Length(1, LONGEST_NOTE))


class Assign(_Write):
    """To whom (a staff id, or null for nobody) and why."""

    to = fields.String(required=True, allow_none=True)
    why = _words("Told to the new owner.")


class Resolve(_Write):
    """How it ended, and what caused it: a theme by id, or by name (a new one is added)."""

    outcome = fields.String(required=True, validate=OneOf(list(OUTCOMES)))
    theme_id = fields.String(load_default=None, allow_none=True)
    theme = fields.String(load_default=None, allow_none=True)
    note = _words("Kept with the task.")


class Reopen(_Write):
    """Why it is not over."""

    why = _words("Kept with the task.")


def task_json(row: Row) -> dict[str, Any]:
    """A card as the API says it."""
    return {
        **{name: plain(row[name]) for name in _SAME},
        "overdue": row["stage"] == "overdue",
        "account": {
            "id": row["account_id"],
            "name": row["account_name"],
            "tier": row["tier"],
            "annual_value": plain(row["annual_value"]),
        }
        if row["account_id"]
        else None,
        "owner": {"id": row["owner_id"], "name": row["owner_name"], "email": row["owner_email"]}
        if row["owner_id"]
        else None,
        "score": row["lowest_score"],
    }


_SAME = (
    "id", "version", "state", "customer_id", "comment", "dont_call", "call_please", "opened_at", "due_at",
    "call_by", "first_contact_at", "contacted_at", "escalated_at", "resolved_at", "theme", "outcome",
    "withdrawn_reason",
)  # fmt: skip


def answer_json(row: Row) -> dict[str, Any]:
    """An answer as the API says it."""
    names = (
        "customer_id",
        "customer_name",
        "phone",
        "email",
        "score",
        "comment",
        "callback",
        "state",
        "touchpoint",
    )
    return {"response_id": row["id"], "answered_at": plain(row["answered_at"]), **{n: row[n] for n in names}}


def entry_json(row: Row) -> dict[str, Any]:
    """A line of history as the API says it."""
    return {
        "kind": row["kind"],
        "at": plain(row["at"]),
        "by": row["by_name"],
        "channel": row["channel"],
        "reached": row["reached"],
        "text": row["text"],
    }
