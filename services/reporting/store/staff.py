"""Replicas of who may log in and which keys may ask, as followup tells them."""

from __future__ import annotations

from collections.abc import Sequence

from shared.db import Tx
from shared.events.envelope import Event


def _newest(events: Sequence[Event]) -> list[Event]:
    by_key: dict[str, Event] = {}
    for event in events:
        if event.key not in by_key or by_key[event.key].version < event.version:
            by_key[event.key] = event
    return [by_key[key] for key in sorted(by_key)]


def replicate(tx: Tx, staff: Sequence[Event], keys: Sequence[Event]) -> None:
    """Keeps the newest version of each person and key."""
    for event in _newest(staff):
        data = event.data or {}
        # An address that moved from one person to another may come in either order; the older row lets go.
        tx.execute(
            "UPDATE staff SET email = id::text WHERE email = %s AND id <> %s AND disabled",
            (data["email"], data["id"]),
        )
        tx.execute(
            """INSERT INTO staff (id, version, email, name, role, disabled, epoch)
               VALUES (%s, %s, %s, %s, %s, %s, %s)
               ON CONFLICT (id) DO UPDATE SET version = excluded.version, email = excluded.email,
                   name = excluded.name, role = excluded.role, disabled = excluded.disabled,
                   epoch = excluded.epoch
               WHERE staff.version < excluded.version""",
            (data["id"], event.version, *(data[f] for f in ("email", "name", "role", "disabled", "epoch"))),
        )
    for event in _newest(keys):
        data = event.data or {}
        tx.execute(
            """INSERT INTO apikey (id, version, name, hash, scopes, disabled, created_by)
               VALUES (%s, %s, %s, %s, %s, %s, %s)
               ON CONFLICT (id) DO UPDATE SET version = excluded.version, name = excluded.name,
                   hash = excluded.hash, scopes = excluded.scopes, disabled = excluded.disabled,
                   created_by = excluded.created_by
               WHERE apikey.version < excluded.version""",
            (
                data["id"],
                event.version,
                data["name"],
                bytes.fromhex(data["hash"]),
                list(data["scopes"]),
                data["disabled"],
                data["created_by"],
            ),
        )
