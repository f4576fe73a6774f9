"""SQL of the two rollups: how differences of facts become differences of counts, each in one statement."""

from __future__ import annotations

from services.reporting.domain.funnel import COLUMNS
from shared.db import Tx

NPS_COLUMNS: dict[str, str] = {
    "promoters": "state = 'counted' AND band = 'promoter'",
    "passives": "state = 'counted' AND band = 'passive'",
    "detractors": "state = 'counted' AND band = 'detractor'",
    "quarantined": "state = 'quarantined'",
    "excluded": "state = 'excluded'",
}
"""Each count of `nps_day`, and which response it counts."""

FUNNEL_COLUMNS: dict[str, str] = {column: column for column in COLUMNS}
"""Each count of `funnel_day`, and the flag of an invitation that it counts."""

_TABLES = {"nps_day": NPS_COLUMNS, "funnel_day": FUNNEL_COLUMNS}


def feed(table: str) -> str:
    """The last part of a statement whose CTE `delta` has day, program_id, touchpoint, `sign` (+1 or −1) and
    what the counts of `table` look at. Adds up the signs; rows are touched in the order of their key."""
    counts = _TABLES[table]
    sums = ", ".join(
        f"coalesce(sum(sign) FILTER (WHERE {condition}), 0) AS {name}" for name, condition in counts.items()
    )
    columns = ", ".join(counts)
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in counts)
    changed = " OR ".join(f"{name} <> 0" for name in counts)
    return f"""
    INSERT INTO {table} (day, program_id, touchpoint, {columns})
    SELECT * FROM (
        SELECT day, program_id, touchpoint, {sums} FROM delta GROUP BY day, program_id, touchpoint
    ) AS sums
    WHERE {changed}
    ORDER BY day, program_id, touchpoint
    ON CONFLICT (day, program_id, touchpoint) DO UPDATE SET {added}"""  # noqa: S608 - names from this module


def count(table: str) -> str:
    """A query of the same counts, taken from the facts themselves."""
    counts = _TABLES[table]
    source = "response WHERE version > 0" if table == "nps_day" else "invitation WHERE asked"
    sums = ", ".join(f"count(*) FILTER (WHERE {condition}) AS {name}" for name, condition in counts.items())
    return f"""SELECT day, program_id, touchpoint, {sums}
               FROM {source} GROUP BY day, program_id, touchpoint"""  # noqa: S608 - names from this module


def refill(tx: Tx) -> None:
    """Empties both rollups and counts them again from the facts."""
    for table, counts in _TABLES.items():
        columns = ", ".join(counts)
        tx.execute(f"DELETE FROM {table}")  # noqa: S608 - names from this module
        tx.execute(f"INSERT INTO {table} (day, program_id, touchpoint, {columns}) {count(table)}")
