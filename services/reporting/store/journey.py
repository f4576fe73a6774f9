"""How far each invitation came round the loop: derived from the facts, in one statement for a batch."""

from __future__ import annotations

from collections.abc import Sequence

from services.reporting.domain.funnel import COLUMNS
from services.reporting.store.rollup import feed
from shared.db import Tx

ZONE = "coalesce((SELECT time_zone FROM company), 'UTC')"
"""SQL: the company's zone, in which a day is a day; UTC until the company is known."""

# The stages as defined in domain/funnel.py. Of several tasks the latest that was not withdrawn is the one
# that matters; of several notices any that arrived.
FRESH = f"""
    SELECT i.id,
           (i.sent_at AT TIME ZONE {ZONE})::date AS day,
           base.asked,
           base.asked AND (coalesce(d.arrived, false) OR r.id IS NOT NULL) AS delivered,
           r.id IS NOT NULL AS answered,
           t.id IS NOT NULL AS tasked,
           coalesce(least(t.first_contact_at, t.contacted_at) <= t.due_at, false) AS tried_in_time,
           coalesce(t.contacted_at <= t.due_at, false) AS in_time,
           coalesce(t.state = 'resolved', false) AS resolved,
           n.id IS NOT NULL AS told,
           coalesce(n.helped, false) AS helped,
           coalesce(n.not_helped AND NOT n.helped, false) AS not_helped,
           r.id AS response_id, t.id AS task_id, n.id AS notice_id
    FROM touched
    JOIN invitation i USING (id)
    CROSS JOIN LATERAL (SELECT i.version > 0 AND NOT i.test AS asked) AS base
    LEFT JOIN LATERAL (
        SELECT bool_or(state IN ('delivered', 'complained')) AS arrived
        FROM delivery WHERE ref_id = i.id AND kind = 'invitation'
    ) AS d ON base.asked
    LEFT JOIN LATERAL (
        SELECT id FROM response
        WHERE invitation_id = i.id AND version > 0 AND state = 'counted'
        ORDER BY answered_at, id LIMIT 1
    ) AS r ON base.asked
    LEFT JOIN LATERAL (
        SELECT task.* FROM task_response JOIN task ON task.id = task_id
        WHERE response_id = r.id AND task.state <> 'withdrawn'
        ORDER BY task.opened_at DESC, task.id DESC LIMIT 1
    ) AS t ON true
    LEFT JOIN LATERAL (
        SELECT (array_agg(notice.id ORDER BY notice.sent_at DESC, notice.id DESC))[1] AS id,
               coalesce(bool_or(notice.helped), false) AS helped,
               coalesce(bool_or(NOT notice.helped), false) AS not_helped
        FROM notice
        LEFT JOIN LATERAL (
            SELECT bool_or(state IN ('delivered', 'complained')) AS arrived,
                   bool_or(state IN ('bounced', 'failed')) AS lost
            FROM delivery WHERE ref_id = notice.id AND kind = 'notice'
        ) AS its ON true
        WHERE notice.response_id = r.id AND notice.version > 0 AND notice.state = 'sent'
          AND (notice.helped IS NOT NULL OR coalesce(its.arrived, false) OR NOT coalesce(its.lost, false))
    ) AS n ON true"""  # noqa: S608 - no input

_DERIVED = ("day", *COLUMNS, "response_id", "task_id", "notice_id")


def _refresh(touched: str) -> str:
    flags = ", ".join(COLUMNS)
    return f"""
    WITH touched AS ({touched}),
    fresh AS ({FRESH}),
    old AS (
        SELECT id, day, program_id, touchpoint, {flags} FROM invitation JOIN touched USING (id)
    ),
    moved AS (
        UPDATE invitation AS i
        SET ({", ".join(_DERIVED)}) = ({", ".join(f"fresh.{c}" for c in _DERIVED)})
        FROM fresh
        WHERE i.id = fresh.id
          AND ({", ".join(f"i.{c}" for c in _DERIVED)})
              IS DISTINCT FROM ({", ".join(f"fresh.{c}" for c in _DERIVED)})
        RETURNING i.id, i.day, i.program_id, i.touchpoint, {", ".join(f"i.{c}" for c in COLUMNS)}
    ),
    delta AS (
        SELECT day, program_id, touchpoint, {flags}, 1 AS sign FROM moved WHERE asked
        UNION ALL
        SELECT day, program_id, touchpoint, {flags}, -1
        FROM old WHERE asked AND id IN (SELECT id FROM moved)
    )
    {feed("funnel_day")}"""  # noqa: S608 - names from this package


_REFRESH_SOME = _refresh("SELECT unnest(%s::uuid[]) AS id")


def expire(tx: Tx, expired: Sequence[tuple[str, str]]) -> None:
    """Notes when invitations ran out: (invitation, instant). The rows are there, if only as stubs."""
    tx.values(
        "UPDATE invitation SET expired_at = given.at FROM (VALUES %s) AS given (id, at) "
        "WHERE invitation.id = given.id AND invitation.expired_at IS DISTINCT FROM given.at",
        sorted(dict(expired).items()),
        "(%s::uuid, %s::timestamptz)",
    )


def refresh(tx: Tx, ids: Sequence[str]) -> None:
    """Derives the stages of these invitations anew and feeds the differences to the rollup.

    The caller holds their locks.
    """
    if ids:
        tx.execute(_REFRESH_SOME, (sorted(ids),))


def forget(tx: Tx, customers: Sequence[str]) -> None:
    """Deletes the invitations of erased customers and takes them out of the rollup."""
    flags = ", ".join(COLUMNS)
    tx.execute(
        f"""
        WITH gone AS (
            DELETE FROM invitation WHERE customer_id = ANY(%s::uuid[])
            RETURNING day, program_id, touchpoint, {flags}
        ),
        delta AS (SELECT *, -1 AS sign FROM gone WHERE asked)
        {feed("funnel_day")}""",  # noqa: S608 - names from this package
        (list(customers),),
    )


def differing(tx: Tx) -> int:
    """How many invitations have stages other than the facts give; 0 unless something is broken."""
    return int(
        tx.value(
            f"""WITH touched AS (SELECT id FROM invitation), fresh AS ({FRESH})
            SELECT count(*) FROM fresh JOIN invitation i USING (id)
            WHERE ({", ".join(f"i.{c}" for c in _DERIVED)})
                  IS DISTINCT FROM ({", ".join(f"fresh.{c}" for c in _DERIVED)})"""  # noqa: S608
        )
    )
