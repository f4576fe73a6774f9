"""Answers and what hangs on them: the statement that moves the score's rollup, tasks' answers, erasure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.reporting.store import journey
from services.reporting.store.facts import RESPONSE, TASK, Row, upsert
from services.reporting.store.rollup import feed
from shared.db import Tx


def _counted_by(table: str) -> str:
    return ", ".join(f"{table}.{c}" for c in ("day", "program_id", "touchpoint", "state", "band"))


_APPLY = f"""
    WITH given ({", ".join(RESPONSE.names)}) AS (VALUES %s),
    old AS (
        SELECT {_counted_by("response")} FROM response JOIN given USING (id)
        WHERE response.version < given.version AND response.version > 0
    ),
    moved AS (
        UPDATE response SET {", ".join(f"{c} = given.{c}" for c in RESPONSE.names if c != "id")}
        FROM given WHERE response.id = given.id AND response.version < given.version
        RETURNING {_counted_by("response")}
    ),
    delta AS (SELECT *, 1 AS sign FROM moved UNION ALL SELECT *, -1 FROM old)
    {feed("nps_day")}"""  # noqa: S608 - names from this package


def apply(tx: Tx, rows: Sequence[Row]) -> None:
    """The current version of each answer, and what that moves in the rollup: one statement.

    The rows are there, if only as stubs, and the caller holds their locks.
    """
    tx.values(_APPLY, rows, RESPONSE.template)  # type: ignore[arg-type]


def tasks(tx: Tx, rows: Sequence[Row]) -> set[str]:
    """Tasks with their answers; returns the ids of answers that joined or left one, or whose task changed."""
    changed = upsert(tx, TASK, rows)
    if not changed:
        return set()
    left = tx.all(
        "DELETE FROM task_response WHERE task_id = ANY(%s::uuid[]) RETURNING response_id", (sorted(changed),)
    )
    pairs = sorted(
        (response_id, row["id"])
        for row in rows
        if row["id"] in changed
        for response_id in set(row["response_ids"])
    )
    tx.values("INSERT INTO task_response (response_id, task_id) VALUES %s", pairs, "(%s::uuid, %s::uuid)")
    return {str(row["response_id"]) for row in left} | {str(response_id) for response_id, _ in pairs}


def invitations_of(tx: Tx, responses: Iterable[str]) -> set[str]:
    """The invitations that these answers answer, as far as known."""
    return {
        str(row["invitation_id"])
        for row in tx.all(
            "SELECT invitation_id FROM response WHERE id = ANY(%s::uuid[]) AND invitation_id IS NOT NULL",
            (sorted(responses),),
        )
    }


def responses_of(tx: Tx, notices: Iterable[str]) -> set[str]:
    """The answers that these notices are about, as far as known."""
    return {
        str(row["response_id"])
        for row in tx.all(
            "SELECT response_id FROM notice WHERE id = ANY(%s::uuid[]) AND response_id IS NOT NULL",
            (sorted(notices),),
        )
    }


def erase(tx: Tx, customers: Sequence[str]) -> None:
    """Deletes all that is known of these customers, takes it out of the rollups, and remembers the ids.

    The answers go too, not only the name: their owner deletes them, and a figure must equal a recount of
    the raw answers. The caller keeps all others out meanwhile.
    """
    ids = sorted(customers)
    tx.execute(
        "INSERT INTO erased (customer_id, at) SELECT unnest(%s::uuid[]), %s ON CONFLICT DO NOTHING",
        (ids, tx.now),
    )
    tx.execute(
        f"""
        WITH gone AS (
            DELETE FROM response WHERE customer_id = ANY(%s::uuid[]) RETURNING {_counted_by("response")}
        ),
        delta AS (SELECT *, -1 AS sign FROM gone)
        {feed("nps_day")}""",  # noqa: S608 - names from this package
        (ids,),
    )
    journey.forget(tx, ids)
    for table in ("skip", "unconfirmed", "delivery", "notice"):
        tx.execute(f"DELETE FROM {table} WHERE customer_id = ANY(%s::uuid[])", (ids,))  # noqa: S608
    tx.execute("DELETE FROM customer WHERE id = ANY(%s::uuid[])", (ids,))
