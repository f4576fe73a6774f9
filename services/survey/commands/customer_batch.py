"""The customers and accounts that a batch of rows touches, in memory, as the rows change them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.survey import store
from services.survey.addresses import Fingerprints
from services.survey.domain import identity, values
from services.survey.domain.identity import Clash, Incomplete
from services.survey.domain.rows import OF_ACCOUNT, Row
from shared.db import Row as Record
from shared.db import Tx

Effect = Literal["created", "updated", "unchanged", "failed"]

_PLAIN = ("external_id", "name", "language", "time_zone", "touchpoint")


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


@dataclass
class Batch:
    """The state of all customers and accounts that a batch touches, as its rows change it one by one."""

    customers: dict[str, Record] = field(default_factory=dict)
    accounts: dict[str, Record] = field(default_factory=dict)
    before: dict[str, Record] = field(default_factory=dict)
    accounts_before: dict[str, Record] = field(default_factory=dict)
    by_key: dict[tuple[str, str], str] = field(default_factory=dict)
    by_name: dict[str, str] = field(default_factory=dict)
    released: set[tuple[str, str]] = field(default_factory=set)
    opt_outs: list[tuple[str, bytes, Any, str]] = field(default_factory=list)


def keys_of(row: Row) -> dict[str, str | None]:
    """What a row can be recognised by, under the columns of `customer`."""
    email = row.values.get("email")
    return {
        "external_id": row.values.get("external_id"),
        "email_key": values.email_key(email) if email else None,
        "phone": row.values.get("phone"),
    }


def apply(
    tx: Tx, batch: Batch, row: Row, known: Mapping[tuple[str, bytes], Any], fingerprints: Fingerprints
) -> Outcome:
    """Lets one row change the batch; returns what became of it. `known` are the opt-outs of its addresses.

    Raises `Overtaken` when it concerns an account that was not locked with the batch.
    """
    keys = keys_of(row)
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


def _forced(batch: Batch, customer_id: str, candidates: set[str], keys: Mapping[str, str | None]) -> Record:
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
        if (
            sum(len(name) + len(str(value)) for name, value in after["properties"].items())
            > values.MAX_PROPERTIES_TOTAL
        ):
            raise Incomplete(
                "properties",
                f"together the properties are longer than {values.MAX_PROPERTIES_TOTAL:,} characters",
            )
    if not any(after[key] for key in identity.KEYS):
        raise Incomplete(
            "email", "needs an external id, an e-mail or a phone number: nothing would identify the person"
        )


def _account(tx: Tx, batch: Batch, after: Record, row: Row) -> Record | None:
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
    batch: Batch,
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


def _keep(batch: Batch, before: Record | None, after: Record) -> None:
    for key in identity.KEYS:
        old = before[key] if before else None
        if old != after[key]:
            if old:
                del batch.by_key[key, old]
                batch.released.add((key, old))
            if after[key]:
                batch.by_key[key, after[key]] = after["id"]
    batch.customers[after["id"]] = after


def _keep_account(batch: Batch, account: Record) -> bool:
    changed = batch.accounts.get(account["id"]) != account
    if changed:
        batch.accounts[account["id"]] = account
        batch.by_name[account["name_key"]] = account["id"]
    return changed
