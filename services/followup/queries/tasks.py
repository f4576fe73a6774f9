"""Tasks as people read them: cards for lists, and one task with its words, its people and its history."""

from __future__ import annotations

from typing import Any

from services.followup.domain.by import By
from services.followup.domain.task import GONE, stage
from shared.db import Row, Tx
from shared.errors import NotFound
from shared.ids import is_id

# The tasks are chosen first, so that the rest is looked up for one page of them only. Whom a task
# concerns most: whoever said something, then the lowest score, then the newest.
_CARD = """
SELECT t.*, a.name AS account_name, a.tier, a.annual_value, a.manager_email,
       o.name AS owner_name, o.email AS owner_email, th.name AS theme, b.name AS on_it_name,
       w.response_id, w.score, w.comment, w.callback, w.answered_at, w.touchpoint, w.program_name,
       w.customer_id AS speaker_id, w.customer_name, w.phone, w.email, w.language,
       n.answers, n.people, la.at AS last_attempt_at, la.reached AS last_reached, la.by_name AS last_by
FROM ({chosen}) t
LEFT JOIN account a ON a.id = t.account_id
LEFT JOIN staff o ON o.id = t.owner_id
LEFT JOIN staff b ON b.id = t.on_it_id AND t.on_it_at > %(now)s - interval '30 minutes'
LEFT JOIN theme th ON th.id = t.theme_id
LEFT JOIN LATERAL (
    SELECT r.id AS response_id, r.score, r.comment, r.callback, r.answered_at, r.touchpoint,
           r.program_name,
           c.id AS customer_id, c.name AS customer_name, c.phone, c.email, c.language
    FROM task_response tr JOIN response r ON r.id = tr.response_id
    LEFT JOIN customer c ON c.id = r.customer_id
    WHERE tr.task_id = t.id
    ORDER BY r.state = 'counted' DESC, r.comment IS NOT NULL DESC, r.score, r.answered_at DESC, r.id LIMIT 1
) w ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS answers, count(DISTINCT customer_id) AS people FROM task_response WHERE task_id = t.id
) n ON true
LEFT JOIN LATERAL (
    SELECT at, reached, by_name FROM task_entry WHERE task_id = t.id AND kind = 'attempted'
    ORDER BY at DESC LIMIT 1
) la ON true
"""

VIEWS = ("all", "mine", "unowned", "overdue", "closed")


def cards(
    tx: Tx,
    by: By,
    *,
    view: str = "all",
    owner_id: str | None = None,
    after: list[Any] | None = None,
    limit: int = 50,
) -> list[Row]:
    """The tasks of a view that `by` may see: open ones by when a call is due, closed ones newest first.

    `after`: the sort values of the last row seen, as `position` gives them.
    """
    args: dict[str, Any] = {"now": tx.now, "me": by.staff_id, "owner": owner_id, "limit": limit}
    where = [_visible(by)]
    if view == "closed":
        where.append("t.state <> 'open'")
        order = "t.changed_at DESC, t.id DESC"
        if after:
            where.append("(t.changed_at, t.id) < (%(after)s::timestamptz, %(after_id)s::uuid)")
    else:
        where.append("t.state = 'open'")
        order = "coalesce(t.call_by, 'infinity'), t.id"
        if after:
            where.append(
                "(coalesce(t.call_by, 'infinity'), t.id)"
                " > (coalesce(%(after)s::timestamptz, 'infinity'), %(after_id)s::uuid)"
            )
    if view == "mine":
        where.append("t.owner_id = %(me)s")
    elif view == "unowned":
        where.append("t.owner_id IS NULL")
    elif view == "overdue":
        where.append("t.call_by < %(now)s")
    if owner_id:
        where.append("t.owner_id = %(owner)s")
    if after:
        args["after"], args["after_id"] = after
    return _chosen(tx, where, order, args)


def position(row: Row, view: str) -> list[Any]:
    """Where a row stands in its view, for the next page's cursor."""
    at = row["changed_at"] if view == "closed" else row["call_by"]
    return [at.isoformat() if at else None, row["id"]]


def counts(tx: Tx, by: By) -> dict[str, int]:
    """How many tasks each view has, by name; and "waiting": how many need a call, overdue ones included."""
    row = tx.one(
        f"""SELECT count(*) AS "all", count(*) FILTER (WHERE t.owner_id = %(me)s) AS mine,
                   count(*) FILTER (WHERE t.owner_id IS NULL) AS unowned,
                   count(*) FILTER (WHERE t.call_by < %(now)s) AS overdue,
                   count(*) FILTER (WHERE t.call_by IS NOT NULL) AS waiting
            FROM task t WHERE t.state = 'open' AND {_visible(by)}""",  # noqa: S608
        {"me": by.staff_id, "now": tx.now},
    )
    return {name: int(value) for name, value in (row or {}).items()}


def card(tx: Tx, by: By, task_id: str) -> Row:
    """One task. Raises `NotFound` when it is not there or none of `by`'s business."""
    args = {"id": task_id, "now": tx.now, "me": by.staff_id, "limit": 1}
    rows = _chosen(tx, ["t.id = %(id)s", _visible(by)], "t.id", args) if is_id(task_id) else []
    if not rows:
        raise NotFound(GONE)
    return rows[0]


def answers(tx: Tx, task_id: str) -> list[Row]:
    """The answers behind a task with who gave them, those that speak first; each with its earlier scores."""
    return tx.all(
        """SELECT r.id, r.version, r.score, r.band, r.comment, r.callback, r.state, r.answered_at,
                  r.touchpoint, r.program_name, r.channel, r.customer_id, c.name AS customer_name, c.phone,
                  c.email, c.language, c.data->>'may_email' AS may_email, c.data->>'may_sms' AS may_sms,
                  array(SELECT v.score FROM response_version v WHERE v.response_id = r.id
                        ORDER BY v.version) AS scores
           FROM task_response tr JOIN response r ON r.id = tr.response_id
           LEFT JOIN customer c ON c.id = r.customer_id WHERE tr.task_id = %s
           ORDER BY r.state = 'counted' DESC, r.comment IS NOT NULL DESC, r.score, r.answered_at DESC,
                    r.id""",
        (task_id,),
    )


def history(tx: Tx, task: Row, limit: int = 200) -> list[Row]:
    """What happened, newest first: the task's entries, and what its customers answered, wrote and were told.

    Rows have `at`, `kind`, `by_name`, `text`, `channel`, `reached`, `score`, `customer_name`, `data`.
    """
    return tx.all(
        """
        WITH people AS (
            SELECT customer_id AS id FROM task_response WHERE task_id = %(task)s
            UNION SELECT id FROM customer WHERE account_id = %(account)s
        )
        SELECT * FROM (
            SELECT e.at, e.kind, e.by_name, e.text, e.channel, e.reached, (e.data->>'score')::int AS score,
                   NULL::text AS customer_name, e.data, e.id::text AS id
            FROM task_entry e WHERE e.task_id = %(task)s AND e.kind <> 'joined'
              -- Answers tell themselves; only what we did to them is said by the task.
              AND (e.kind <> 'revised' OR e.data->>'state' <> 'counted')
            UNION ALL
            SELECT v.at, 'answered', NULL, v.comment, r.channel, NULL, v.score, c.name,
                   jsonb_build_object('touchpoint', r.touchpoint, 'callback', v.callback, 'state', r.state,
                                      'again', v.version > 1, 'behind', EXISTS (
                       SELECT 1 FROM task_response WHERE task_id = %(task)s AND response_id = r.id)),
                   r.id::text || v.version
            FROM response r JOIN response_version v ON v.response_id = r.id
            LEFT JOIN customer c ON c.id = r.customer_id WHERE r.customer_id IN (SELECT id FROM people)
            UNION ALL
            SELECT m.at, 'wrote', NULL, m.text, NULL, NULL, NULL, c.name, '{}', m.id::text
            FROM inbound_message m LEFT JOIN customer c ON c.id = m.customer_id
            WHERE m.customer_id IN (SELECT id FROM people)
            UNION ALL
            SELECT n.sent_at, 'told', NULL, ch.title, n.channel, NULL, NULL, c.name,
                   jsonb_build_object('helped', n.helped), n.id::text
            FROM notice n JOIN change ch ON ch.id = n.change_id LEFT JOIN customer c ON c.id = n.customer_id
            WHERE n.sent_at IS NOT NULL AND n.customer_id IN (SELECT id FROM people)
        ) story ORDER BY at DESC, kind = 'answered', id DESC LIMIT %(limit)s
        """,
        {"task": task["id"], "account": task["account_id"], "limit": limit},
    )


def entries(tx: Tx, task_id: str) -> int:
    """How many entries a task's history has; they only grow, so the number says how much one has seen."""
    return int(tx.value("SELECT count(*) FROM task_entry WHERE task_id = %s", (task_id,)))


def since(tx: Tx, task_id: str, seen: int) -> list[Row]:
    """The task's entries after the first `seen`, oldest first: what somebody missed."""
    return tx.all(
        "SELECT * FROM task_entry WHERE task_id = %s ORDER BY at, id LIMIT 20 OFFSET %s", (task_id, seen)
    )


def listed(
    tx: Tx,
    by: By,
    *,
    state: str | None = None,
    owner: str | None = None,
    overdue: bool | None = None,
    account_id: str | None = None,
    customer_id: str | None = None,
    after: list[Any] | None = None,
    limit: int = 50,
) -> list[Row]:
    """Tasks for programs, newest first; `owner` is a staff id, or "none"."""
    args: dict[str, Any] = {"now": tx.now, "me": by.staff_id, "limit": limit, "state": state, "owner": owner}
    where = [_visible(by)]
    if state:
        where.append("t.state = %(state)s")
    if owner == "none":
        where.append("t.owner_id IS NULL")
    elif owner:
        where.append("t.owner_id = %(owner)s::uuid")
    if overdue is not None:
        where.append(f"coalesce(t.state = 'open' AND t.call_by < %(now)s, false) = {overdue}")
    if account_id:
        where.append("t.account_id = %(account)s::uuid")
        args["account"] = account_id
    if customer_id:
        where.append(
            "EXISTS (SELECT 1 FROM task_response WHERE task_id = t.id AND customer_id = %(customer)s::uuid)"
        )
        args["customer"] = customer_id
    if after:
        where.append("(t.opened_at, t.id) < (%(after)s::timestamptz, %(after_id)s::uuid)")
        args["after"], args["after_id"] = after
    return _chosen(tx, where, "t.opened_at DESC, t.id DESC", args)


def _chosen(tx: Tx, where: list[str], order: str, args: dict[str, Any]) -> list[Row]:
    chosen = f"SELECT * FROM task t WHERE {' AND '.join(where)} ORDER BY {order} LIMIT %(limit)s"  # noqa: S608
    rows = tx.all(f"{_CARD.format(chosen=chosen)} ORDER BY {order}", args)
    return [_staged(tx, row) for row in rows]


def _visible(by: By) -> str:
    """The condition on `t` under which `by` may see a task."""
    return "(t.owner_id IS NULL OR t.owner_id = %(me)s)" if by.limited else "true"


def _staged(tx: Tx, row: Row) -> Row:
    row["stage"] = stage(row["state"], row["call_by"], row["contacted_at"] is not None, tx.now)
    row["who"] = row["customer_name"] or row["account_name"] or "A customer"
    return row
