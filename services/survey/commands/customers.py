"""Creates and changes customers, many rows at once: identity, accounts, opt-outs, versions, events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import psycopg2.errors

from services.survey import store
from services.survey.addresses import Fingerprints
from services.survey.commands.customer_batch import Batch, Outcome, Overtaken, apply, keys_of
from services.survey.domain import identity, values
from services.survey.domain.rows import OF_ACCOUNT, Row
from shared.db import Database, Tx
from shared.db import Row as Record
from shared.errors import Conflict, Invalid, NotFound, Unavailable

T = TypeVar("T")


def retrying(db: Database, command: Callable[[Tx], T], tries: int = 6) -> T:
    """Runs a command in its own transaction, again when another session overtook it.

    Raises `Unavailable` when that happens time after time.
    """
    for attempt in range(tries):
        try:
            with db.transaction() as tx:
                return command(tx)
        except (Overtaken, psycopg2.errors.UniqueViolation):
            continue
        except Unavailable:
            if attempt == tries - 1:
                raise
    raise Unavailable(
        "Others are changing the same customers. Nothing was changed; please try again.", retry_after=2
    )


def upsert(tx: Tx, rows: Sequence[Row], fingerprints: Fingerprints) -> list[Outcome]:
    """Applies rows in their order and returns what became of each, in the same order.

    Locks the accounts, then the customers, each in the order of their ids. A customer or account whose
    state is the same afterwards keeps its version and has no event. Raises `Overtaken` or
    `psycopg2.errors.UniqueViolation` when another session was first: see `retrying`.
    """
    batch = _load(tx, rows)
    known = store.opted_out(
        tx,
        [
            (channel, digest)
            for row in rows
            for channel, name in (("email", "email"), ("sms", "phone"))
            if row.values.get(name)
            for digest in fingerprints(channel, row.values[name])
        ],
    )
    outcomes = [apply(tx, batch, row, known, fingerprints) for row in rows]
    changed = _write(tx, batch)
    # What later rows of the batch put back has not changed.
    return [
        replace(outcome, effect="unchanged")
        if outcome.effect == "updated" and not changed & {outcome.customer_id, outcome.account_id}
        else outcome
        for outcome in outcomes
    ]


def save(
    db: Database,
    values_: Mapping[str, Any],
    properties: Mapping[str, str | None],
    fingerprints: Fingerprints,
    customer_id: str | None = None,
) -> Outcome:
    """Creates or changes one customer; with `customer_id` that very one.

    Raises `NotFound`, `Invalid` when nothing identifies them, `Conflict` when the data belong to another.
    """
    row = Row(dict(values_), dict(properties), customer_id=customer_id)
    outcome = retrying(db, lambda tx: upsert(tx, [row], fingerprints)[0])
    if outcome.effect == "failed":
        reason = outcome.reason or ""
        if outcome.column == "id":
            raise NotFound("There is no such customer.")
        kind = Conflict if outcome.conflict else Invalid
        raise kind(f"Nothing was saved: {reason}.", fields={outcome.column or "request": reason})
    return outcome


def _load(tx: Tx, rows: Sequence[Row]) -> Batch:
    keys: dict[str, set[str]] = {"external_id": set(), "email_key": set(), "phone": set(), "ids": set()}
    nameless: dict[str, set[str]] = {name: set() for name in keys}
    names: set[str] = set()
    for row in rows:
        found: dict[str, str | None] = {**keys_of(row), "ids": row.customer_id}
        account = row.values.get("account")
        if account:
            names.add(values.account_key(account))
        adds = not account and any(name in row.values for name in OF_ACCOUNT)
        for name, value in found.items():
            if value:
                keys[name].add(value)
                if adds:
                    nameless[name].add(value)
    ids: list[str] = []
    if any(nameless.values()):
        ids = store.accounts_of_matching(tx, {name: sorted(found) for name, found in nameless.items()})
    batch = Batch()
    for account in store.lock_accounts(tx, sorted(names), sorted(ids)):
        batch.accounts[account["id"]] = account
        batch.accounts_before[account["id"]] = dict(account)
        batch.by_name[account["name_key"]] = account["id"]
    for customer in store.lock_matching(tx, {name: sorted(found) for name, found in keys.items()}):
        batch.customers[customer["id"]] = customer
        batch.before[customer["id"]] = dict(customer)
        for key in identity.KEYS:
            if customer[key]:
                batch.by_key[key, customer[key]] = customer["id"]
    return batch


def _write(tx: Tx, batch: Batch) -> set[str | None]:
    """Writes what has changed and returns the ids of those customers and accounts."""
    new_accounts = [a for id_, a in batch.accounts.items() if id_ not in batch.accounts_before]
    changed_accounts = [
        a
        for id_, a in batch.accounts.items()
        if id_ in batch.accounts_before and a != batch.accounts_before[id_]
    ]
    for account in changed_accounts:
        account["version"] += 1
    if store.add_accounts(tx, new_accounts) < len(new_accounts):
        raise Overtaken
    store.update_accounts(tx, changed_accounts)
    new = [c for id_, c in batch.customers.items() if id_ not in batch.before]
    carriers = _carriers(tx, batch, changed_accounts)
    changed = [
        c
        for id_, c in batch.customers.items()
        if id_ in batch.before and (c != batch.before[id_] or id_ in carriers)
    ]
    for customer in changed:
        customer["version"] += 1
        customer["updated_at"] = tx.now
    released = [
        c["id"]
        for c in changed
        if any((key, batch.before[c["id"]][key]) in batch.released for key in ("email_key", "phone"))
        and len(changed) > 1
    ]
    store.update_customers(tx, changed, released)
    store.add_customers(
        tx, sorted(new, key=lambda c: (c["external_id"] or "", c["email_key"] or "", c["phone"] or ""))
    )
    store.add_opt_outs(tx, batch.opt_outs)
    store.announce(tx, [c["id"] for c in (*changed, *new)])
    return {row["id"] for row in (*new_accounts, *changed_accounts, *new, *changed)}


def _carriers(tx: Tx, batch: Batch, accounts: Sequence[Record]) -> set[str]:
    """For each changed account one customer of it, whose event brings it to the others."""
    found = set()
    for account in accounts:
        mine = [c["id"] for c in batch.customers.values() if c["account_id"] == account["id"]]
        # All that named it may have moved away in later rows.
        carrier = min(mine, default=None) or _someone_else(tx, batch, account["id"])
        if carrier:
            found.add(carrier)
    return found


def _someone_else(tx: Tx, batch: Batch, account_id: str) -> str | None:
    customer = store.lock_one_of(tx, account_id, list(batch.customers))
    if customer is None:
        return None
    batch.customers[customer["id"]] = customer
    batch.before[customer["id"]] = dict(customer)
    return str(customer["id"])
