"""What survey's relay, consumer, sender and clock do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import timedelta

from services.survey import handlers, importer, rebuild
from services.survey.commands import clock as due
from services.survey.commands import company, programs
from services.survey.commands.sender import make_sender
from services.survey.edge import opt_out_fingerprints
from shared.channels import CHANNELS
from shared.channels.credentials import watched
from shared.db import Database, Tx
from shared.events.workers import consumer_loop, relay_loop
from shared.roles import Factory, Loop, RoleContext, every, together

# Compacted topics forget what was published longer ago than their retention: once a day is enough.
REPUBLISH_AFTER = timedelta(hours=24)
COMPACTED = ("settings", "customers")


def consumer(ctx: RoleContext) -> Loop:
    """Takes what followup publishes into the replicas."""
    return consumer_loop(ctx, handlers.GROUP, handlers.TOPICS, handlers.apply)


def sender(ctx: RoleContext) -> Loop:
    """Hands over invitations and replies, and tells what became of claims that a crash left behind.

    Each channel by itself: a slow provider slows only its own.
    """
    sending = (
        every(0.1, make_sender(ctx.settings, ctx.db, ctx.clock, channel=channel).step, f"sender, {channel}")
        for channel in CHANNELS
    )
    return watched(ctx.settings, together(*sending))


def clock(ctx: RoleContext) -> Loop:
    """Asks and imports in progress, invitations that expire, clicks nobody confirmed, and housekeeping."""
    db = ctx.db
    return together(
        every(0.1, lambda: due.ask_step(db), "asks"),
        _imports(ctx),
        every(2.0, lambda: due.due_step(db), "due"),
        every(3600.0, lambda: due.forget_step(db), "forget"),
        every(600.0, lambda: republish_step(db), "republish"),
    )


def _imports(ctx: RoleContext) -> Loop:
    fingerprints = opt_out_fingerprints(ctx.settings)

    def loop(stop: threading.Event) -> None:
        every(0.2, lambda: importer.work(ctx.db, fingerprints, stop), "imports")(stop)

    return loop


def republish_step(db: Database) -> bool:
    """Publishes the compacted topics once more when the last time was a day ago; False: no more now.

    The company and the first program are made here when there are none yet: the others need the
    defaults too, and whoever works on the terminal a program to ask with.
    """
    with db.transaction() as tx:
        company.ensure(tx)
        programs.ensure_default(tx)
        mine = _take_chore(tx)
    if mine:
        rebuild.republish(db, COMPACTED)
    return False


def _take_chore(tx: Tx) -> bool:
    # A new installation has just published everything.
    tx.execute("INSERT INTO chore (name, at) VALUES ('republish', %s) ON CONFLICT DO NOTHING", (tx.now,))
    taken = tx.execute(
        "UPDATE chore SET at = %s WHERE name = 'republish' AND at <= %s", (tx.now, tx.now - REPUBLISH_AFTER)
    )
    return taken > 0


ROLES: Mapping[str, Factory] = {
    "relay": relay_loop,
    "consumer": consumer,
    "sender": sender,
    "clock": clock,
}
