"""The company's settings as they stand."""

from __future__ import annotations

from typing import Any

from shared.db import Row, Tx

# What events, pages and `hearback config` know; the rest of the row is the house's own.
FIELDS = (
    "name",
    "sender_name",
    "sender_email",
    "reply_to",
    "postal_address",
    "colour",
    "language",
    "time_zone",
    "business_hours",
    "first_contact_hours",
    "fallback_owner",
    "ask_gap_days",
    "contact_limit",
)

_OFFICE = ["09:00", "17:00"]
DEFAULTS: dict[str, Any] = {
    "name": "Your company",
    "sender_name": "Your company",
    "sender_email": "feedback@example.com",
    "reply_to": "feedback@example.com",
    "postal_address": "",
    "colour": "#1f5fbf",
    "language": "en",
    "time_zone": "UTC",
    "business_hours": dict.fromkeys(("mon", "tue", "wed", "thu", "fri"), _OFFICE),
    "first_contact_hours": 8,
    "fallback_owner": None,
    "ask_gap_days": 30,
    "contact_limit": 6,
}


def company(tx: Tx) -> Row:
    """The company's row; what it would be with defaults, version 0, as long as there is none."""
    row = tx.one("SELECT * FROM company")
    return row or {"version": 0, **DEFAULTS, "setup_done_at": None}
