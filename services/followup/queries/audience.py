"""Whose words led to a change: one answer per customer, with why it counts and whether we can reach them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.followup.queries import company
from shared.db import Row, Tx

# $behind: answers that people tied to a theme, by resolving a task or directly.
# $picked: of each customer the answer that tells most: the newest with words, else the newest.
_PICKED = """
    behind AS (
        SELECT tr.response_id FROM task t JOIN task_response tr ON tr.task_id = t.id
         WHERE t.state = 'resolved' AND t.theme_id = ANY(%(themes)s::uuid[])
        UNION
        SELECT response_id FROM response_theme WHERE theme_id = ANY(%(themes)s::uuid[])
    ), picked AS (
        SELECT DISTINCT ON (r.customer_id) r.*
        FROM behind b JOIN response r ON r.id = b.response_id
        WHERE r.state = 'counted' AND r.answered_at <= %(until)s
          AND (%(since)s::timestamptz IS NULL OR r.answered_at >= %(since)s)
          AND (%(after)s::uuid IS NULL OR r.customer_id > %(after)s::uuid)
          AND NOT EXISTS (SELECT 1 FROM erased e WHERE e.customer_id = r.customer_id)
          AND NOT EXISTS (SELECT 1 FROM notice n
                           WHERE n.customer_id = r.customer_id AND n.change_id = %(change)s)
        ORDER BY r.customer_id, btrim(coalesce(r.comment, '')) <> '' DESC, r.answered_at DESC, r.id DESC
    )
"""

# As far as followup knows; only survey's permit decides, at the moment of sending.
_UNREACHABLE = """
    CASE WHEN c.id IS NULL OR c.version = 0 THEN 'not_known'
         WHEN coalesce((c.data->>'may_email')::boolean, false) THEN NULL
         WHEN coalesce((c.data->>'may_sms')::boolean, false) THEN NULL
         WHEN coalesce(c.email, '') = '' AND coalesce(c.phone, '') = '' THEN 'no_address'
         WHEN coalesce(c.data->>'email_opt_out_at', c.data->>'sms_opt_out_at') IS NOT NULL THEN 'opted_out'
         ELSE 'bounced' END
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How many customers an audience has, and why some of them cannot be reached."""

    total: int
    unreachable: dict[str, int]

    @property
    def reachable(self) -> int:
        return self.total - sum(self.unreachable.values())


def size(tx: Tx, change: Row) -> Size:
    """The audience that a change would be told to now: without those who have a notice of it already."""
    rows = tx.all(
        f"WITH {_PICKED} SELECT {_UNREACHABLE} AS reason, count(*) AS customers"  # noqa: S608
        " FROM picked p LEFT JOIN customer c ON c.id = p.customer_id GROUP BY 1 ORDER BY 2 DESC, 1",
        _arguments(tx, change),
    )
    return Size(
        total=sum(row["customers"] for row in rows),
        unreachable={row["reason"]: row["customers"] for row in rows if row["reason"]},
    )


def people(tx: Tx, change: Row, *, after: str | None = None, limit: int = 50) -> list[Row]:
    """The audience by customer id, beginning after `after`.

    Each has `customer_id`, `name`, `account`, the chosen answer (`response_id`, `score`, `band`,
    `comment`, `answered_at`, `touchpoint`), `unreachable` (a reason or None), and `why`: a list of
    {theme, task_id, by}, where `task_id` is None for an answer that somebody tied to the theme directly.
    """
    return tx.all(
        f"""
        WITH {_PICKED}
        SELECT p.customer_id, c.name, a.name AS account, p.id AS response_id, p.score, p.band, p.comment,
               p.answered_at, p.touchpoint, {_UNREACHABLE} AS unreachable,
               (SELECT jsonb_agg(w) FROM (
                    SELECT th.name AS theme, t.id AS task_id, s.name AS by
                    FROM task_response tr JOIN task t ON t.id = tr.task_id AND t.state = 'resolved'
                    JOIN theme th ON th.id = t.theme_id LEFT JOIN staff s ON s.id = t.resolved_by
                    WHERE tr.response_id = p.id AND t.theme_id = ANY(%(themes)s::uuid[])
                    UNION ALL
                    SELECT th.name, NULL, s.name FROM response_theme rt JOIN theme th ON th.id = rt.theme_id
                    LEFT JOIN staff s ON s.id = rt.by
                    WHERE rt.response_id = p.id AND rt.theme_id = ANY(%(themes)s::uuid[])
               ) w) AS why
        FROM (SELECT * FROM picked ORDER BY customer_id LIMIT %(limit)s) p
        LEFT JOIN customer c ON c.id = p.customer_id
        LEFT JOIN account a ON a.id = p.account_id
        ORDER BY p.customer_id
        """,  # noqa: S608
        {**_arguments(tx, change, after), "limit": limit},
    )


def batches(tx: Tx, change: Row, size: int) -> Iterator[list[Row]]:
    """The whole audience, `size` customers at a time, found once: `customer_id`, `response_id`, `comment`.

    Notices that the caller adds meanwhile do not change what comes.
    """
    tx.execute(
        f"DECLARE audience NO SCROLL CURSOR FOR WITH {_PICKED}"  # noqa: S608
        " SELECT customer_id, id AS response_id, comment FROM picked ORDER BY customer_id",
        _arguments(tx, change),
    )
    while rows := tx.all(f"FETCH {int(size)} FROM audience"):
        yield rows
    tx.execute("CLOSE audience")


def _arguments(tx: Tx, change: Row, after: str | None = None) -> dict[str, Any]:
    since: datetime | None = None
    if change["since"]:
        since = company.day_begins(company.settings(tx), change["since"])
    themes = [
        row["theme_id"]
        for row in tx.all("SELECT theme_id FROM change_theme WHERE change_id = %s", (change["id"],))
    ]
    return {
        "themes": themes,
        "change": change["id"],
        "since": since,
        # What a customer says after the change went live did not lead to it.
        "until": change["published_at"] or tx.now,
        "after": after,
    }
