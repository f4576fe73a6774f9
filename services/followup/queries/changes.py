"""Reads about changes: the list, one change, whom its notices went to, and answers to search."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from services.followup.queries import themes
from shared.db import Row, Tx
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.web.paging import Cursor

STATES = ("draft", "published", "withdrawn")

# What became of a change's notices; `delivered` is part of `sent`.
_COUNTS = """
    SELECT change_id, count(*) AS notices,
           count(*) FILTER (WHERE state = 'queued') AS queued,
           count(*) FILTER (WHERE state = 'sent') AS sent,
           count(*) FILTER (
               WHERE state = 'sent' AND (delivered_at IS NOT NULL OR helped IS NOT NULL)) AS delivered,
           count(*) FILTER (WHERE state = 'skipped') AS skipped,
           count(*) FILTER (WHERE state = 'failed') AS failed,
           count(*) FILTER (WHERE state = 'uncertain') AS uncertain,
           count(*) FILTER (WHERE helped) AS helped,
           count(*) FILTER (WHERE NOT helped) AS not_helped
    FROM notice
"""
COUNTS = ("notices", "queued", "sent", "delivered", "skipped", "failed", "uncertain", "helped", "not_helped")
_COUNTED = ", ".join(f"coalesce(n.{name}, 0) AS {name}" for name in COUNTS)
NOTICE_STATES = ("queued", "sent", "delivered", "helped", "not_helped", "skipped", "failed", "uncertain")

_NOTICE_FILTERS = {
    "queued": "n.state = 'queued'",
    "sent": "n.state = 'sent'",
    "delivered": "n.state = 'sent' AND (n.delivered_at IS NOT NULL OR n.helped IS NOT NULL)",
    "helped": "n.helped",
    "not_helped": "NOT n.helped",
    "skipped": "n.state = 'skipped'",
    "failed": "n.state = 'failed'",
    "uncertain": "n.state = 'uncertain'",
}


def after(cursor: str | None) -> tuple[str, str] | None:
    """Where `listing` goes on: (`created_at`, `id`) of the last one seen. Raises `Invalid`."""
    values = Cursor.decode(cursor, 2)
    if values is None:
        return None
    try:
        at, change_id = datetime.fromisoformat(str(values[0])), str(values[1])
    except ValueError:
        change_id = ""
    if not is_id(change_id):
        raise Invalid("This page's cursor belongs to another list.", fields={"cursor": "of another list"})
    return at.isoformat(), change_id


def after_id(cursor: str | None) -> str | None:
    """Where a list by customer goes on: the last id seen. Raises `Invalid` for another list's cursor."""
    values = Cursor.decode(cursor, 1)
    if values is None:
        return None
    if not is_id(str(values[0])):
        raise Invalid("This page's cursor belongs to another list.", fields={"cursor": "of another list"})
    return str(values[0])


def listing(
    tx: Tx, *, state: str | None = None, limit: int = 50, after: Sequence[Any] | None = None
) -> list[Row]:
    """Changes, newest first, each with its `themes` and the counts of COUNTS.

    `after` is (`created_at`, `id`) of the last one seen.
    """
    at, change_id = after or (None, None)
    rows = tx.all(
        f"""
        SELECT c.*, s.name AS created_by_name, {_COUNTED}
        FROM (
            SELECT * FROM change
            WHERE (%(state)s::text IS NULL OR state = %(state)s)
              AND (%(at)s::timestamptz IS NULL OR (created_at, id) < (%(at)s, %(id)s::uuid))
            ORDER BY created_at DESC, id DESC LIMIT %(limit)s
        ) c
        LEFT JOIN LATERAL ({_COUNTS} WHERE change_id = c.id GROUP BY change_id) n ON true
        LEFT JOIN staff s ON s.id = c.created_by
        ORDER BY c.created_at DESC, c.id DESC
        """,  # noqa: S608
        {"state": state, "limit": limit, "at": at, "id": change_id},
    )
    for row in rows:
        row["themes"] = themes.of_change(tx, row["id"])
    return rows


def one(tx: Tx, change_id: str) -> Row:
    """A change with its `themes` and counts. Raises `NotFound`."""
    row = None
    if is_id(change_id):
        row = tx.one(
            f"""
            SELECT c.*, s.name AS created_by_name, {_COUNTED}
            FROM change c LEFT JOIN LATERAL ({_COUNTS} WHERE change_id = c.id GROUP BY change_id) n ON true
            LEFT JOIN staff s ON s.id = c.created_by WHERE c.id = %s
            """,  # noqa: S608
            (change_id,),
        )
    if row is None:
        raise NotFound("There is no such change.")
    row["themes"] = themes.of_change(tx, change_id)
    return row


def totals(tx: Tx) -> Row:
    """Over all published changes: `live`, `drafts`, `sent`, `helped`, `not_helped`, `uncertain`."""
    row = tx.one(
        """
        SELECT (SELECT count(*) FROM change WHERE state = 'published') AS live,
               (SELECT count(*) FROM change WHERE state = 'draft') AS drafts,
               count(*) FILTER (WHERE state = 'sent') AS sent, count(*) FILTER (WHERE helped) AS helped,
               count(*) FILTER (WHERE NOT helped) AS not_helped,
               count(*) FILTER (WHERE state = 'uncertain') AS uncertain
        FROM notice
        """
    )
    return row or {}


def notices(
    tx: Tx, change_id: str, *, state: str | None = None, limit: int = 50, after: str | None = None
) -> list[Row]:
    """A change's notices by customer id, with the customer's `name` and `account`, and `score`.

    `state` is one of NOTICE_STATES; those to be decided on (uncertain) have `claimed_at`. `after` is the
    last customer id seen.
    """
    where = _NOTICE_FILTERS.get(state or "", "true")
    return tx.all(
        f"""
        SELECT n.*, c.name, a.name AS account, r.score, r.band, d.claimed_at
        FROM notice n
        LEFT JOIN customer c ON c.id = n.customer_id
        LEFT JOIN response r ON r.id = n.response_id
        LEFT JOIN account a ON a.id = r.account_id
        LEFT JOIN delivery d ON d.id = n.delivery_id
        WHERE n.change_id = %(change)s AND {where}
          AND (%(after)s::uuid IS NULL OR n.customer_id > %(after)s::uuid)
        ORDER BY n.customer_id LIMIT %(limit)s
        """,  # noqa: S608
        {"change": change_id, "after": after, "limit": limit},
    )


def has_notice(tx: Tx, change_id: str, notice_id: str) -> bool:
    """Whether a notice belongs to a change."""
    return (
        is_id(change_id)
        and is_id(notice_id)
        and tx.one("SELECT 1 FROM notice WHERE id = %s AND change_id = %s", (notice_id, change_id))
        is not None
    )


def skip_reasons(tx: Tx, change_id: str) -> list[Row]:
    """Why customers were not told: `reason` and `customers`, most frequent first."""
    return tx.all(
        "SELECT skip_reason AS reason, count(*) AS customers FROM notice"
        " WHERE change_id = %s AND state IN ('skipped', 'failed') GROUP BY 1 ORDER BY 2 DESC, 1",
        (change_id,),
    )


def search_answers(tx: Tx, change_id: str, words: str, *, limit: int = 50) -> list[Row]:
    """Recent counted answers whose comment has all of `words` (any case), newest first.

    Each has the customer's `name`, and `through`: why it belongs to the change's themes already
    ("task", "tied"), or None. Answers of erased customers are not there.
    """
    terms = [f"%{_literal(term)}%" for term in words.split()[:8]]
    return tx.all(
        """
        SELECT r.id, r.score, r.band, r.comment, r.answered_at, r.touchpoint, c.name, a.name AS account,
               CASE WHEN EXISTS (SELECT 1 FROM task_response tr JOIN task t ON t.id = tr.task_id
                                  JOIN change_theme ct ON ct.theme_id = t.theme_id
                                  WHERE tr.response_id = r.id AND t.state = 'resolved'
                                    AND ct.change_id = %(change)s)
                    THEN 'task'
                    WHEN EXISTS (SELECT 1 FROM response_theme rt JOIN change_theme ct USING (theme_id)
                                  WHERE rt.response_id = r.id AND ct.change_id = %(change)s)
                    THEN 'tied' END AS through
        FROM response r
        LEFT JOIN customer c ON c.id = r.customer_id
        LEFT JOIN account a ON a.id = r.account_id
        WHERE r.comment <> '' AND r.state = 'counted' AND r.comment ILIKE ALL (%(terms)s::text[])
          AND NOT EXISTS (SELECT 1 FROM erased e WHERE e.customer_id = r.customer_id)
        ORDER BY r.answered_at DESC, r.id DESC LIMIT %(limit)s
        """,
        {"change": change_id, "terms": terms, "limit": limit},
    )


def _literal(term: str) -> str:
    return term.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
