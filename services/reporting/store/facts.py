"""Facts as the log tells them: which fields of which event are kept where, and how a batch is written.

A lower or equal version changes nothing, so events may come again and in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2.extras import Json

from services.reporting.store.journey import ZONE
from services.reporting.store.rollup import refill
from shared.db import Tx
from shared.events.envelope import Event

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fact:
    """A table of facts. `columns` maps each column to its SQL type; the value is the event's field of the
    same name. `at` is the field whose day is kept. `fixed` columns keep the first value they got."""

    table: str
    aggregate: str
    columns: Mapping[str, str]
    at: str | None = None
    fixed: tuple[str, ...] = ()

    @property
    def template(self) -> str:
        """The placeholders of one row, typed, so that a column of nulls is still of its type."""
        values = [f"%({column})s::{kind}" for column, kind in self.columns.items()]
        if self.at:
            values.append(f"(%({self.at})s::timestamptz AT TIME ZONE {ZONE})::date")
        return f"({', '.join(values)})"

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.columns, "day") if self.at else tuple(self.columns)


_WHERE = {"program_id": "uuid", "touchpoint": "text", "account_id": "uuid"}

PROGRAM = Fact(
    "program",
    "id",
    {"id": "uuid", "version": "bigint", "name": "text", "touchpoint": "text", "state": "text"},
)
CUSTOMER = Fact(
    "customer",
    "id",
    {"id": "uuid", "version": "bigint", "name": "text", "account_id": "uuid", "account_name": "text"},
)
CHANGE = Fact(
    "change",
    "change_id",
    {
        "id": "uuid",
        "version": "bigint",
        "title": "text",
        "themes": "jsonb",
        "published_at": "timestamptz",
        "withdrawn_at": "timestamptz",
        "audience_count": "integer",
    },
)
SKIP = Fact(
    "skip",
    "skip_id",
    {"id": "uuid", "version": "bigint", "customer_id": "uuid", "invitation_id": "uuid"}
    | _WHERE
    | {"reason": "text", "at": "timestamptz"},
    at="at",
)
UNCONFIRMED = Fact(
    "unconfirmed",
    "invitation_id",
    {"invitation_id": "uuid", "version": "bigint", "customer_id": "uuid"}
    | _WHERE
    | {"account_name": "text", "channel": "text", "score": "smallint", "band": "text"}
    | {"clicked_at": "timestamptz"},
    at="clicked_at",
)
DELIVERY = Fact(
    "delivery",
    "delivery_id",
    {
        "id": "uuid",
        "version": "bigint",
        "kind": "text",
        "ref_id": "uuid",
        "customer_id": "uuid",
        "channel": "text",
        "state": "text",
        "reason": "text",
        "at": "timestamptz",
    },
)
# Its day is derived with its stages. Program and touchpoint stay what they were at first: an invitation
# does not change them, and the rollup counts under them.
INVITATION = Fact(
    "invitation",
    "invitation_id",
    {"id": "uuid", "version": "bigint", "customer_id": "uuid"}
    | _WHERE
    | {"channel": "text", "sent_at": "timestamptz", "expires_at": "timestamptz", "test": "boolean"},
    fixed=("program_id", "touchpoint"),
)
TASK = Fact(
    "task",
    "task_id",
    {
        "id": "uuid",
        "version": "bigint",
        "state": "text",
        "account_id": "uuid",
        "customer_id": "uuid",
        "owner_id": "uuid",
        "owner_name": "text",
        "opened_at": "timestamptz",
        "due_at": "timestamptz",
        "first_contact_at": "timestamptz",
        "contacted_at": "timestamptz",
        "lowest_score": "smallint",
        "theme_id": "uuid",
        "theme": "text",
        "outcome": "text",
        "resolved_at": "timestamptz",
        "escalated_at": "timestamptz",
    },
)
NOTICE = Fact(
    "notice",
    "notice_id",
    {
        "id": "uuid",
        "version": "bigint",
        "change_id": "uuid",
        "customer_id": "uuid",
        "response_id": "uuid",
        "state": "text",
        "channel": "text",
        "reason": "text",
        "sent_at": "timestamptz",
        "helped": "boolean",
        "helped_at": "timestamptz",
    },
)
RESPONSE = Fact(
    "response",
    "response_id",
    {"id": "uuid", "version": "bigint", "invitation_id": "uuid", "customer_id": "uuid"}
    | _WHERE
    | {"account_name": "text", "channel": "text", "score": "smallint", "band": "text", "comment": "text"}
    | {"callback": "text", "answered_at": "timestamptz", "revised_at": "timestamptz", "source": "text"}
    | {"state": "text", "reason": "text"},
    at="answered_at",
)


def latest(fact: Fact, events: Iterable[Event]) -> list[Row]:
    """The newest event per aggregate as a row of `fact`, in the order of ids."""
    newest: dict[str, Event] = {}
    for event in events:
        key = str((event.data or {})[fact.aggregate])
        if key not in newest or newest[key].version < event.version:
            newest[key] = event
    return [_row(fact, key, event) for key, event in sorted(newest.items())]


def _row(fact: Fact, key: str, event: Event) -> Row:
    data: Row = dict(event.data or {})
    account = data.get("account")
    if account:
        data |= {"account_id": account["id"], "account_name": account["name"]}
    data |= {"id": key, "version": event.version}
    if fact is CUSTOMER:
        data["name"] = data["name"] or data["external_id"] or data["email"] or data["phone"]
    elif fact is NOTICE:
        data["state"] = "skipped" if event.type == "notice.skipped" else "sent"
    elif fact is CHANGE:
        data["themes"] = Json(data["themes"])
    return {column: data.get(column) for column in fact.columns} | {
        field: data.get(field) for field in ("task_id", "response_ids") if field in data
    }


def upsert(tx: Tx, fact: Fact, rows: Sequence[Row]) -> set[str]:
    """Writes rows whose version is higher than what is there; returns the ids of those."""
    key, *others = fact.names
    sets = ", ".join(
        f"{c} = coalesce({fact.table}.{c}, excluded.{c})" if c in fact.fixed else f"{c} = excluded.{c}"
        for c in others
    )
    changed = tx.values(
        f"INSERT INTO {fact.table} ({', '.join(fact.names)}) VALUES %s "  # noqa: S608 - names from this module
        f"ON CONFLICT ({key}) DO UPDATE SET {sets} WHERE {fact.table}.version < excluded.version "
        f"RETURNING {key}",
        rows,  # type: ignore[arg-type]
        fact.template,
        fetch=True,
    )
    return {str(row[key]) for row in changed}


def stubs(tx: Tx, fact: Fact, ids: Iterable[str]) -> None:
    """Makes rows of unknown ids and locks them all, in the order of ids.

    A statement that starts after this sees whatever others did to them; whoever comes later waits.
    """
    ordered = sorted(set(ids))
    if ordered:
        table = fact.table
        tx.execute(
            f"INSERT INTO {table} (id) SELECT unnest(%s::uuid[]) ON CONFLICT (id) DO NOTHING",
            (ordered,),
        )
        tx.execute(
            f"SELECT 1 FROM {table} WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE",  # noqa: S608
            (ordered,),
        )


def company(tx: Tx, events: Iterable[Event]) -> None:
    """The company; when its zone moved, every day is worked out again. The caller keeps all others out."""
    newest = max(events, key=lambda event: event.version)
    data = newest.data or {}
    before = tx.value(f"SELECT {ZONE}")
    tx.execute(
        """INSERT INTO company (version, name, time_zone, business_hours, first_contact_hours)
           VALUES (%s, %s, %s, %s, %s)
           ON CONFLICT (only_row) DO UPDATE SET version = excluded.version, name = excluded.name,
               time_zone = excluded.time_zone, business_hours = excluded.business_hours,
               first_contact_hours = excluded.first_contact_hours
           WHERE company.version < excluded.version""",
        (
            newest.version,
            data["name"],
            data["time_zone"],
            Json(data["business_hours"]),
            data["first_contact_hours"],
        ),
    )
    if tx.value(f"SELECT {ZONE}") != before:
        tx.execute("SET LOCAL statement_timeout = 0")
        for table, column in (
            ("response", "answered_at"),
            ("invitation", "sent_at"),
            ("skip", "at"),
            ("unconfirmed", "clicked_at"),
        ):
            day = f"({column} AT TIME ZONE {ZONE})::date"
            tx.execute(f"UPDATE {table} SET day = {day} WHERE day IS DISTINCT FROM {day}")  # noqa: S608
        refill(tx)
