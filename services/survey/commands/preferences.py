"""Opting out and in by link, and the wait for what is already on its way (rule 7)."""

from __future__ import annotations

import threading
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
# So many requests of a process wait at once, half of its threads (`shared.embedded.web`). The others are for
# those who tell us what became of the messages that are waited for, and for everybody else.
WAITERS = 2
_places = threading.BoundedSemaphore(WAITERS)


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


def wait(db: Database, customer_id: str, channels: Sequence[str], limit: float | None = None) -> bool:
    """Waits until nothing is on its way on these channels, at most `limit` (`WAIT`) seconds. Returns whether
    something is: then whoever opted out is to be told so. With `WAITERS` others at it, it does not wait.

    The opt-out is committed before: no new permit can be granted meanwhile.
    """
    give_up = time.monotonic() + (WAIT if limit is None else limit)
    if not _on_its_way(db, customer_id, channels):
        return False
    if not _places.acquire(blocking=False):
        return True
    try:
        while time.monotonic() < give_up:
            time.sleep(_POLL)
            if not _on_its_way(db, customer_id, channels):
                return False
        return True
    finally:
        _places.release()


def _on_its_way(db: Database, customer_id: str, channels: Sequence[str]) -> bool:
    with db.transaction() as tx:
        return any(permits.outstanding(tx, customer_id, channel) for channel in channels)
