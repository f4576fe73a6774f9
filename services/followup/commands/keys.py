"""API keys: shown once, stored hashed, limited to scopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.followup.domain.roles import unknown_scopes
from shared.db import Row, Tx
from shared.errors import Invalid, NotFound
from shared.events import outbox
from shared.ids import hash_token

PREFIX = "hbk_"


def create(tx: Tx, *, name: str, scopes: Sequence[str], created_by: str | None) -> tuple[str, str]:
    """Makes a key; returns its id and the key itself, which exists nowhere else.

    Raises `Invalid` for an empty name, no scope, or an unknown one.
    """
    name = " ".join(name.split())
    fields: dict[str, str] = {}
    if not name or len(name) > 100:
        fields["name"] = "Give it a name of at most 100 characters that says what it is for."
    unknown = unknown_scopes(list(scopes))
    if unknown:
        fields["scopes"] = f"There is no scope {', '.join(unknown)}."
    elif not scopes:
        fields["scopes"] = "Choose at least one: a key may do only what it lists."
    if fields:
        raise Invalid("The key was not made.", fields=fields)
    secret = PREFIX + tx.ids.token()
    row = tx.one(
        """INSERT INTO apikey (id, version, name, hash, scopes, disabled, created_by, created_at)
           VALUES (%s, 1, %s, %s, %s, false, %s, %s) RETURNING *""",
        (tx.ids.new(), name, hash_token(secret), sorted(set(scopes)), created_by, tx.now),
    )
    assert row is not None  # noqa: S101 - for the type checker
    publish(tx, row)
    return row["id"], secret


def disable(tx: Tx, key_id: str) -> None:
    """Ends a key for good; requests with it are refused as soon as each service has heard."""
    row = tx.one("SELECT * FROM apikey WHERE id = %s FOR NO KEY UPDATE", (key_id,))
    if row is None:
        raise NotFound("There is no such key.")
    if row["disabled"]:
        return
    row = tx.one(
        "UPDATE apikey SET disabled = true, version = version + 1 WHERE id = %s RETURNING *", (key_id,)
    )
    assert row is not None  # noqa: S101 - for the type checker
    publish(tx, row)


def publish(tx: Tx, row: Row, *, replay: bool = False) -> None:
    """Appends `apikey.changed` with the key's present state; the caller holds its row."""
    outbox.append(tx, "apikey.changed", row["id"], row["version"], event_of(row), replay=replay)


def event_of(row: Row) -> dict[str, Any]:
    """The data of `apikey.changed`: the hash, never the key."""
    return {
        "id": row["id"],
        "name": row["name"],
        "hash": bytes(row["hash"]).hex(),
        "scopes": list(row["scopes"]),
        "disabled": row["disabled"],
        "created_by": row["created_by"],
    }
