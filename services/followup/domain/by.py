"""Who did something: a member of staff, or a program in the company's name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class By:
    """`staff_id` is None for an API key and the command line; `name` is for people to read.

    Whoever is `limited` (an account manager) has to do with their own and unowned tasks only.
    """

    staff_id: str | None
    name: str
    limited: bool = False
