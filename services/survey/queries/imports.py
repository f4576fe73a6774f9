"""Reads imports: how far one is, and which lines were bad."""

from __future__ import annotations

from typing import Any

from shared.db import Row, Tx
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.web.paging import Cursor

OPEN = ("uploading", "waiting", "running")


def get(tx: Tx, run_id: str) -> Row:
    """One run. Raises `NotFound`."""
    row = tx.one("SELECT * FROM import_run WHERE id = %s", (run_id,)) if is_id(run_id) else None
    if row is None:
        raise NotFound("There is no such import.")
    return row


def latest(tx: Tx, cursor: str | None = None, limit: int = 20) -> tuple[list[Row], str | None]:
    """Runs, newest first, and the cursor of the next page."""
    after: Any = Cursor.decode(cursor, 1)
    if after is not None and not is_id(str(after[0])):
        raise Invalid(
            "This page's cursor is damaged: start again from the first page.", fields={"cursor": "damaged"}
        )
    rows = tx.all(
        "SELECT * FROM import_run WHERE %(id)s::uuid IS NULL OR (started_at, id) <"
        " (SELECT started_at, id FROM import_run WHERE id = %(id)s::uuid)"
        " ORDER BY started_at DESC, id DESC LIMIT %(limit)s",
        {"id": after[0] if after else None, "limit": limit + 1},
    )
    more = len(rows) > limit
    return rows[:limit], Cursor.encode(rows[limit - 1]["id"]) if more else None


def errors(tx: Tx, run_id: str, cursor: str | None = None, limit: int = 100) -> tuple[list[Row], str | None]:
    """Bad lines in their order, and the cursor of the next page."""
    after = Cursor.decode(cursor, 1)
    line = after[0] if after and isinstance(after[0], int) else 0
    rows = tx.all(
        "SELECT line, column_name, reason FROM import_error WHERE run_id = %s AND line > %s"
        " ORDER BY line LIMIT %s",
        (run_id, line, limit + 1),
    )
    more = len(rows) > limit
    return rows[:limit], Cursor.encode(rows[limit - 1]["line"]) if more else None
