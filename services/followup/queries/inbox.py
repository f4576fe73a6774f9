"""What else waits in the inbox: customers who are perhaps unhappy, and nobody knows for sure."""

from __future__ import annotations

from services.followup.domain.by import By
from shared.db import Row, Tx


def perhaps_unhappy(tx: Tx, by: By, *, dismissed: bool = False, limit: int = 100) -> list[Row]:
    """Clicks on 0–6 without an answer, and answers that contradict themselves; newest first.

    Whoever is limited sees those of their accounts, and those whose manager has no login.
    """
    return tx.all(
        f"""SELECT u.*, c.name AS customer_name, c.phone, c.email, a.name AS account_name, a.tier,
                   a.annual_value, r.comment
            FROM unconfirmed u LEFT JOIN customer c ON c.id = u.customer_id
            LEFT JOIN account a ON a.id = u.account_id
            LEFT JOIN response r ON r.invitation_id = u.invitation_id
            WHERE u.dismissed_at IS {"NOT" if dismissed else ""} NULL AND {visible(by)}
            ORDER BY u.at DESC, u.invitation_id LIMIT %(limit)s""",  # noqa: S608
        {"me": by.staff_id, "limit": limit},
    )


def count_perhaps_unhappy(tx: Tx, by: By) -> int:
    """How many of them nobody has dismissed."""
    return int(
        tx.value(
            f"SELECT count(*) FROM unconfirmed u WHERE u.dismissed_at IS NULL AND {visible(by)}",  # noqa: S608
            {"me": by.staff_id},
        )
    )


def visible(by: By) -> str:
    """The condition on `u` under which `by` may see one of them; takes `me`."""
    if not by.limited:
        return "true"
    return """(u.manager_email IS NULL
               OR u.manager_email = (SELECT email FROM staff WHERE id = %(me)s)
               OR NOT EXISTS (SELECT 1 FROM staff m WHERE m.email = u.manager_email AND NOT m.disabled))"""
