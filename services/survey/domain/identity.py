"""Who a row of customer data is about: external id, else e-mail, else phone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

# From the strongest to the weakest; the columns under which a customer keeps them.
KEYS = ("external_id", "email_key", "phone")
LABELS = {"external_id": "external id", "email_key": "e-mail", "phone": "phone"}
FIELD = {"external_id": "external_id", "email_key": "email", "phone": "phone"}

Customer = TypeVar("Customer", bound=Mapping[str, Any])


class Clash(ValueError):
    """A row contradicts who is known already. `column` is the field to look at."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


class Incomplete(Clash):
    """A row that contradicts nobody, but leaves something out that it needs."""


def match(keys: Mapping[str, str | None], candidates: Iterable[Customer]) -> Customer | None:
    """The one of `candidates` (customers who share a key with the row) whom the row is about, or None.

    Raises `Clash` when the row matches two customers, or shares a weaker key with a customer while a
    stronger one that both have differs: those are two people.
    """
    found: dict[int, Customer] = {}
    by: dict[int, str] = {}
    for customer in candidates:
        shared = [key for key in KEYS if keys.get(key) and keys[key] == customer[key]]
        if shared:
            found[id(customer)] = customer
            by[id(customer)] = shared[0]
    if len(found) > 1:
        names = [LABELS[key] for key in KEYS if key in by.values()]
        raise Clash(
            FIELD[max(by.values(), key=KEYS.index)],
            f"the row matches two customers: {_and(names)} belong to different ones",
        )
    for which, customer in found.items():
        for key in KEYS:
            if not keys.get(key) or not customer[key]:
                continue
            if keys[key] == customer[key]:
                break
            raise Clash(
                FIELD[by[which]], f"belongs to another customer, whose {LABELS[key]} differs from this row's"
            )
        return customer
    return None


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
