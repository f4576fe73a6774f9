"""Reads for the answer page and the API of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.survey import facts
from shared.db import Row, Statement, Tx
from shared.errors import NotFound
from shared.ids import hash_token, is_id
from shared.web.paging import Cursor

_PAGE = Statement("""SELECT t.invitation_id, i.customer_id, i.expires_at, i.test, i.channel,
    p.name AS program_name, p.wording, c.language, c.time_zone, r.id AS response_id,
    coalesce(r.version, 0) AS version, r.score, r.comment, r.callback,
    r.answered_at, r.revised_at, r.state, to_jsonb(o) AS company
    FROM token t JOIN invitation i ON i.id = t.invitation_id JOIN program p ON p.id = i.program_id
    JOIN customer c ON c.id = i.customer_id LEFT JOIN response r ON r.invitation_id = i.id
    LEFT JOIN company o ON true
    WHERE t.hash = %(hash)s AND t.purpose = 'answer' AND t.expires_at > %(now)s""")


def page(tx: Tx, token: str) -> Row:
    """What the answer page of a link shows. Raises `NotFound`."""
    row = tx.one(_PAGE, {"hash": hash_token(token), "now": tx.now})
    if row is None:
        raise NotFound("This link leads nowhere.")
    return row


def of_response(tx: Tx, response_id: str) -> Row:
    """One answer with all its versions. Raises `NotFound`."""
    row = tx.one(facts.RESPONSES + " WHERE r.id = %s", (response_id,)) if is_id(response_id) else None
    if row is None:
        raise NotFound("There is no such answer.")
    row["versions"] = tx.all(
        "SELECT version, score, comment, callback, at, source FROM response_version"
        " WHERE response_id = %s ORDER BY version",
        (response_id,),
    )
    return row


def responses(
    tx: Tx, filters: Mapping[str, Any], limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """Answers, newest first: (rows, the next page's cursor). Filters: customer_id, program_id, invitation_id,
    touchpoint, state, since, until, score_min, score_max.
    """
    conditions, args = _conditions(
        filters,
        {
            "customer_id": "r.customer_id = %(customer_id)s::uuid",
            "invitation_id": "r.invitation_id = %(invitation_id)s::uuid",
            "program_id": "i.program_id = %(program_id)s::uuid",
            "touchpoint": "i.touchpoint = %(touchpoint)s",
            "state": "r.state = %(state)s",
            "since": "r.answered_at >= %(since)s",
            "until": "r.answered_at < %(until)s",
            "score_min": "r.score >= %(score_min)s",
            "score_max": "r.score <= %(score_max)s",
        },
    )
    return _paged(
        tx,
        facts.RESPONSES,
        "r.answered_at",
        "r.id",
        "response_id",
        "answered_at",
        conditions,
        args,
        limit,
        cursor,
    )


_INVITATIONS = """SELECT i.id, i.customer_id, i.program_id, p.name AS program_name, i.touchpoint,
    i.channel, i.state,
    i.test, i.created_at, i.sent_at, i.expires_at, r.id AS response_id,
    (SELECT d.id FROM delivery d WHERE d.ref_id = i.id AND d.kind = 'invitation'
     ORDER BY d.created_at DESC, d.id DESC LIMIT 1) AS delivery_id
    FROM invitation i JOIN program p ON p.id = i.program_id LEFT JOIN response r ON r.invitation_id = i.id"""


def invitations(
    tx: Tx, filters: Mapping[str, Any], limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """Invitations, newest first: (rows, cursor). Filters: customer_id, program_id, ask_id, state, channel."""
    conditions, args = _conditions(
        filters,
        {
            "customer_id": "i.customer_id = %(customer_id)s::uuid",
            "program_id": "i.program_id = %(program_id)s::uuid",
            "ask_id": "i.ask_run_id = %(ask_id)s::uuid",
            "state": "i.state = %(state)s",
            "channel": "i.channel = %(channel)s",
        },
    )
    return _paged(
        tx, _INVITATIONS, "i.created_at", "i.id", "id", "created_at", conditions, args, limit, cursor
    )


def _conditions(filters: Mapping[str, Any], known: Mapping[str, str]) -> tuple[list[str], dict[str, Any]]:
    given = {name: value for name, value in filters.items() if value is not None and name in known}
    return [known[name] for name in given], {
        name: str(value) if name.endswith("_id") else value for name, value in given.items()
    }


def _paged(
    tx: Tx, select: str, by: str, id_: str, id_name: str, by_name: str, conditions: list[str],
    args: dict[str, Any],
    limit: int, cursor: str | None,
) -> tuple[list[Row], str | None]:  # fmt: skip
    after = Cursor.decode(cursor, 2)
    if after:
        conditions = [*conditions, f"({by}, {id_}) < (%(after)s::timestamptz, %(after_id)s::uuid)"]
        args = args | {"after": after[0], "after_id": after[1]}
    where = " WHERE " + " AND ".join(conditions) if conditions else ""
    rows = tx.all(
        f"{select}{where} ORDER BY {by} DESC, {id_} DESC LIMIT %(limit)s", args | {"limit": limit + 1}
    )
    more = len(rows) > limit
    rows = rows[:limit]
    return rows, Cursor.encode(rows[-1][by_name], str(rows[-1][id_name])) if more else None
