"""Filling replicas again: what followup forgets of others, and what it publishes again of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from services.followup.commands import changes, keys, locks, notices, staff, tasks
from services.followup.handlers import GROUP
from shared.db import Database, Row, Tx
from shared.events import inbox, outbox

BATCH = 500
PUT_ASIDE_FOR = timedelta(days=14)
"""As long as the log keeps what came meanwhile."""
TOPICS = ("staff", "tasks", "changes", "notices")
# What others keep of it, and what it keeps of others, so that they can be compared (`shared.agreement`).
OWNED = {"tasks": "SELECT id, version, '' AS said FROM task WHERE true"}
HEARD = {"answers": "SELECT id, version, concat(score, ' ', state) AS said FROM response WHERE true"}


def clear(tx: Tx) -> None:
    """Empties the replicas and forgets what was consumed; never what followup owns, nor who was erased.

    Settings and accounts stay until their owner says them again (as version 0, which anything beats):
    deadlines need the one, and locks the other. So do dismissals, which are ours. What was known of answers
    behind a task is put aside: a customer who speaks again meanwhile wants another call.
    """
    # Others lock row after row in an order that these statements do not keep.
    tx.execute("LOCK TABLE account, customer IN EXCLUSIVE MODE")
    tx.execute(
        """INSERT INTO response_before SELECT r.*, %s FROM response r
           WHERE EXISTS (SELECT 1 FROM task_response WHERE response_id = r.id)
           ON CONFLICT (id) DO UPDATE SET version = excluded.version, score = excluded.score,
               band = excluded.band, comment = excluded.comment, callback = excluded.callback,
               state = excluded.state, data = excluded.data, at = excluded.at
           WHERE response_before.version < excluded.version""",
        (tx.now,),
    )
    tx.execute("UPDATE company SET version = 0")
    tx.execute("UPDATE program SET version = 0")
    tx.execute("UPDATE account SET version = 0")
    tx.execute("DELETE FROM response")
    tx.execute("DELETE FROM inbound_message")
    tx.execute("DELETE FROM unconfirmed WHERE dismissed_at IS NULL")
    tx.execute("DELETE FROM customer")
    inbox.clear(tx, GROUP)


def forget_before(tx: Tx) -> None:
    """Lets go of what was put aside and is known again by now, or will not be any more."""
    tx.execute(
        """DELETE FROM response_before b WHERE b.at < %s
           OR EXISTS (SELECT 1 FROM response r WHERE r.id = b.id AND r.version >= b.version)""",
        (tx.now - PUT_ASIDE_FOR,),
    )


def republish(db: Database, topics: Sequence[str] | None = None) -> int:
    """Publishes the present state of everything followup owns (of some `topics` only) once more.

    Same event ids and versions, marked as replay. Returns how many events.
    """
    wanted = TOPICS if topics is None else topics
    count = 0
    if "staff" in wanted:
        count += _stream(db, "staff", lambda tx, row: _staff(tx, row))
        count += _stream(db, "apikey", lambda tx, row: keys.publish(tx, row, replay=True))
    if "tasks" in wanted:
        count += _stream(db, "task", _task, _lock_subjects)
    if "changes" in wanted:
        count += changes.republish(db)
    if "notices" in wanted:
        count += notices.republish(db)
    return count


def opted_out(db: Database) -> Iterator[tuple[str, str, str]]:
    """Who wants no messages, as far as followup has heard: (customer, channel, address)."""
    after = "00000000-0000-0000-0000-000000000000"
    while True:
        with db.transaction() as tx:
            rows = tx.all(
                """SELECT id, email, phone, data->>'email_opt_out_at' AS email_at,
                       data->>'sms_opt_out_at' AS sms_at
                   FROM customer WHERE id > %s
                   AND coalesce(data->>'email_opt_out_at', data->>'sms_opt_out_at') IS NOT NULL
                   ORDER BY id LIMIT %s""",
                (after, BATCH),
            )
        if not rows:
            return
        for row in rows:
            if row["email_at"] and row["email"]:
                yield str(row["id"]), "email", row["email"]
            if row["sms_at"] and row["phone"]:
                yield str(row["id"]), "sms", row["phone"]
        after = rows[-1]["id"]


def _staff(tx: Tx, row: Row) -> None:
    outbox.append(tx, "staff.changed", row["id"], row["version"], staff.event_of(row), replay=True)


def _task(tx: Tx, row: Row) -> None:
    tasks.publish(tx, row, tasks.last_event(row), replay=True)


def _lock_subjects(tx: Tx, rows: Sequence[Row]) -> None:
    """Before tasks, as everybody locks them: a consumer has its batch's subjects, then task after task."""
    locks.lock(
        tx,
        [row["account_id"] for row in rows if row["account_id"]],
        [row["customer_id"] for row in rows if not row["account_id"]],
    )


def _stream(
    db: Database,
    table: str,
    publish: Callable[[Tx, Row], Any],
    before: Callable[[Tx, Sequence[Row]], None] = lambda tx, rows: None,
) -> int:
    """Each row of a table, in batches of one transaction, its rows locked; `before` locks what goes first."""
    count, after = 0, "00000000-0000-0000-0000-000000000000"
    while True:
        with db.transaction() as tx:
            found = tx.all(
                f"SELECT * FROM {table} WHERE id > %s ORDER BY id LIMIT %s",  # noqa: S608
                (after, BATCH),
            )
            before(tx, found)
            rows = tx.all(
                f"SELECT * FROM {table} WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE",  # noqa: S608
                ([row["id"] for row in found],),
            )
            for row in rows:
                publish(tx, row)
        if not found:
            return count
        count, after = count + len(rows), found[-1]["id"]
