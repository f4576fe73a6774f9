"""Creates and changes customers, many rows at once: identity, accounts, opt-outs, versions, events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import psycopg2.errors

from services.survey import store
from services.survey.addresses import Fingerprints
from services.survey.domain import identity, values
from services.survey.domain.identity import Clash, Incomplete
from services.survey.domain.rows import OF_ACCOUNT, Row
from shared.db import Database, Tx
from shared.db import Row as Record
from shared.errors import Conflict, Invalid, NotFound, Unavailable

Effect = Literal["created", "updated", "unchanged", "failed"]
T = TypeVar("T")

_PLAIN = ("external_id", "name", "language", "time_zone", "touchpoint")
# Of `customer.changed` (256 kB) the rest needs little; JSON may take several bytes a character.
_MAX_PROPERTIES = values.MAX_PROPERTIES_TOTAL


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row; `column` and `reason` when it failed."""

    row: Row
    effect: Effect
    customer_id: str | None = None
    column: str | None = None
    reason: str | None = None
    conflict: bool = False
    account_id: str | None = None


class Overtaken(Exception):
    """Another session was first with a key or an account: the same command will now see what it wrote."""


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


@dataclass
class _Batch:
    """The state of all customers and accounts that a batch touches, as its rows change it one by one."""

    customers: dict[str, Record] = field(default_factory=dict)
    accounts: dict[str, Record] = field(default_factory=dict)
    before: dict[str, Record] = field(default_factory=dict)
    accounts_before: dict[str, Record] = field(default_factory=dict)
    by_key: dict[tuple[str, str], str] = field(default_factory=dict)
    by_name: dict[str, str] = field(default_factory=dict)
    released: set[tuple[str, str]] = field(default_factory=set)
    opt_outs: list[tuple[str, bytes, Any, str]] = field(default_factory=list)


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
    outcomes = [_apply(tx, batch, row, known, fingerprints) for row in rows]
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


def _keys(row: Row) -> dict[str, str | None]:
    email = row.values.get("email")
    return {
        "external_id": row.values.get("external_id"),
        "email_key": values.email_key(email) if email else None,
        "phone": row.values.get("phone"),
    }


def _load(tx: Tx, rows: Sequence[Row]) -> _Batch:
    keys: dict[str, set[str]] = {"external_id": set(), "email_key": set(), "phone": set(), "ids": set()}
    nameless: dict[str, set[str]] = {name: set() for name in keys}
    names: set[str] = set()
    for row in rows:
        found: dict[str, str | None] = {**_keys(row), "ids": row.customer_id}
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
    batch = _Batch()
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


def _apply(
    tx: Tx, batch: _Batch, row: Row, known: Mapping[tuple[str, bytes], Any], fingerprints: Fingerprints
) -> Outcome:
    keys = _keys(row)
    candidates = {
        batch.by_key[key, value] for key, value in keys.items() if value and (key, value) in batch.by_key
    }
    try:
        customer: Record | None
        if row.customer_id is not None:
            customer = _forced(batch, row.customer_id, candidates, keys)
        else:
            customer = identity.match(keys, [batch.customers[found] for found in candidates])
        created = customer is None
        after = dict(customer) if customer else _new(tx)
        _set(after, row, keys)
        account = _account(tx, batch, after, row)
    except Clash as clash:
        return Outcome(row, "failed", None, clash.column, clash.reason, not isinstance(clash, Incomplete))
    _opt_outs(batch, customer, after, known, fingerprints)
    changed = created or after != customer
    _keep(batch, customer, after)
    if account is not None:
        changed = _keep_account(batch, account) or changed
    effect: Effect = "created" if created else "updated" if changed else "unchanged"
    return Outcome(row, effect, after["id"], account_id=account["id"] if account else None)


def _forced(batch: _Batch, customer_id: str, candidates: set[str], keys: Mapping[str, str | None]) -> Record:
    customer = batch.customers.get(customer_id)
    if customer is None:
        raise Clash("id", "there is no such customer")
    for other in candidates - {customer_id}:
        taken = next(key for key in identity.KEYS if keys[key] and keys[key] == batch.customers[other][key])
        raise Clash(identity.FIELD[taken], f"the {identity.LABELS[taken]} belongs to another customer")
    return customer


def _new(tx: Tx) -> Record:
    customer: Record = dict.fromkeys(name.strip() for name in store.CUSTOMER.split(","))
    customer.update(id=tx.ids.new(), version=1, properties={}, created_at=tx.now, updated_at=tx.now)
    return customer


def _set(after: Record, row: Row, keys: Mapping[str, str | None]) -> None:
    for name in _PLAIN:
        if name in row.values:
            after[name] = row.values[name]
    for name, key, channel in (("email", "email_key", "email"), ("phone", "phone", "sms")):
        if name in row.values:
            if after[key] != keys[key]:
                after[f"{channel}_bounced_at"] = None
            after[key] = keys[key]
            after[name] = row.values[name]
    if row.properties:
        merged = {**after["properties"], **row.properties}
        after["properties"] = {name: value for name, value in merged.items() if value is not None}
        if sum(len(name) + len(str(value)) for name, value in after["properties"].items()) > _MAX_PROPERTIES:
            raise Incomplete(
                "properties", f"together the properties are longer than {_MAX_PROPERTIES:,} characters"
            )
    if not any(after[key] for key in identity.KEYS):
        raise Incomplete(
            "email", "needs an external id, an e-mail or a phone number: nothing would identify the person"
        )


def _account(tx: Tx, batch: _Batch, after: Record, row: Row) -> Record | None:
    """The account that the row says something about, as it is afterwards; sets the customer's."""
    if "account" in row.values:
        name = row.values["account"]
        if name is None:
            after["account_id"] = None
        else:
            key = values.account_key(name)
            found = batch.by_name.get(key)
            account = dict(batch.accounts[found]) if found else _new_account(tx, name, key)
            after["account_id"] = account["id"]
            return _with_account_values(account, row)
    if not any(row.values.get(name) is not None for name in OF_ACCOUNT):
        return None
    if after["account_id"] is None:
        name = next(name for name in OF_ACCOUNT if row.values.get(name) is not None)
        raise Incomplete(name, "needs an account that it belongs to: name the account too")
    if after["account_id"] not in batch.accounts:
        raise Overtaken
    return _with_account_values(dict(batch.accounts[after["account_id"]]), row)


def _new_account(tx: Tx, name: str, key: str) -> Record:
    return {
        "id": tx.ids.new(),
        "version": 1,
        "name": values.one_line(name),
        "name_key": key,
        "manager_email": None,
        "tier": None,
        "annual_value": None,
    }


def _with_account_values(account: Record, row: Row) -> Record:
    account.update({name: row.values[name] for name in OF_ACCOUNT if name in row.values})
    return account


def _opt_outs(
    batch: _Batch,
    before: Record | None,
    after: Record,
    known: Mapping[tuple[str, bytes], Any],
    fingerprints: Fingerprints,
) -> None:
    """An opt-out belongs to the address, and to the person: it follows both."""
    for channel, name in (("email", "email"), ("sms", "phone")):
        address = after[name]
        if not address or (before is not None and before[name] == address):
            continue
        digests = fingerprints(channel, address)
        column = f"{channel}_opt_out_at"
        if after[column] is None:
            found = [known[channel, digest] for digest in digests if (channel, digest) in known]
            if found:
                after[column] = min(row["at"] for row in found)
        else:
            batch.opt_outs.append((channel, digests[-1], after[column], "staff"))


def _keep(batch: _Batch, before: Record | None, after: Record) -> None:
    for key in identity.KEYS:
        old = before[key] if before else None
        if old != after[key]:
            if old:
                del batch.by_key[key, old]
                batch.released.add((key, old))
            if after[key]:
                batch.by_key[key, after[key]] = after["id"]
    batch.customers[after["id"]] = after


def _keep_account(batch: _Batch, account: Record) -> bool:
    changed = batch.accounts.get(account["id"]) != account
    if changed:
        batch.accounts[account["id"]] = account
        batch.by_name[account["name_key"]] = account["id"]
    return changed


def _write(tx: Tx, batch: _Batch) -> set[str | None]:
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


def _carriers(tx: Tx, batch: _Batch, accounts: Sequence[Record]) -> set[str]:
    """For each changed account one customer of it, whose event brings it to the others."""
    found = set()
    for account in accounts:
        mine = [c["id"] for c in batch.customers.values() if c["account_id"] == account["id"]]
        # All that named it may have moved away in later rows.
        carrier = min(mine, default=None) or _someone_else(tx, batch, account["id"])
        if carrier:
            found.add(carrier)
    return found


def _someone_else(tx: Tx, batch: _Batch, account_id: str) -> str | None:
    customer = store.lock_one_of(tx, account_id, list(batch.customers))
    if customer is None:
        return None
    batch.customers[customer["id"]] = customer
    batch.before[customer["id"]] = dict(customer)
    return str(customer["id"])
