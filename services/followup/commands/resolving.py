"""Handing a task over, resolving it with theme and outcome, reopening it."""

from __future__ import annotations

from services.followup.commands import owners, staff_mail, tasks, themes
from services.followup.commands.locks import Subject, lock_subject
from services.followup.domain.by import By
from services.followup.domain.task import GONE, LONGEST_NOTE, OUTCOMES
from shared.db import Row, Tx, storable
from shared.errors import Conflict, Invalid, NotFound
from shared.ids import is_id


def assign(
    tx: Tx, by: By, task_id: str, *, to: str | None, why: str | None = None, version: int | None = None
) -> Row:
    """Hands a task to somebody else (None: to nobody), who hears of it by mail with the reason."""
    why = _text(why, "why")
    row = tasks.lock(tx, task_id, by, version)
    tasks.require_open(row)
    person = None
    if to is not None:
        person = (
            tx.one("SELECT id, name, role, disabled FROM staff WHERE id = %s", (to,)) if is_id(to) else None
        )
        if person is None or person["disabled"] or person["role"] == "viewer":
            raise Invalid("The task was not handed over.", fields={"to": "This person cannot take tasks."})
    if row["owner_id"] == to:
        return row
    saved = tasks.save(tx, task_id, "assigned", owner_id=to, on_it_id=None, on_it_at=None)
    tasks.entry(
        tx,
        task_id,
        "assigned",
        by,
        text=why,
        customer_id=tasks.sole_customer(tx, task_id),
        to=person["name"] if person else None,
    )
    if to and to != by.staff_id:
        staff_mail.about(tx, "assigned", saved, by=by.name)
    return saved


def resolve(
    tx: Tx,
    by: By,
    task_id: str,
    *,
    outcome: str,
    theme_id: str | None = None,
    theme: str | None = None,
    note: str | None = None,
    version: int | None = None,
) -> Row:
    """Closes a task with its root cause and its outcome.

    The theme is one that exists (`theme_id`) or a name, which is added when it is new. Raises
    `Invalid` by field, `Conflict` when closed already, `ChangedMeanwhile`.
    """
    note = _text(note, "note")
    row = tasks.lock(tx, task_id, by, version)
    tasks.require_open(row)
    fields: dict[str, str] = {}
    if outcome not in OUTCOMES:
        fields["outcome"] = "Say how it ended."
    chosen = None
    try:
        chosen = _theme(tx, theme_id, theme)
    except Invalid as error:
        fields["theme"] = next(iter(error.fields.values()), error.message)
    if fields:
        raise Invalid("The task was not resolved.", fields=fields)
    saved = tasks.save(
        tx,
        task_id,
        "resolved",
        state="resolved",
        theme_id=chosen["id"] if chosen else None,
        outcome=outcome,
        outcome_note=note,
        resolved_at=tx.now,
        resolved_by=by.staff_id,
        owner_id=row["owner_id"] or by.staff_id,
        call_by=None,
        remind_at=None,
        on_it_id=None,
        on_it_at=None,
    )
    tasks.entry(
        tx,
        task_id,
        "resolved",
        by,
        text=note,
        customer_id=tasks.sole_customer(tx, task_id),
        outcome=outcome,
        theme=chosen["name"] if chosen else None,
    )
    return saved


def reopen(tx: Tx, by: By, task_id: str, *, why: str | None = None, version: int | None = None) -> Row:
    """Opens a closed task again with a new time to call by; what it promised at first stays as it was.

    Raises `Conflict` when its account has another open task by now.
    """
    why = _text(why, "why")
    seen = (
        tx.one("SELECT account_id, customer_id FROM task WHERE id = %s", (task_id,))
        if is_id(task_id)
        else None
    )
    if seen is None:
        raise NotFound(GONE)
    subject = Subject(seen["account_id"], seen["customer_id"])
    lock_subject(tx, subject)
    row = tasks.lock(tx, task_id, by, version)
    if row["state"] == "open":
        return row
    if row["withdrawn_reason"] == "erased":
        raise Conflict("The customer's data was erased, so there is nobody to call any more.")
    if tasks.open_of(tx, subject):
        raise Conflict(
            "There is another open task for this customer. Work on that one.", slug="other-open-task"
        )
    due = tasks.due(tx, tx.now)
    owner_id = row["owner_id"]
    if owner_id and not tx.value(
        "SELECT 1 FROM staff WHERE id = %s AND NOT disabled AND role <> 'viewer'", (owner_id,)
    ):
        found = owners.Owners(tx).of(owners.manager_of(tx, row["account_id"]))
        owner_id = found.id if found else None
    saved = tasks.save(
        tx,
        task_id,
        "reopened",
        state="open",
        reopened=True,
        owner_id=owner_id,
        theme_id=None,
        outcome=None,
        outcome_note=None,
        resolved_at=None,
        resolved_by=None,
        withdrawn_reason=None,
        call_by=due.due_at,
        remind_at=due.remind_at,
    )
    tasks.entry(
        tx,
        task_id,
        "reopened",
        by,
        text=why,
        customer_id=tasks.sole_customer(tx, task_id),
        was=row["state"],
        theme_id=row["theme_id"],
        outcome=row["outcome"],
    )
    if owner_id and owner_id != by.staff_id:
        staff_mail.about(tx, "assigned", saved, by=by.name)
    return saved


def _theme(tx: Tx, theme_id: str | None, name: str | None) -> Row | None:
    if theme_id:
        row = tx.one("SELECT id, name FROM theme WHERE id = %s", (theme_id,)) if is_id(theme_id) else None
        if row is None:
            raise Invalid("There is no such theme.", fields={"theme": "There is no such theme."})
        return row
    name = " ".join((name or "").split())
    if not name:
        raise Invalid(
            "A theme is missing.", fields={"theme": "Say what caused it: choose a theme or name a new one."}
        )
    row = tx.one("SELECT id, name, retired_at FROM theme WHERE name_key = %s", (name.casefold(),))
    if row is None or row["retired_at"]:
        return themes.add(tx, name)
    return row


def _text(text: str | None, field: str) -> str | None:
    text = storable(text or "").strip()
    if len(text) > LONGEST_NOTE:
        raise Invalid("This is too long.", fields={field: f"Use at most {LONGEST_NOTE:,} characters."})
    return text or None
