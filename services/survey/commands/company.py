"""Changes the company's settings; every service that sends or promises anything learns of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg2.extras import Json

from services.survey.queries.company import DEFAULTS, FIELDS
from shared.db import Row, Tx
from shared.errors import Invalid
from shared.events import outbox

_COLUMNS = ("version", *FIELDS)


def ensure(tx: Tx) -> None:
    """Makes the company with its defaults when there is none yet, so that the others have one too."""
    _row(tx)


def change(tx: Tx, changes: Mapping[str, Any]) -> Row:
    """Changes settings (already validated, see `schemas.Company`) and returns the row.

    The same values again change nothing. Raises `Invalid` when the fallback owner has no login.
    """
    unknown = set(changes) - set(FIELDS)
    if unknown:
        raise Invalid("There is no such setting.", fields=dict.fromkeys(sorted(unknown), "is no setting"))
    row = _row(tx)
    new = {name: value for name, value in changes.items() if row[name] != value}
    if not new:
        return row
    owner = new.get("fallback_owner")
    if owner and not tx.one("SELECT 1 FROM staff WHERE email = %s AND NOT disabled", (owner,)):
        raise Invalid(
            "The fallback owner has no login here.",
            fields={
                "fallback_owner": f"nobody with the address {owner} can log in: add them to the staff first"
            },
        )
    # Names come from FIELDS only.
    columns = ", ".join(f"{name} = %({name})s" for name in new)
    changed = tx.one(
        f"UPDATE company SET version = version + 1, {columns} RETURNING *",  # noqa: S608
        {name: Json(value) if name == "business_hours" else value for name, value in new.items()},
    )
    if changed is None:
        raise LookupError("the company's row is gone")
    announce(tx, changed)
    return changed


def set_up(tx: Tx) -> None:
    """The first login's steps are done or put away: they are not offered again."""
    _row(tx)
    tx.execute("UPDATE company SET setup_done_at = %s WHERE setup_done_at IS NULL", (tx.now,))


def announce(tx: Tx, row: Mapping[str, Any], *, replay: bool = False) -> None:
    """Publishes the company's state; the caller has locked its row."""
    data = {name: row[name] for name in FIELDS}
    outbox.append(tx, "company.changed", "company", row["version"], data, replay=replay)


def _row(tx: Tx) -> Row:
    """The company's row, locked; made with its defaults when there is none."""
    made = tx.one(
        f"INSERT INTO company ({', '.join(_COLUMNS)}) VALUES %(values)s"  # noqa: S608
        " ON CONFLICT (only_row) DO NOTHING RETURNING *",
        {
            "values": tuple(
                Json(value) if name == "business_hours" else value
                for name, value in zip(_COLUMNS, (1, *(DEFAULTS[name] for name in FIELDS)), strict=True)
            )
        },
    )
    if made is not None:
        announce(tx, made)
        return made
    row = tx.one("SELECT * FROM company FOR NO KEY UPDATE")
    if row is None:
        raise LookupError("the company's row is gone")
    return row
