"""SQL of customers and their accounts: locking in one order, writing many at once, and their event."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg2.extras import Json

from shared.db import Row, Tx
from shared.events import outbox

CUSTOMER = (
    "id, version, external_id, email, email_key, phone, name, account_id, language, time_zone, touchpoint,"
    " properties, email_opt_out_at, sms_opt_out_at, email_bounced_at, sms_bounced_at, created_at, updated_at"
)
ACCOUNT = "id, version, name, name_key, manager_email, tier, annual_value"

# A customer with the account block of events; `c` is the customer, `a` the account.
_STATE = ", ".join(f"c.{name.strip()}" for name in CUSTOMER.split(","))
ACCOUNT_BLOCK = (
    "CASE WHEN a.id IS NOT NULL THEN jsonb_build_object('id', a.id, 'version', a.version, 'name', a.name,"
    " 'tier', a.tier, 'annual_value', a.annual_value::text, 'manager_email', a.manager_email) END"
)


def lock_accounts(tx: Tx, name_keys: Sequence[str], ids: Sequence[str]) -> list[Row]:
    """The accounts with these names or ids, locked in the order of their ids."""
    if not name_keys and not ids:
        return []
    return tx.all(
        f"SELECT {ACCOUNT} FROM account WHERE id IN ("  # noqa: S608
        "  SELECT id FROM account WHERE name_key = ANY(%s) UNION SELECT unnest(%s::uuid[]))"
        " ORDER BY id FOR NO KEY UPDATE",
        (list(name_keys), list(ids)),
    )


_MATCHING = (
    "SELECT id FROM customer WHERE external_id = ANY(%(external_id)s)"
    " UNION SELECT id FROM customer WHERE email_key = ANY(%(email_key)s)"
    " UNION SELECT id FROM customer WHERE phone = ANY(%(phone)s)"
    " UNION SELECT unnest(%(ids)s::uuid[])"
)


def accounts_of_matching(tx: Tx, keys: Mapping[str, Sequence[str]]) -> list[str]:
    """The accounts that customers with any of these keys belong to now; nothing is locked."""
    rows = tx.all(
        f"SELECT DISTINCT account_id FROM customer WHERE id IN ({_MATCHING}) AND account_id IS NOT NULL",  # noqa: S608
        dict(keys),
    )
    return [row["account_id"] for row in rows]


def lock_matching(tx: Tx, keys: Mapping[str, Sequence[str]]) -> list[Row]:
    """The customers with any of these keys, locked in the order of their ids.

    `keys` has `external_id`, `email_key`, `phone` and `ids`.
    """
    return tx.all(
        f"SELECT {CUSTOMER} FROM customer WHERE id IN ({_MATCHING}) ORDER BY id FOR NO KEY UPDATE",  # noqa: S608
        dict(keys),
    )


def lock_customer(tx: Tx, customer_id: str) -> Row | None:
    """One customer, locked as their events need it."""
    return tx.one(f"SELECT {CUSTOMER} FROM customer WHERE id = %s FOR NO KEY UPDATE", (customer_id,))  # noqa: S608


def lock_one_of(tx: Tx, account_id: str, but: Sequence[str]) -> Row | None:
    """Any one customer of an account, none of `but`; locked."""
    return tx.one(
        f"SELECT {CUSTOMER} FROM customer WHERE account_id = %s AND id <> ALL(%s::uuid[])"  # noqa: S608
        " ORDER BY id LIMIT 1 FOR NO KEY UPDATE",
        (account_id, list(but)),
    )


def add_accounts(tx: Tx, accounts: Sequence[Row]) -> int:
    """Inserts accounts in the order of their names; returns how many: fewer when another was first."""
    rows = sorted(accounts, key=lambda account: str(account["name_key"]))
    added = tx.values(
        f"INSERT INTO account ({ACCOUNT}) VALUES %s ON CONFLICT (name_key) DO NOTHING RETURNING id",  # noqa: S608
        [tuple(row[name.strip()] for name in ACCOUNT.split(",")) for row in rows],
        fetch=True,
    )
    return len(added)


def update_accounts(tx: Tx, accounts: Sequence[Row]) -> None:
    """Writes what has changed of locked accounts, with the version they carry."""
    tx.values(
        "UPDATE account SET version = v.version, manager_email = v.manager_email, tier = v.tier,"
        " annual_value = v.annual_value"
        " FROM (VALUES %s) AS v (id, version, manager_email, tier, annual_value) WHERE account.id = v.id",
        [(a["id"], a["version"], a["manager_email"], a["tier"], a["annual_value"]) for a in accounts],
        template="(%s::uuid, %s::bigint, %s::text, %s::text, %s::numeric)",
    )


def _customer_values(customer: Row) -> tuple[Any, ...]:
    return tuple(
        Json(customer[name]) if name == "properties" else customer[name]
        for name in map(str.strip, CUSTOMER.split(","))
    )


_TEMPLATE = (
    "(%s::uuid, %s::bigint, %s::text, %s::text, %s::text, %s::text, %s::text, %s::uuid,"
    " %s::text, %s::text, %s::text, %s::jsonb, %s::timestamptz, %s::timestamptz, %s::timestamptz,"
    " %s::timestamptz, %s::timestamptz, %s::timestamptz)"
)
_SET = ", ".join(f"{name.strip()} = v.{name.strip()}" for name in CUSTOMER.split(",") if name.strip() != "id")


def add_customers(tx: Tx, customers: Sequence[Row]) -> None:
    """Inserts customers. Raises `psycopg2.errors.UniqueViolation` when another was first with a key."""
    tx.values(f"INSERT INTO customer ({CUSTOMER}) VALUES %s", map(_customer_values, customers), _TEMPLATE)  # noqa: S608


def update_customers(tx: Tx, customers: Sequence[Row], released: Sequence[str] = ()) -> None:
    """Writes the state of locked customers, with the version they carry.

    `released` names those that give up an address which another one of them takes over: a unique
    index looks at each row as it is written.
    """
    if released:
        tx.execute(
            "UPDATE customer SET email = NULL, email_key = NULL, phone = NULL WHERE id = ANY(%s::uuid[])",
            (list(released),),
        )
    tx.values(
        f"UPDATE customer SET {_SET} FROM (VALUES %s) AS v ({CUSTOMER}) WHERE customer.id = v.id",  # noqa: S608
        map(_customer_values, customers),
        _TEMPLATE,
    )


def customer_data(customer: Mapping[str, Any], account: Mapping[str, Any] | None) -> dict[str, Any]:
    """The data of `customer.changed`: the full state, with the account's block."""
    return {
        "id": customer["id"],
        "external_id": customer["external_id"],
        "email": customer["email"],
        "phone": customer["phone"],
        "name": customer["name"],
        "account": account_block(account),
        "language": customer["language"],
        "time_zone": customer["time_zone"],
        "touchpoint": customer["touchpoint"],
        "properties": customer["properties"],
        "may_email": may(customer, "email"),
        "may_sms": may(customer, "sms"),
        "email_opt_out_at": customer["email_opt_out_at"],
        "sms_opt_out_at": customer["sms_opt_out_at"],
        "created_at": customer["created_at"],
        "updated_at": customer["updated_at"],
    }


def account_block(account: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An account as events carry it."""
    if account is None:
        return None
    value = account["annual_value"]
    return {
        "id": account["id"],
        "version": account["version"],
        "name": account["name"],
        "tier": account["tier"],
        "annual_value": None if value is None else str(value),
        "manager_email": account["manager_email"],
    }


def may(customer: Mapping[str, Any], channel: str) -> bool:
    """Whether the customer has an address on this channel that is neither opted out nor known to be dead."""
    address = customer["email"] if channel == "email" else customer["phone"]
    return bool(address) and not customer[f"{channel}_opt_out_at"] and not customer[f"{channel}_bounced_at"]


def announce(tx: Tx, customer_ids: Iterable[str], *, replay: bool = False) -> None:
    """Appends `customer.changed` with the present state of customers that the caller has locked."""
    rows = tx.all(
        f"SELECT {_STATE}, {ACCOUNT_BLOCK} AS account"  # noqa: S608
        " FROM customer c LEFT JOIN account a ON a.id = c.account_id"
        " WHERE c.id = ANY(%s::uuid[]) ORDER BY c.id",
        (list(customer_ids),),
    )
    outbox.append_many(
        tx,
        [
            outbox.New(
                "customer.changed",
                row["id"],
                row["version"],
                customer_data(row, row["account"]),
                replay=replay,
            )
            for row in rows
        ],
    )


def bump(tx: Tx, customer_id: str) -> None:
    """Counts up a locked customer's version and announces their present state."""
    tx.execute(
        "UPDATE customer SET version = version + 1, updated_at = %s WHERE id = %s", (tx.now, customer_id)
    )
    announce(tx, [customer_id])


def opted_out(tx: Tx, pairs: Sequence[tuple[str, bytes]]) -> dict[tuple[str, bytes], Any]:
    """Which of these (channel, fingerprint) have opted out, and when."""
    if not pairs:
        return {}
    rows = tx.all(
        "SELECT o.channel, o.address_hash, o.at, o.source FROM opt_out o"
        " JOIN unnest(%s::text[], %s::bytea[]) AS p (channel, hash)"
        " ON o.channel = p.channel AND o.address_hash = p.hash",
        ([channel for channel, _ in pairs], [digest for _, digest in pairs]),
    )
    return {(row["channel"], bytes(row["address_hash"])): row for row in rows}


def add_opt_outs(tx: Tx, rows: Sequence[tuple[str, bytes, Any, str]]) -> None:
    """Remembers opt-outs as (channel, fingerprint, at, source); an earlier one stays."""
    tx.values(
        "INSERT INTO opt_out (channel, address_hash, at, source) VALUES %s ON CONFLICT DO NOTHING",
        sorted(set(rows)),
    )
