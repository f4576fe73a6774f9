"""From the cells of one record to what they say about one customer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.survey.domain import values
from services.survey.domain.columns import Columns
from services.survey.domain.csvrows import Record
from services.survey.domain.values import BadValue

# What a customer may have but an account must be there for.
OF_ACCOUNT = ("manager_email", "tier", "annual_value")


@dataclass(frozen=True, slots=True)
class Row:
    """What one row or request says about a customer.

    A field that is absent from `values` changes nothing; None clears it (a file never does). `line` is
    where it stands in its file. With `customer_id` the row is about that customer, whatever its keys.
    """

    values: Mapping[str, Any]
    properties: Mapping[str, str | None] = field(default_factory=dict)
    line: int = 0
    customer_id: str | None = None


class BadRow(Exception):
    """A row that cannot be taken: where it stands, the column as its file calls it, and why."""

    def __init__(self, line: int, column: str | None, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.column = column
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Checks:
    """How addresses are checked; each returns the address to keep or raises `BadValue`."""

    email: Callable[[str], str]
    phone: Callable[[str], str]

    def clean(self, name: str, text: str) -> Any:
        """The value to keep for a field's text. Raises `BadValue` with the reason."""
        if "\0" in text:
            raise BadValue("contains a NUL byte")
        if len(text) > values.MAX[name]:
            raise BadValue(f"is longer than {values.MAX[name]} characters")
        match name:
            case "email":
                return self.email(text)
            case "manager_email":
                return self.email(text).casefold()
            case "phone":
                return self.phone(text)
            case "annual_value":
                return values.money(text)
            case "language":
                return values.language(text)
            case "time_zone":
                return values.time_zone(text)
            case _:
                return values.one_line(text)


def read(record: Record, columns: Columns, checks: Checks) -> Row:
    """What a record says. Raises `BadRow` with the first thing that is wrong with it."""
    if record.problem:
        raise BadRow(record.line, None, record.problem)
    cells = record.cells
    if len(cells) != len(columns):
        extra = cells[len(columns) :]
        if len(cells) < len(columns) or any(cell.strip() for cell in extra):
            raise BadRow(
                record.line,
                None,
                f"the line has {len(cells)} cells, the first line has {len(columns)} columns",
            )
    found: dict[str, Any] = {}
    for position, name in columns.fields.items():
        text = cells[position].strip()
        if not text:
            continue
        try:
            found[name] = checks.clean(name, text)
        except BadValue as error:
            raise BadRow(record.line, columns.labels[position], str(error)) from None
    names = [found.pop(part) for part in ("first_name", "last_name") if part in found]
    if names:
        found["name"] = " ".join(names)
    properties: dict[str, str | None] = {}
    total = 0
    for position, label in columns.properties.items():
        text = cells[position].strip()
        if not text:
            continue
        if len(text) > values.MAX_PROPERTY:
            raise BadRow(record.line, label, f"is longer than {values.MAX_PROPERTY:,} characters")
        properties[label] = text
        total += len(text)
    if total > values.MAX_PROPERTIES_TOTAL:
        raise BadRow(
            record.line,
            None,
            f"the further columns are longer than {values.MAX_PROPERTIES_TOTAL:,} characters",
        )
    if not any(found.get(key) for key in ("external_id", "email", "phone")):
        raise BadRow(record.line, None, "has neither an external id nor an e-mail nor a phone number")
    return Row(found, properties, record.line)
