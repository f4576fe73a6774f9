"""Takes an answer out of every count with a reason, and puts it back."""

from __future__ import annotations

from collections.abc import Sequence

from services.survey import facts
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound


def exclude(tx: Tx, response_id: str, reason: str, by: str) -> Row:
    """Takes an answer out of every count, as a test, with a reason of 3 to 500 characters; can be undone.

    Raises `Invalid` without a reason, `NotFound`, `Conflict` when it is excluded already.
    """
    reason = " ".join(reason.split())
    if not 3 <= len(reason) <= 500:
        raise Invalid(
            "Say in a few words why this answer does not count.", fields={"reason": "3 to 500 characters"}
        )
    return _set_state(tx, response_id, "excluded", reason, by)


def include(tx: Tx, response_id: str, by: str) -> Row:
    """Counts an excluded or quarantined answer again. Raises `NotFound`, `Conflict`."""
    return _set_state(tx, response_id, "counted", None, by)


def _set_state(tx: Tx, response_id: str, state: str, reason: str | None, by: str) -> Row:
    if not facts.lock_customers(tx, _customer_of(tx, response_id)):
        raise NotFound("There is no such answer.")
    row = tx.one(facts.RESPONSES + " WHERE r.id = %s", (response_id,))
    if row is None:
        raise NotFound("There is no such answer.")
    if row["state"] == state:
        raise Conflict(
            "This answer is excluded already." if state == "excluded" else "This answer is counted already."
        )
    if state == "counted" and row["test"]:
        raise Conflict("This answers a test message; it is never counted.")
    row |= {"version": row["version"] + 1, "state": state, "state_reason": reason, "state_by": by}
    tx.execute(
        "UPDATE response SET version = %s, state = %s, state_reason = %s, state_by = %s WHERE id = %s",
        (row["version"], state, reason, by, response_id),
    )
    facts.publish(tx, [facts.excluded_event(row, tx.now)])
    return row


def _customer_of(tx: Tx, response_id: str) -> Sequence[str]:
    return [
        str(row["customer_id"])
        for row in tx.all("SELECT customer_id FROM response WHERE id = %s", (response_id,))
    ]
