"""What survey does with others' events: it keeps replicas of tasks, changes, notices and staff."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg2.extras import Json

from shared.db import Tx
from shared.events.consumer import by_type
from shared.events.envelope import Event

GROUP = "survey"
TOPICS = ("tasks", "changes", "notices", "staff")


def apply(tx: Tx, events: Sequence[Event]) -> None:
    """Applies a batch in one transaction; a lower or equal version is ignored, topics come in any order."""
    tasks(tx, [event for event in events if event.topic == "tasks"])
    _BY_TYPE(tx, events)


def tasks(tx: Tx, events: Sequence[Event]) -> None:
    """Each task's newest full state, all with one statement; the trail and the customer's page show it."""
    newest: dict[str, Event] = {}
    for event in events:
        if event.key not in newest or newest[event.key].version < event.version:
            newest[event.key] = event
    states = {key: _data(newest[key]) for key in sorted(newest)}
    stored = tx.values(
        "INSERT INTO task_replica (id, version, account_id, owner_email, data) VALUES %s"
        " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, account_id = EXCLUDED.account_id,"
        " owner_email = EXCLUDED.owner_email, data = EXCLUDED.data"
        " WHERE task_replica.version < EXCLUDED.version RETURNING id",
        [
            (key, newest[key].version, data["account_id"], data["owner_email"], Json(data))
            for key, data in states.items()
        ],
        "(%s::uuid, %s, %s::uuid, %s, %s)",
        fetch=True,
    )
    ids = [row["id"] for row in stored]
    if ids:
        tx.execute("DELETE FROM task_response WHERE task_id = ANY(%s::uuid[])", (ids,))
        tx.values(
            "INSERT INTO task_response (response_id, task_id) VALUES %s ON CONFLICT DO NOTHING",
            sorted((response_id, id_) for id_ in ids for response_id in states[id_]["response_ids"]),
            "(%s::uuid, %s::uuid)",
        )


def change(tx: Tx, event: Event) -> None:
    """A change that is told, or not any more."""
    tx.execute(
        "INSERT INTO change_replica (id, version, data) VALUES (%s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, data = EXCLUDED.data"
        " WHERE change_replica.version < EXCLUDED.version",
        (event.key, event.version, Json(_data(event))),
    )


def notice(tx: Tx, event: Event) -> None:
    """Who was told of a change, and whether it helped; of an erased customer nothing is kept."""
    data = _data(event)
    # Waits for an erasure under way, and makes one that comes wait until this is there to be deleted.
    tx.one("SELECT 1 FROM customer WHERE id = %s FOR KEY SHARE", (data["customer_id"],))
    if tx.one("SELECT 1 FROM erased WHERE customer_id = %s", (data["customer_id"],)):
        return
    tx.execute(
        "INSERT INTO notice_replica (id, version, customer_id, response_id, change_id, data)"
        " VALUES (%s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, data = EXCLUDED.data"
        " WHERE notice_replica.version < EXCLUDED.version",
        (
            data["notice_id"],
            event.version,
            data["customer_id"],
            data["response_id"],
            data["change_id"],
            Json(data),
        ),
    )


def staff(tx: Tx, event: Event) -> None:
    """Who may log in. An address that moves from one person to another frees it first."""
    data = _data(event)
    if tx.one("SELECT 1 FROM staff WHERE id = %s AND version >= %s", (event.key, event.version)):
        return
    tx.execute("UPDATE staff SET email = id::text WHERE email = %s AND id <> %s", (data["email"], event.key))
    tx.execute(
        "INSERT INTO staff (id, version, email, name, role, disabled, epoch)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, email = EXCLUDED.email,"
        " name = EXCLUDED.name, role = EXCLUDED.role, disabled = EXCLUDED.disabled, epoch = EXCLUDED.epoch"
        " WHERE staff.version < EXCLUDED.version",
        (
            event.key,
            event.version,
            data["email"],
            data["name"],
            data["role"],
            data["disabled"],
            data["epoch"],
        ),
    )


def apikey(tx: Tx, event: Event) -> None:
    """A key by its hash, and what it may do."""
    data = _data(event)
    tx.execute(
        "INSERT INTO apikey (id, version, name, hash, scopes, disabled, created_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, name = EXCLUDED.name,"
        " hash = EXCLUDED.hash, scopes = EXCLUDED.scopes, disabled = EXCLUDED.disabled"
        " WHERE apikey.version < EXCLUDED.version",
        (
            event.key,
            event.version,
            data["name"],
            bytes.fromhex(data["hash"]),
            data["scopes"],
            data["disabled"],
            data["created_by"],
        ),
    )


def _data(event: Event) -> dict[str, Any]:
    if event.data is None:
        raise ValueError(f"{event.type} needs data")
    return dict(event.data)


_BY_TYPE = by_type(
    {
        "change.published": change,
        "change.withdrawn": change,
        "notice.sent": notice,
        "notice.skipped": notice,
        "notice.answered": notice,
        "staff.changed": staff,
        "apikey.changed": apikey,
    }
)
