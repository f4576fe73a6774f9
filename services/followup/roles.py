"""What followup's relay, consumer, sender and clock do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from services.followup import handlers, notice_sender, rebuild, staff_sender
from services.followup.commands import login, reminders, staff_mail
from shared.channels.credentials import watched
from shared.db import Database, Tx
from shared.events.workers import ConsumerLoop, consumer_loop, relay_loop
from shared.roles import Factory, Loop, RoleContext, every, together

REPUBLISH_AFTER = timedelta(hours=24)
COMPACTED = ("staff",)


def consumer(ctx: RoleContext) -> ConsumerLoop:
    """Takes what survey publishes into replicas and triages answers."""
    return consumer_loop(ctx, handlers.GROUP, handlers.TOPICS, handlers.apply)


def sender(ctx: RoleContext) -> Loop:
    """Hands over mails to staff, and notices under survey's permits."""
    staff_mails = every(0.1, staff_sender.make_sender(ctx).step, "staff mails")
    return watched(ctx.settings, together(staff_mails, notice_sender.sender_loop(ctx)))


def clock(ctx: RoleContext) -> Loop:
    """Reminders, escalation, deputies, and housekeeping."""
    db = ctx.db
    return together(
        every(1.0, _each(db, reminders.remind), "reminders"),
        every(1.0, _each(db, reminders.escalate), "escalation"),
        every(30.0, _each(db, reminders.stand_in), "deputies"),
        every(600.0, lambda: housekeeping(db), "housekeeping"),
    )


def housekeeping(db: Database) -> bool:
    """Forgets old guesses at passwords; publishes the compacted topic once a day. No more now."""
    with db.transaction() as tx:
        login.forget_old(tx)
        rebuild.forget_before(tx)
        staff_mail.let_go(tx)
        mine = _take_chore(tx, "republish", REPUBLISH_AFTER)
    if mine:
        rebuild.republish(db, COMPACTED)
    return False


def _take_chore(tx: Tx, name: str, after: timedelta) -> bool:
    # A new installation has just published everything.
    tx.execute("INSERT INTO chore (name, at) VALUES (%s, %s) ON CONFLICT DO NOTHING", (name, tx.now))
    return bool(
        tx.execute("UPDATE chore SET at = %s WHERE name = %s AND at <= %s", (tx.now, name, tx.now - after))
    )


def _each(db: Database, work: Callable[[Tx], bool]) -> Callable[[], bool]:
    def step() -> bool:
        with db.transaction() as tx:
            return work(tx)

    return step


ROLES: Mapping[str, Factory] = {"relay": relay_loop, "consumer": consumer, "sender": sender, "clock": clock}
