"""Mails to staff: queued with what they are about, written when they leave, so that they tell no old news."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from psycopg2.extras import Json

from shared.db import Row, Tx

_NAMESPACE = uuid.UUID("5b0a3f5e-6f55-5d0c-8d0f-0f7f3c0c9b51")


def queue(
    tx: Tx, template: str, ref_id: str, staff_id: str, data: dict[str, Any], *, once: str | None = None
) -> None:
    """Queues a mail to a staff member. `once` names what it is about: the same again is not queued again."""
    delivery_id = str(uuid.uuid5(_NAMESPACE, f"{template}|{staff_id}|{once}")) if once else tx.ids.new()
    tx.execute(
        """INSERT INTO delivery (id, kind, ref_id, channel, created_at, not_before, data)
           VALUES (%s, 'staff', %s, 'email', %s, %s, %s) ON CONFLICT (id) DO NOTHING""",
        (delivery_id, ref_id, tx.now, tx.now, Json({**data, "template": template, "staff_id": staff_id})),
    )


def about(tx: Tx, template: str, task: Row, *, to: str | None = None, **data: Any) -> None:
    """Queues a mail about a task to its owner (or `to`); nobody is told of an unowned task this way.

    One mail per template, person and version of the task, whatever is processed twice.
    """
    staff_id = to or task["owner_id"]
    if staff_id:
        queue(tx, template, task["id"], staff_id, data, once=f"{task['id']}|{task['version']}")


def let_go(tx: Tx) -> None:
    """Mails of which nobody knows whether they left are shown for a week: what they said is in the inbox."""
    tx.execute(
        "UPDATE delivery SET settled_at = %(now)s WHERE kind = 'staff' AND state = 'uncertain'"
        " AND settled_at IS NULL AND created_at < %(before)s",
        {"now": tx.now, "before": tx.now - timedelta(days=7)},
    )
