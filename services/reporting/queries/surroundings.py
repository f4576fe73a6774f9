"""What a report needs beside its figures: filters to choose from, published changes, skips by reason."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from services.reporting.selection import Selection
from services.reporting.store.journey import ZONE
from shared.db import Tx


@dataclass(frozen=True, slots=True)
class Published:
    """A change of ours with the day it was told to customers."""

    id: str
    title: str
    day: date


def programs(tx: Tx) -> list[tuple[str, str]]:
    """(id, name) of all programs, by name."""
    return [
        (str(row["id"]), row["name"]) for row in tx.all("SELECT id, name FROM program ORDER BY lower(name)")
    ]


def touchpoints(tx: Tx) -> list[str]:
    """All touchpoints that were ever asked or answered at."""
    # A loose index scan would be faster for very many days; a rollup has few rows.
    return [
        row["touchpoint"]
        for row in tx.all("SELECT touchpoint FROM nps_day UNION SELECT touchpoint FROM funnel_day ORDER BY 1")
    ]


def published(tx: Tx, selection: Selection) -> list[Published]:
    """Changes published in the period and not withdrawn since, oldest first."""
    day = f"(published_at AT TIME ZONE {ZONE})::date"
    rows = tx.all(
        f"""SELECT id, title, {day} AS day FROM change
            WHERE published_at IS NOT NULL AND withdrawn_at IS NULL AND {day} BETWEEN %s AND %s
            ORDER BY published_at, id""",  # noqa: S608 - our own text
        (selection.period.start, selection.period.end),
    )
    return [Published(str(row["id"]), row["title"], row["day"]) for row in rows]


def skips_by_reason(tx: Tx, selection: Selection) -> list[tuple[str, int]]:
    """(reason, how often) of the period, most frequent first."""
    where, values = selection.where("f.day")
    rows = tx.all(
        f"SELECT f.reason, count(*) AS n FROM skip f WHERE {where} GROUP BY 1 ORDER BY 2 DESC, 1",  # noqa: S608
        values,
    )
    return [(row["reason"], row["n"]) for row in rows]


def anything(tx: Tx) -> bool:
    """Whether anybody was ever asked."""
    return tx.value("SELECT 1 FROM funnel_day LIMIT 1") is not None
