"""What can be said about a task: its outcomes, channels, and how urgent it is."""

from __future__ import annotations

from datetime import datetime

OUTCOMES = {
    "solved": "Solved",
    "explained": "Explained; nothing to solve",
    "promised": "Promised; we will fix it",
    "not_reached": "Not reached",
    "lost": "The customer leaves",
    "no_contact": "Not called, as they asked",
}
CHANNELS = {"phone": "Phone", "email": "E-mail", "sms": "SMS", "visit": "Visit"}

LONGEST_NOTE = 4000

# The same sentence for both, so that nobody learns which it is.
GONE = "There is no such task, or it is not yours."


def stage(state: str, call_by: datetime | None, reached: bool, now: datetime) -> str:
    """Where a task stands: closed, overdue, waiting (for a call) or talking (reached, not resolved)."""
    if state != "open":
        return "closed"
    if call_by is None:
        return "talking" if reached else "waiting"
    return "overdue" if call_by < now else "waiting"
