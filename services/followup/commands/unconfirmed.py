"""Taking somebody off the list of the perhaps unhappy, and putting them back."""

from __future__ import annotations

from typing import Any

from services.followup.domain.by import By
from services.followup.queries.inbox import visible
from shared.db import Tx
from shared.errors import NotFound


def dismiss(tx: Tx, by: By, invitation_id: str, *, undo: bool = False) -> None:
    """Takes one off the list (or puts it back). Raises `NotFound` when it is not there for `by`."""
    args: dict[str, Any] = {"id": invitation_id, "me": by.staff_id, "at": None if undo else tx.now}
    touched = tx.execute(
        f"""UPDATE unconfirmed u SET dismissed_at = %(at)s, dismissed_by = %(me)s
            WHERE u.invitation_id = %(id)s AND {visible(by)}""",  # noqa: S608
        args,
    )
    if not touched:
        raise NotFound("There is nothing to dismiss: perhaps the answer has come.")
