"""Who may do what: staff roles, the scopes of API keys, and when somebody stands in for somebody."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date

ROLES = {
    "agent": "Account manager: their own and unowned tasks",
    "lead": "CX lead: every task, changes, reports",
    "admin": "Administrator: everything, staff and settings",
    "viewer": "Viewer: reports only",
}
OWNERS = ("agent", "lead", "admin")

SCOPES = {
    "customers:read": "Read customers and their answers",
    "customers:write": "Import and change customers",
    "programs:read": "Read programs",
    "programs:write": "Create programs and ask",
    "responses:read": "Read answers",
    "tasks:read": "Read tasks",
    "tasks:write": "Record attempts, hand over, resolve",
    "changes:read": "Read changes",
    "changes:write": "Write and publish changes",
    "reports:read": "Read reports",
    "mailbox:read": "Read the local mailbox",
    "metrics:read": "Read metrics",
}


@dataclass(frozen=True, slots=True)
class Person:
    """A staff member as far as owning tasks goes; days are the company's, `absent_until` included."""

    id: str
    email: str
    role: str
    disabled: bool
    absent_from: date | None = None
    absent_until: date | None = None
    deputy_id: str | None = None

    def is_absent(self, today: date) -> bool:
        """Away today. An open end counts until it is filled in."""
        if self.absent_from is None or today < self.absent_from:
            return False
        return self.absent_until is None or today <= self.absent_until

    def can_own(self) -> bool:
        """May be given tasks at all."""
        return not self.disabled and self.role in OWNERS


def owner(
    manager_email: str | None,
    fallback_email: str | None,
    by_email: Callable[[str], Person | None],
    by_id: Callable[[str], Person | None],
    today: date,
) -> Person | None:
    """Who gets a task: the account's manager, or their deputy while they are away; else the fallback owner
    or theirs; else nobody. One deputy is asked, not a chain of them."""
    for email in (manager_email, fallback_email):
        person = by_email(email) if email else None
        if person is None or not person.can_own():
            continue
        if not person.is_absent(today):
            return person
        deputy = by_id(person.deputy_id) if person.deputy_id else None
        if deputy is not None and deputy.can_own() and not deputy.is_absent(today):
            return deputy
    return None


def unknown_scopes(scopes: Mapping[str, object] | list[str] | tuple[str, ...]) -> list[str]:
    """Those of `scopes` that do not exist, sorted."""
    return sorted(set(scopes) - set(SCOPES))
