"""Whether the figures shown equal a recount of the raw facts; they must, always."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from services.reporting.store import journey
from services.reporting.store.rollup import FUNNEL_COLUMNS, NPS_COLUMNS, count
from shared.db import Tx


@dataclass(frozen=True, slots=True)
class Difference:
    """A count that is not what the facts give. `program_id` and `touchpoint` say where, `day` when."""

    table: str
    column: str
    day: date
    program_id: str
    touchpoint: str
    shown: int
    counted: int


@dataclass(frozen=True, slots=True)
class Recount:
    """What a recount found: `responses` and `invitations` counted, `differences` (at most 100 of each
    rollup), and how many invitations have stages other than the facts give."""

    responses: int
    invitations: int
    differences: tuple[Difference, ...]
    stale_invitations: int

    @property
    def equal(self) -> bool:
        """Whether all is as it must be."""
        return not self.differences and not self.stale_invitations


def recount(tx: Tx) -> Recount:
    """Counts everything again from the facts, in one snapshot if the transaction is repeatable read.

    Reads all answers and invitations: for a check, not for a page.
    """
    return Recount(
        responses=int(tx.value("SELECT count(*) FROM response WHERE version > 0")),
        invitations=int(tx.value("SELECT count(*) FROM invitation WHERE asked")),
        differences=(
            *_differences(tx, "nps_day", tuple(NPS_COLUMNS)),
            *_differences(tx, "funnel_day", tuple(FUNNEL_COLUMNS)),
        ),
        stale_invitations=journey.differing(tx),
    )


def _differences(tx: Tx, table: str, columns: tuple[str, ...]) -> list[Difference]:
    pairs = ", ".join(
        f"coalesce(shown.{c}, 0) AS shown_{c}, coalesce(counted.{c}, 0) AS counted_{c}" for c in columns
    )
    rows = tx.all(
        f"""SELECT * FROM (
            SELECT day, program_id, touchpoint, {pairs}
            FROM {table} AS shown FULL JOIN ({count(table)}) AS counted USING (day, program_id, touchpoint)
        ) AS pairs
        WHERE ({", ".join(f"shown_{c}" for c in columns)}) IS DISTINCT FROM
              ({", ".join(f"counted_{c}" for c in columns)})
        ORDER BY day, program_id, touchpoint LIMIT 100"""  # noqa: S608 - names from this package
    )
    return [
        Difference(
            table,
            column,
            row["day"],
            str(row["program_id"]),
            row["touchpoint"],
            row[f"shown_{column}"],
            row[f"counted_{column}"],
        )
        for row in rows
        for column in columns
        if row[f"shown_{column}"] != row[f"counted_{column}"]
    ]
