"""Reports score clicks that nobody confirmed, so that a perhaps unhappy customer never vanishes (rule 6)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from services.survey import facts
from services.survey.domain import answer as rules
from shared.db import Row, Tx


def report(tx: Tx, limit: int = 200) -> bool:
    """Reports score clicks nobody confirmed for 15 minutes, once per invitation; True for more.

    Clicks on different scores within seconds are a machine's and stay what they are: evidence.
    """
    before = tx.now - rules.UNCONFIRMED_AFTER
    due = tx.all(
        "SELECT DISTINCT invitation_id FROM (SELECT invitation_id FROM click"
        " WHERE NOT settled AND kind = 'get' AND score IS NOT NULL AND at < %s ORDER BY at LIMIT %s) k",
        (before, limit),
    )
    if not due:
        return False
    invitations = [str(row["invitation_id"]) for row in due]
    owners = tx.all("SELECT DISTINCT customer_id FROM invitation WHERE id = ANY(%s::uuid[])", (invitations,))
    facts.lock_customers(tx, [str(row["customer_id"]) for row in owners])
    clicks = tx.all(
        f"""SELECT k.id AS click_id, k.reported, x.found, {facts.UNCONFIRMED.removeprefix("SELECT ")}
        CROSS JOIN LATERAL (SELECT EXISTS (SELECT 1 FROM response r WHERE r.invitation_id = i.id)
            OR EXISTS (SELECT 1 FROM click o WHERE o.invitation_id = i.id AND o.reported) AS found) x
        WHERE k.invitation_id = ANY(%s::uuid[]) AND k.kind = 'get' AND k.score IS NOT NULL AND NOT i.test
        ORDER BY k.invitation_id, k.at""",  # noqa: S608
        (invitations,),
    )
    chosen = _unconfirmed(clicks, before)
    tx.execute(
        "UPDATE click SET settled = true, reported = id = ANY(%s::uuid[])"
        " WHERE invitation_id = ANY(%s::uuid[]) AND kind = 'get' AND NOT settled AND at < %s",
        ([str(row["click_id"]) for row in chosen], invitations, before),
    )
    facts.publish(tx, [facts.unconfirmed(row) for row in chosen])
    return len(due) >= limit


def _unconfirmed(clicks: Sequence[Row], before: datetime) -> list[Row]:
    """The last click of each unanswered invitation that no other score contradicts within seconds."""
    chosen: dict[str, Row] = {}
    for row in clicks:
        if row["found"] or row["clicked_at"] >= before:
            continue
        rivals = [
            other
            for other in clicks
            if other["invitation_id"] == row["invitation_id"]
            and other["score"] != row["score"]
            and abs(other["clicked_at"] - row["clicked_at"]) <= rules.CONTRADICTION
        ]
        if not rivals:
            chosen[row["invitation_id"]] = row
    return list(chosen.values())


def forget_evidence(tx: Tx, keep: timedelta = timedelta(days=400)) -> int:
    """Deletes evidence older than `keep`; returns how much."""
    return tx.execute(
        "DELETE FROM click WHERE id IN (SELECT id FROM click WHERE at < %s AND NOT reported LIMIT 1000)",
        (tx.now - keep,),
    )
