"""Who owns a task: its account's manager, a deputy, the fallback owner or nobody; now and later on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.followup.commands import staff_mail, tasks
from services.followup.domain.roles import Person, owner
from services.followup.queries import company
from shared.db import Row, Tx

_PERSON = "id, email, role, disabled, absent_from, absent_until, deputy_id"


class Owners:
    """Finds owners within one transaction, reading each person once."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        known = company.settings(tx)
        self._fallback: str | None = known.get("fallback_owner")
        self._today = tasks.hours(known).today(tx.now)
        self._seen: dict[tuple[str, str], Person | None] = {}

    def of(self, manager_email: str | None) -> Person | None:
        """Who gets a task of an account with this manager (None: an account without one, or no account)."""
        return owner(
            manager_email,
            self._fallback,
            lambda email: self._read("email", email.casefold()),
            lambda id_: self._read("id", id_),
            self._today,
        )

    def _read(self, column: str, value: str) -> Person | None:
        key = (column, value)
        if key not in self._seen:
            row = self._tx.one(f"SELECT {_PERSON} FROM staff WHERE {column} = %s", (value,))  # noqa: S608
            self._seen[key] = Person(**row) if row else None
        return self._seen[key]


def manager_of(tx: Tx, account_id: str | None) -> str | None:
    """The e-mail of an account's manager, as far as we know."""
    if account_id is None:
        return None
    email: str | None = tx.value("SELECT manager_email FROM account WHERE id = %s", (account_id,))
    return email


def managers_of(tx: Tx, accounts: Sequence[str]) -> dict[str, str | None]:
    """The managers' e-mails of many accounts, as far as we know them."""
    rows = tx.all(
        "SELECT id, manager_email FROM account WHERE id = ANY(%s::uuid[])", (sorted(set(accounts)),)
    )
    return {row["id"]: row["manager_email"] for row in rows}


def leave(tx: Tx, staff_id: str, why: str) -> None:
    """Gives the open tasks of somebody who can own none any more to whoever is next in line."""
    name = tx.value("SELECT name FROM staff WHERE id = %s", (staff_id,))
    owners = Owners(tx)
    for row in _open(tx, "t.owner_id = %(staff)s", {"staff": staff_id}):
        _give(tx, row, owners.of(row["manager_email"]), f"{name} {why}.")


def find_owners(tx: Tx) -> None:
    """Finds owners for unowned tasks: after somebody got a login, or the fallback owner changed."""
    owners = Owners(tx)
    for row in _open(tx, "t.owner_id IS NULL", {}):
        found = owners.of(row["manager_email"])
        if found is not None:
            _give(tx, row, found, None)


def managers_changed(tx: Tx, before: Mapping[str, str | None]) -> None:
    """These accounts (with their manager before) have another manager now: a task that was the old one's,
    and that nobody began, follows."""
    waiting = _open(
        tx,
        "t.account_id = ANY(%(accounts)s::uuid[]) AND t.first_contact_at IS NULL",
        {"accounts": list(before)},
    )
    if not waiting:
        return
    owners = Owners(tx)
    for row in waiting:
        was, found = owners.of(before[row["account_id"]]), owners.of(row["manager_email"])
        if found is not None and row["owner_id"] == (was.id if was else None):
            _give(tx, row, found, "The account has another manager.")


def hand_to_deputies(tx: Tx) -> bool:
    """Hands tasks that wait for a call from people who are away to who stands in; returns whether any did."""
    today = tasks.hours(company.settings(tx)).today(tx.now)
    moved = False
    for row in _open(
        tx,
        """t.call_by IS NOT NULL AND o.absent_from <= %(today)s
           AND (o.absent_until IS NULL OR o.absent_until >= %(today)s)
           AND d.id IS NOT NULL AND NOT d.disabled AND d.role <> 'viewer'
           AND NOT coalesce(d.absent_from <= %(today)s
                            AND (d.absent_until IS NULL OR d.absent_until >= %(today)s), false)""",
        {"today": today},
    ):
        deputy = Person(row["deputy_id"], row["deputy_email"], row["deputy_role"], False)
        _give(tx, row, deputy, f"{row['owner_name']} is away.")
        moved = True
    return moved


def owner_changed(tx: Tx, staff_id: str) -> None:
    """Publishes the open tasks of somebody whose name or e-mail changed: the events carry both."""
    for row in _open(tx, "t.owner_id = %(staff)s", {"staff": staff_id}):
        tasks.save(tx, row["id"], "assigned")


def _open(tx: Tx, where: str, args: dict[str, Any]) -> list[Row]:
    return tx.all(
        f"""SELECT t.id, t.version, t.owner_id, t.account_id, a.manager_email, o.name AS owner_name,
                   d.id AS deputy_id, d.email AS deputy_email, d.role AS deputy_role
            FROM task t LEFT JOIN account a ON a.id = t.account_id
            LEFT JOIN staff o ON o.id = t.owner_id LEFT JOIN staff d ON d.id = o.deputy_id
            WHERE t.state = 'open' AND {where} ORDER BY t.id FOR NO KEY UPDATE OF t""",  # noqa: S608
        args,
    )


def _give(tx: Tx, row: Row, to: Person | None, why: str | None) -> None:
    if (to.id if to else None) == row["owner_id"]:
        return
    saved = tasks.save(
        tx, row["id"], "assigned", owner_id=to.id if to else None, on_it_id=None, on_it_at=None
    )
    name = tx.value("SELECT name FROM staff WHERE id = %s", (to.id,)) if to else None
    tasks.entry(tx, row["id"], "assigned", tasks.HEARBACK, text=why, to=name)
    if to:
        staff_mail.about(tx, "assigned", saved)
