"""Reads about programs: how they do, whom an ask would reach, how an ask goes, and what is uncertain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.survey.commands.ask import decide, next_customers
from services.survey.domain.bands import net_promoter_score
from services.survey.queries.audience import AUDIENCE, audience_sql, check_audience
from shared.db import Row, Tx
from shared.errors import NotFound
from shared.ids import is_id

REASONS = {
    "opted_out": "opted out",
    "no_address": "no address to write to",
    "recently_asked": "asked not long ago",
    "bounced": "their address does not work",
    "contact_limit": "had enough messages lately",
    "expired": "the time to answer was over",
    "unknown_customer": "deleted meanwhile",
    "erased": "deleted meanwhile",
}

_FIGURES = """SELECT p.*, f.invited, f.waiting, f.sent, f.answered, f.promoters, f.passives,
    f.detractors, l.last_ask
    FROM program p
    LEFT JOIN LATERAL (
        SELECT count(*) AS invited, count(*) FILTER (WHERE i.state = 'queued') AS waiting,
               count(i.sent_at) AS sent, count(r.id) FILTER (WHERE r.state = 'counted') AS answered,
               count(*) FILTER (WHERE r.state = 'counted' AND r.score >= 9) AS promoters,
               count(*) FILTER (WHERE r.state = 'counted' AND r.score BETWEEN 7 AND 8) AS passives,
               count(*) FILTER (WHERE r.state = 'counted' AND r.score <= 6) AS detractors
        FROM invitation i LEFT JOIN response r ON r.invitation_id = i.id
        WHERE i.program_id = p.id AND NOT i.test) f ON true
    LEFT JOIN LATERAL (SELECT max(requested_at) AS last_ask FROM ask_run WHERE program_id = p.id) l ON true"""


def programs(tx: Tx) -> list[Row]:
    """All programs with their figures, by name: sent, answered, rate (0 to 1 or None), nps, margin, n."""
    return [_figures(row) for row in tx.all(_FIGURES + " ORDER BY p.state, lower(p.name)")]


def program(tx: Tx, id_or_name: str) -> Row:
    """One program with its figures, by id or by name. Raises `NotFound`."""
    where = " WHERE p.id = %s" if is_id(id_or_name) else " WHERE lower(p.name) = lower(%s)"
    row = tx.one(_FIGURES + where, (id_or_name,))
    if row is None:
        raise NotFound("There is no such program.")
    return _figures(row)


def _figures(row: Row) -> Row:
    found = net_promoter_score(row["promoters"], row["passives"], row["detractors"])
    row["nps"], row["margin"] = found if found else (None, None)
    row["n"] = row["answered"]
    row["rate"] = row["answered"] / row["sent"] if row["sent"] else None
    return row


@dataclass
class Reach:
    """Whom an ask would reach now; `complete` is false when only the first of many were looked at."""

    total: int
    looked_at: int = 0
    channels: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def asked(self) -> int:
        return sum(self.channels.values())

    @property
    def complete(self) -> bool:
        return self.looked_at >= self.total


def reach(
    tx: Tx,
    row: Row,
    audience: Mapping[str, Any],
    *,
    touchpoint: str | None = None,
    channel: str | None = None,
    limit: int = 20_000,
) -> Reach:
    """A dry run of an ask, over at most `limit` customers. Raises `Invalid` for a senseless audience."""
    audience = check_audience(audience)
    where, args = audience_sql(audience)
    found = Reach(tx.value(f"SELECT count(*) FROM customer c {AUDIENCE} WHERE {where}", args))  # noqa: S608
    after = None
    while found.looked_at < limit:
        batch = next_customers(tx, audience, after, tx.now, min(2000, limit - found.looked_at))
        if not batch:
            break
        for decision in decide(tx, row, batch, touchpoint, channel, lock=False):
            if decision.channel:
                found.channels[decision.channel] += 1
            else:
                found.reasons[decision.reason or ""] += 1
        after = batch[-1]["id"]
        found.looked_at += len(batch)
    return found


_RUNS = """SELECT a.*, p.name AS program_name FROM ask_run a JOIN program p ON p.id = a.program_id"""


def runs(tx: Tx, program_id: str, limit: int = 10) -> list[Row]:
    """The last asks of a program, newest first."""
    return tx.all(
        _RUNS + " WHERE a.program_id = %s ORDER BY a.requested_at DESC LIMIT %s", (program_id, limit)
    )


def run(tx: Tx, run_id: str) -> Row:
    """One ask: how far it is, what became of its messages, why some were skipped. Raises `NotFound`."""
    row = tx.one(_RUNS + " WHERE a.id = %s", (run_id,)) if is_id(run_id) else None
    if row is None:
        raise NotFound("There is no such ask.")
    row["reasons"] = tx.all(
        "SELECT reason, count(*) AS count FROM skip WHERE ask_run_id = %s GROUP BY reason"
        " ORDER BY count DESC, reason",
        (run_id,),
    )
    row["states"] = {
        found["state"]: found["count"]
        for found in tx.all(
            "SELECT state, count(*) FROM invitation WHERE ask_run_id = %s GROUP BY state", (run_id,)
        )
    }
    row["answered"] = tx.value(
        "SELECT count(*) FROM invitation i JOIN response r ON r.invitation_id = i.id"
        " WHERE i.ask_run_id = %s AND r.state = 'counted'",
        (run_id,),
    )
    return row


def skipped(tx: Tx, run_id: str, limit: int = 200) -> list[Row]:
    """Who was not asked, and why."""
    return tx.all(
        "SELECT s.customer_id, s.reason, s.at, c.name, c.email, c.phone, c.external_id FROM skip s"
        " JOIN customer c ON c.id = s.customer_id WHERE s.ask_run_id = %s ORDER BY s.reason, c.id LIMIT %s",
        (run_id, limit),
    )


def uncertain(tx: Tx, limit: int = 200) -> list[Row]:
    """Messages of which nobody knows whether they left, and about which nobody has decided, oldest first."""
    return tx.all(
        "SELECT d.id, d.kind, d.channel, d.reason, d.created_at, d.claimed_at, d.handed_at,"
        " d.customer_id, c.name,"
        " c.email, c.phone, p.name AS program_name FROM delivery d JOIN customer c ON c.id = d.customer_id"
        " LEFT JOIN invitation i ON i.id = d.ref_id LEFT JOIN program p ON p.id = i.program_id"
        " WHERE d.state = 'uncertain' AND d.settled_at IS NULL ORDER BY d.created_at, d.id LIMIT %s",
        (limit,),
    )


def uncertain_count(tx: Tx) -> int:
    """How many of those there are."""
    return int(tx.value("SELECT count(*) FROM delivery WHERE state = 'uncertain' AND settled_at IS NULL"))
