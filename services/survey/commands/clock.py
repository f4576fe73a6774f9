"""Survey's due work: asks in progress, expired invitations, unconfirmed clicks, things to forget."""

from __future__ import annotations

from datetime import timedelta

from services.survey import facts
from services.survey.commands import ask, tokens, unconfirmed
from shared.db import Database, Tx

_WEBHOOKS_KEPT = timedelta(days=30)


def expire(tx: Tx, limit: int = 200) -> bool:
    """Ends answering for invitations whose time is over; returns whether there may be more.

    One that may never have left ends too; nobody was told that it was sent, so its end is not told either.
    """
    due = tx.all(
        "SELECT id, customer_id FROM invitation WHERE state IN ('sent', 'uncertain') AND expires_at <= %s"
        " ORDER BY expires_at LIMIT %s",
        (tx.now, limit),
    )
    if not due:
        return False
    facts.lock_customers(tx, [str(row["customer_id"]) for row in due])
    rows = tx.all(
        "UPDATE invitation SET state = 'expired', version = version + 1 WHERE id = ANY(%s::uuid[]) AND"
        " state IN ('sent', 'uncertain')"
        " RETURNING id AS invitation_id, customer_id, expires_at, sent_at",
        ([str(row["id"]) for row in due],),
    )
    facts.publish(tx, [facts.invitation_expired(row) for row in rows if row["sent_at"]])
    return len(due) == limit


def forget(tx: Tx) -> bool:
    """Removes what has served its time: dead tokens, old evidence, ids of old webhooks; True for more."""
    webhooks = tx.execute(
        "DELETE FROM webhook_event WHERE (provider, event_id) IN"
        " (SELECT provider, event_id FROM webhook_event WHERE at < %s LIMIT 1000)",
        (tx.now - _WEBHOOKS_KEPT,),
    )
    return max(webhooks, tokens.forget(tx), unconfirmed.forget_evidence(tx)) >= 1000


def ask_step(db: Database) -> bool:
    """The next batch of an ask in progress; for `shared.roles.every(0.1, …)`."""
    with db.transaction() as tx:
        return ask.step_any(tx)


def due_step(db: Database) -> bool:
    """Expired invitations and unconfirmed clicks; for `shared.roles.every` with a few seconds."""
    with db.transaction() as tx:
        more = expire(tx)
    with db.transaction() as tx:
        return unconfirmed.report(tx) or more


def forget_step(db: Database) -> bool:
    """For `shared.roles.every` with an hour."""
    with db.transaction() as tx:
        return forget(tx)
