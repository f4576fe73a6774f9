"""Who is asking, as commands note it."""

from __future__ import annotations

from services.followup.domain.by import By
from shared.web import actor


def by() -> By:
    """The member of staff, or the API key, behind this request."""
    who = actor()
    return By(who.id if who.kind == "staff" else None, who.name, limited=who.is_agent)
