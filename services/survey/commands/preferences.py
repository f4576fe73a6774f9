"""Opting out and in by link, and the wait for what is already on its way (rule 7)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from services.survey.addresses import Fingerprints
from services.survey.commands import opt_out, permits
from services.survey.domain.budget import CHANNELS
from shared.db import Database, Tx
from shared.errors import NotFound
from shared.ids import hash_token

# How long an opt-out waits for permits that are out; after that it is acknowledged all the same.
WAIT = 2.0
_POLL = 0.05


def owner(tx: Tx, token: str) -> tuple[str, str]:
    """(customer id, the message's channel) of a preference link. Raises `NotFound`."""
    row = tx.one(
        "SELECT customer_id, channel FROM token WHERE hash = %s AND purpose = 'preferences'"
        " AND expires_at > %s",
        (hash_token(token), tx.now),
    )
    if row is None:
        raise NotFound("This link leads nowhere.")
    return str(row["customer_id"]), row["channel"]


def change(
    tx: Tx, token: str, action: str, source: str, fingerprints: Fingerprints
) -> tuple[str, Sequence[str]]:
    """Does 'stop_email', 'stop_sms', 'stop_all', 'start_email', 'start_sms', or 'one_click' (the message's
    own channel). Returns the customer and the channels that were stopped: commit, then `wait` for them.

    Raises `NotFound` for an unknown link; an unknown action does nothing.
    """
    customer_id, channel = owner(tx, token)
    if action == "one_click":
        action = f"stop_{channel}"
    verb, _, which = action.partition("_")
    chosen = CHANNELS if which == "all" else tuple(c for c in CHANNELS if c == which)
    if verb == "start":
        for one in chosen:
            opt_out.opt_in(tx, customer_id, one, fingerprints)
        return customer_id, ()
    for one in chosen if verb == "stop" else ():
        opt_out.opt_out(tx, customer_id, one, source, fingerprints)
    return customer_id, chosen if verb == "stop" else ()


def wait(db: Database, customer_id: str, channels: Sequence[str], limit: float = WAIT) -> bool:
    """Waits until nothing is on its way on these channels, at most `limit` seconds. Returns whether something
    is: then whoever opted out is to be told so.

    The opt-out is committed before: no new permit can be granted meanwhile.
    """
    give_up = time.monotonic() + limit
    while True:
        with db.transaction() as tx:
            remains = any(permits.outstanding(tx, customer_id, channel) for channel in channels)
        if not remains or time.monotonic() >= give_up:
            return remains
        time.sleep(_POLL)
