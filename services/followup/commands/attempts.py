"""Working on a task: who is calling now, attempts to reach the customer, notes."""

from __future__ import annotations

from datetime import timedelta

from services.followup.commands import tasks
from services.followup.domain.by import By
from services.followup.domain.task import CHANNELS, LONGEST_NOTE
from shared.db import Row, Tx, storable
from shared.errors import Conflict, Invalid

# Nobody is on the phone longer than this without writing it down.
ON_IT = timedelta(minutes=30)


def start(tx: Tx, by: By, task_id: str) -> Row:
    """Marks a task as being worked on now by `by`, so that nobody else calls the same customer.

    An unowned task becomes theirs. Raises `Conflict` while somebody else is on it.
    """
    row = tasks.lock(tx, task_id, by)
    tasks.require_open(row)
    other = on_it(tx, row)
    if other and other != by.staff_id:
        name = tx.value("SELECT name FROM staff WHERE id = %s", (other,))
        raise Conflict(f"{name} is on this right now.", slug="somebody-is-on-it")
    if row["owner_id"] is None and by.staff_id:
        row = tasks.save(tx, task_id, "assigned", owner_id=by.staff_id)
        tasks.entry(tx, task_id, "assigned", by, to=by.name)
    tx.execute("UPDATE task SET on_it_id = %s, on_it_at = %s WHERE id = %s", (by.staff_id, tx.now, task_id))
    return row


def on_it(tx: Tx, row: Row) -> str | None:
    """The id of who is working on a task now, or None."""
    if row["on_it_id"] and row["on_it_at"] and tx.now - row["on_it_at"] < ON_IT:
        return str(row["on_it_id"])
    return None


def record(
    tx: Tx,
    by: By,
    task_id: str,
    *,
    channel: str,
    reached: bool,
    note: str | None = None,
    version: int | None = None,
) -> Row:
    """Records one try to reach the customer; the first one is the first contact, reached or not.

    Not reached: a call is due again, one promise later. Reached: none is, until the customer says
    more. Raises `Invalid`, `NotFound`, `Conflict` when closed, `ChangedMeanwhile`.
    """
    note = _text(note)
    if channel not in CHANNELS:
        raise Invalid(
            "The attempt was not recorded.", fields={"channel": f"Choose one of {', '.join(CHANNELS)}."}
        )
    row = tasks.lock(tx, task_id, by, version)
    tasks.require_open(row)
    again = None if reached else tasks.due(tx, tx.now)
    takes_it = row["owner_id"] is None and by.staff_id is not None
    saved = tasks.save(
        tx,
        task_id,
        "attempted",
        owner_id=by.staff_id if takes_it else row["owner_id"],
        first_contact_at=row["first_contact_at"] or tx.now,
        contacted_at=row["contacted_at"] or (tx.now if reached else None),
        call_by=again.due_at if again else None,
        remind_at=again.remind_at if again else None,
        on_it_id=None,
        on_it_at=None,
    )
    tasks.entry(
        tx,
        task_id,
        "attempted",
        by,
        text=note,
        channel=channel,
        reached=reached,
        customer_id=tasks.sole_customer(tx, task_id),
    )
    return saved


def note(tx: Tx, by: By, task_id: str, *, text: str) -> Row:
    """Adds a note, to a closed task too: a note contradicts nothing."""
    text = _text(text) or ""
    if not text:
        raise Invalid("The note was not saved.", fields={"text": "Write something first."})
    row = tasks.lock(tx, task_id, by)
    tasks.entry(tx, task_id, "noted", by, text=text, customer_id=tasks.sole_customer(tx, task_id))
    return row


def _text(text: str | None) -> str | None:
    text = storable(text or "").strip()
    if len(text) > LONGEST_NOTE:
        raise Invalid(
            "The note is too long.",
            fields={"note": f"Use at most {LONGEST_NOTE:,} characters; these are {len(text):,}."},
        )
    return text or None
