"""Who may be contacted, on which channel, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

CHANNELS = ("email", "sms")
BUDGET_WINDOW = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Contact:
    """What is known of reaching one customer.

    `opted_out` and `bounced` name channels. `spent` counts the messages of the last 30 days that
    reached the customer or may have; `last_asked` is when the last such invitation was queued or sent.
    """

    email: str | None = None
    phone: str | None = None
    opted_out: frozenset[str] = frozenset()
    bounced: frozenset[str] = frozenset()
    spent: int = 0
    last_asked: datetime | None = None

    def address(self, channel: str) -> str | None:
        return self.email if channel == "email" else self.phone


def channel_refusal(contact: Contact, channel: str) -> str | None:
    """Why `channel` may not be used for this customer now, or None."""
    if not contact.address(channel):
        return "no_address"
    if channel in contact.opted_out:
        return "opted_out"
    return "bounced" if channel in contact.bounced else None


def choose_channel(contact: Contact, preference: Sequence[str]) -> tuple[str | None, str | None]:
    """(the first channel of `preference` that may be used, None), or (None, the reason to tell).

    A reason that is a decision (opted out) is told before one that is a fault (bounced, no address).
    """
    reasons = []
    for channel in preference:
        reason = channel_refusal(contact, channel)
        if reason is None:
            return channel, None
        reasons.append(reason)
    for reason in ("opted_out", "bounced"):
        if reason in reasons:
            return None, reason
    return None, "no_address"


def may_ask(contact: Contact, now: datetime, gap_days: int, limit: int) -> str | None:
    """Why this customer is not to be asked now ('recently_asked', 'contact_limit'), or None.

    Asked at most once in `gap_days`, and at most `limit` messages in 30 days.
    """
    if contact.last_asked is not None and now - contact.last_asked < timedelta(days=gap_days):
        return "recently_asked"
    return may_send(contact, limit)


def may_send(contact: Contact, limit: int) -> str | None:
    """Why no further message may be sent now ('contact_limit'), or None."""
    return "contact_limit" if contact.spent >= limit else None
