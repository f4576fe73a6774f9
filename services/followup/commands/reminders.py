"""Due work: a reminder before a call is due, escalation when it is overdue, deputies for who is away."""

from __future__ import annotations

from services.followup.commands import owners, staff_mail, tasks
from shared.db import Tx

BATCH = 50


def remind(tx: Tx) -> bool:
    """Claims tasks whose reminder is due and queues one mail to each owner; whether there may be more.

    The claim is the column going to null under the row's lock: several clocks, a restart or a stepped
    clock remind once.
    """
    rows = tx.all(
        """SELECT * FROM task WHERE state = 'open' AND remind_at <= %s ORDER BY remind_at, id LIMIT %s
           FOR NO KEY UPDATE SKIP LOCKED""",
        (tx.now, BATCH),
    )
    for row in rows:
        tx.execute("UPDATE task SET remind_at = NULL WHERE id = %s", (row["id"],))
        # Overdue already (the clock stood still): escalation says more than a reminder would.
        if row["call_by"] is None or row["call_by"] <= tx.now or row["owner_id"] is None:
            continue
        staff_mail.queue(
            tx,
            "reminder",
            row["id"],
            row["owner_id"],
            {},
            once=f"{row['id']}|{row['call_by'].isoformat()}",
        )
        tasks.entry(tx, row["id"], "reminded", tasks.HEARBACK, to=_name(tx, row["owner_id"]))
    return len(rows) == BATCH


def escalate(tx: Tx) -> bool:
    """Claims overdue tasks, once per missed call, and tells owner and leads; whether there may be more."""
    rows = tx.all(
        """SELECT * FROM task WHERE state = 'open' AND call_by < %s
              AND (escalated_at IS NULL OR escalated_at < call_by)
           ORDER BY call_by, id LIMIT %s FOR NO KEY UPDATE SKIP LOCKED""",
        (tx.now, BATCH),
    )
    if not rows:
        return False
    leads = [
        row["id"]
        for row in tx.all("SELECT id FROM staff WHERE NOT disabled AND role = 'lead' ORDER BY id")
        or tx.all("SELECT id FROM staff WHERE NOT disabled AND role = 'admin' ORDER BY id")
    ]
    for row in rows:
        saved = tasks.save(tx, row["id"], "escalated", escalated_at=tx.now)
        tasks.entry(tx, row["id"], "escalated", tasks.HEARBACK)
        for person in sorted({*leads, *([row["owner_id"]] if row["owner_id"] else [])}):
            staff_mail.about(tx, "escalated", saved, to=person)
    return len(rows) == BATCH


def stand_in(tx: Tx) -> bool:
    """Hands what waits for somebody who is away to their deputy."""
    owners.hand_to_deputies(tx)
    return False


def _name(tx: Tx, staff_id: str) -> str | None:
    name: str | None = tx.value("SELECT name FROM staff WHERE id = %s", (staff_id,))
    return name
