"""The ledger of deliveries: each step of a message's way, each to be its own transaction.

Whoever also locks what a message is about (its customer, its notice) locks that first, and then the
deliveries in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg2.extras import Json

from shared.channels import Channel
from shared.db import Row, Tx
from shared.errors import Conflict, NotFound

# A sender that died is not waited for longer than this: batch, time-out and settling are done well before.
CLAIM_LIFETIME = timedelta(seconds=60)
RESTORED = "It was due before this was restored from a backup, so it may have left."
Report = Literal["delivered", "bounced", "failed", "complained"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One row of the ledger: a message that was decided on, and what became of it."""

    id: str
    kind: str
    ref_id: str
    customer_id: str | None
    channel: str
    address: str | None
    state: str
    reason: str | None
    created_at: datetime
    data: Mapping[str, Any]
    attempts: int
    provider_id: str | None
    claimed_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A message that was decided on. Without an `address` the permit brings it."""

    kind: str
    ref_id: str
    channel: str
    customer_id: str | None = None
    address: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """What a provider's report changed: the delivery as it is now, and the state it had before."""

    delivery: Delivery
    before: str


def queue(tx: Tx, new: NewDelivery) -> str:
    """Decides on one message, in the caller's transaction; returns its id."""
    return queue_many(tx, [new])[0]


def queue_many(tx: Tx, new: Iterable[NewDelivery]) -> list[str]:
    """Decides on many messages with one statement; returns their ids in the same order."""
    rows = [
        (
            one.id or tx.ids.new(),
            one.kind,
            one.ref_id,
            one.customer_id,
            one.channel,
            one.address,
            tx.now,
            one.not_before or tx.now,
            Json(dict(one.data)),
        )
        for one in new
    ]
    tx.values(
        "INSERT INTO delivery (id, kind, ref_id, customer_id, channel, address, created_at, not_before, data)"
        " VALUES %s",
        rows,
    )
    return [str(row[0]) for row in rows]


def claim(tx: Tx, limit: int, kinds: Sequence[str], channel: Channel | None = None) -> list[Delivery]:
    """Takes up to `limit` due messages (of one channel) for this sender alone, the longest waiting first."""
    there = " AND channel = %(channel)s" if channel else ""
    rows = tx.all(
        "WITH due AS (SELECT id FROM delivery WHERE state = 'queued' AND not_before <= %(now)s"  # noqa: S608
        f" AND kind = ANY(%(kinds)s){there}"
        " ORDER BY not_before, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED)"
        " UPDATE delivery SET state = 'claimed', claimed_at = %(now)s, handed_at = NULL,"
        " permit_expires_at = NULL, attempts = attempts + 1"
        " FROM due WHERE delivery.id = due.id RETURNING delivery.*",
        {"now": tx.now, "kinds": list(kinds), "channel": channel, "limit": limit},
    )
    return sorted(map(_delivery, rows), key=lambda one: (one.created_at, one.id))


def lock(tx: Tx, ids: Sequence[str]) -> None:
    """Locks these deliveries until the transaction ends, in the one order in which everybody does."""
    tx.later("SELECT 1 FROM delivery WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE", (list(ids),))


def lock_of_customer(tx: Tx, customer_id: str) -> None:
    """Locks all deliveries to a customer, whose row the caller has locked."""
    tx.later("SELECT 1 FROM delivery WHERE customer_id = %s ORDER BY id FOR UPDATE", (customer_id,))


def begin_hand_over(tx: Tx, ids: Sequence[str], claimed_at: datetime | None = None) -> set[str]:
    """Notes that messages are about to leave; from here on a crash makes them uncertain. Returns which.

    The others' claims are not ours any more: they must not be sent. Here and below `claimed_at` is by which
    claim the caller has the message: a sender that stood still for a minute has lost it to another.
    """
    lock(tx, ids)
    rows = tx.all(
        "UPDATE delivery SET handed_at = %s WHERE id = ANY(%s::uuid[]) AND state = 'claimed'"
        " AND handed_at IS NULL AND (%s::timestamptz IS NULL OR claimed_at = %s) RETURNING id",
        (tx.now, list(ids), claimed_at, claimed_at),
    )
    return {str(row["id"]) for row in rows}


def handed(tx: Tx, taken: Mapping[str, str | None]) -> set[str]:
    """The provider took these, each by its own id for it. Returns those of which that still matters.

    A report may have come before this: it keeps its word, and only the provider's id is added.
    """
    lock(tx, list(taken))
    rows = tx.all(
        "UPDATE delivery d SET provider_id = coalesce(d.provider_id, v.provider_id),"
        " permit_expires_at = NULL, handed_at = coalesce(d.handed_at, %s),"
        " settled_at = coalesce(d.settled_at, %s),"
        " reason = CASE WHEN d.state IN ('claimed', 'uncertain') THEN NULL ELSE d.reason END,"
        " state = CASE WHEN d.state IN ('claimed', 'uncertain') THEN 'handed' ELSE d.state END"
        " FROM unnest(%s::uuid[], %s::text[]) AS v (id, provider_id)"
        " WHERE d.id = v.id AND d.state IN ('claimed', 'uncertain', 'delivered', 'bounced') RETURNING d.id",
        (tx.now, tx.now, list(taken), list(taken.values())),
    )
    return {str(row["id"]) for row in rows}


def failed(tx: Tx, id: str, reason: str, claimed_at: datetime | None = None) -> bool:
    """The provider certainly did not take it and never will."""
    return _settle(tx, id, "failed", reason, claimed_at)


def refused(tx: Tx, id: str, reason: str, claimed_at: datetime | None = None) -> bool:
    """No permit was given: the customer may not be contacted."""
    return _settle(tx, id, "refused", reason, claimed_at)


def uncertain(tx: Tx, id: str, reason: str) -> bool:
    """Nobody can tell whether it left; a report or a person settles it, never a sender."""
    return (
        tx.execute(
            "UPDATE delivery SET state = 'uncertain', reason = %s, permit_expires_at = NULL"
            " WHERE id = %s AND state = 'claimed'",
            (reason, id),
        )
        == 1
    )


def give_back(
    tx: Tx,
    ids: Sequence[str],
    not_before: datetime,
    reason: str | None,
    *,
    counted: bool,
    claimed_at: datetime | None = None,
) -> list[str]:
    """Returns claimed messages that certainly did not leave to the queue; `counted`: that was an attempt.

    Gives the ids of those that were still the caller's to give back.
    """
    lock(tx, ids)
    rows = tx.all(
        "UPDATE delivery SET state = 'queued', not_before = %s, reason = %s, claimed_at = NULL,"
        " handed_at = NULL, permit_expires_at = NULL, attempts = attempts - %s"
        " WHERE id = ANY(%s::uuid[]) AND state = 'claimed' AND (%s::timestamptz IS NULL OR claimed_at = %s)"
        " RETURNING id",
        (not_before, reason, 0 if counted else 1, list(ids), claimed_at, claimed_at),
    )
    return [str(row["id"]) for row in rows]


def restored(tx: Tx) -> int:
    """For a ledger from a backup: what was due by now may have left since, so no sender may take it.

    Such a message is left as a dead sender leaves one that it was handing over: uncertain, as soon as the
    sender looks after those. Returns how many there are. What was to leave only later stays queued.
    """
    return tx.execute(
        "UPDATE delivery SET state = 'claimed', claimed_at = %(long_ago)s, handed_at = %(long_ago)s,"
        " permit_expires_at = NULL, attempts = attempts + 1, reason = %(reason)s"
        " WHERE state = 'claimed' OR state = 'queued' AND not_before <= %(now)s",
        {"long_ago": tx.now - 2 * CLAIM_LIFETIME, "now": tx.now, "reason": RESTORED},
    )


def after_crash(
    tx: Tx,
    kinds: Sequence[str],
    *,
    only_own: bool = False,
    lock_first: Callable[[Tx, Sequence[Delivery]], None] | None = None,
) -> tuple[list[Delivery], list[Delivery]]:
    """Settles what a dead sender left claimed for a minute: (back in the queue, now uncertain).

    A message of `kinds` (this sender's own) whose hand-over was not begun is queued again. Everything
    else may have left: it becomes uncertain. That includes permits given to another service, unless
    `only_own`: then other kinds are left to the sender that knows what hangs on them. `lock_first` locks what
    the caller will change besides.
    """
    before = tx.now - CLAIM_LIFETIME
    rows = tx.all(
        "SELECT * FROM delivery WHERE state = 'claimed' AND claimed_at < %s AND (NOT %s OR kind = ANY(%s))",
        (before, only_own, list(kinds)),
    )
    if not rows:
        return [], []
    if lock_first:
        lock_first(tx, [_delivery(row) for row in rows])
    ids = [str(row["id"]) for row in rows]
    lock(tx, ids)
    back = tx.all(
        "UPDATE delivery SET state = 'queued', not_before = %s, claimed_at = NULL, permit_expires_at = NULL,"
        " attempts = attempts - 1 WHERE id = ANY(%s::uuid[]) AND state = 'claimed'"
        " AND claimed_at < %s AND handed_at IS NULL AND kind = ANY(%s) RETURNING *",
        (tx.now, ids, before, list(kinds)),
    )
    lost = tx.all(
        "UPDATE delivery SET state = 'uncertain', permit_expires_at = NULL,"
        " reason = CASE WHEN reason = %s THEN reason ELSE 'The sender stopped while handing it over.' END"
        " WHERE id = ANY(%s::uuid[]) AND state = 'claimed' AND claimed_at < %s RETURNING *",
        (RESTORED, ids, before),
    )
    return [_delivery(row) for row in back], [_delivery(row) for row in lost]


def report(
    tx: Tx, id: str, state: Report, reason: str | None = None, at: datetime | None = None
) -> Reported | None:
    """What the provider says became of it; None when that is unknown here, or nothing new.

    A report settles an uncertain delivery. A bounce after a delivery counts (mail servers accept first
    and refuse later). Who complains has it, whatever a mail server said: that is the last word, and the
    reason. `at` is when the provider says that it was so.
    """
    row = tx.one("SELECT * FROM delivery WHERE id = %s FOR UPDATE", (id,))
    if row is None:
        return None
    before = row["state"]
    after: str
    why: str | None
    if state == "complained":
        if row["reason"] == "complained" or before in ("failed", "refused"):
            return None
        after, why = "delivered", "complained"
    else:
        final = {"delivered": ("delivered", "bounced", "failed", "refused")}
        if row["reason"] == "complained" or before in final.get(state, ("bounced", "failed", "refused")):
            return None
        after, why = state, reason
    row = tx.one(
        "UPDATE delivery SET state = %s, reason = %s, permit_expires_at = NULL,"
        " handed_at = coalesce(handed_at, %s), settled_at = coalesce(settled_at, %s), data = data || %s"
        " WHERE id = %s RETURNING *",
        (after, why, tx.now, tx.now, Json({"reported_at": at.isoformat()} if at else {}), id),
    )
    return None if row is None else Reported(_delivery(row), before)


def uncertain_ones(tx: Tx, limit: int = 100) -> list[Delivery]:
    """The uncertain deliveries about which nobody has decided yet, oldest first."""
    rows = tx.all(
        "SELECT * FROM delivery WHERE state = 'uncertain' AND settled_at IS NULL"
        " ORDER BY created_at, id LIMIT %s",
        (limit,),
    )
    return [_delivery(row) for row in rows]


def send_again(tx: Tx, id: str, by: str) -> str:
    """A person decides to send an uncertain message once more: a new delivery; returns its id.

    The old one stays uncertain (it may well have arrived), but nobody is asked about it any more.
    Raises `NotFound`, or `Conflict` when it is not uncertain or was sent again already.
    """
    row = tx.one("SELECT * FROM delivery WHERE id = %s FOR UPDATE", (id,))
    if row is None:
        raise NotFound("There is no such message.")
    if row["state"] != "uncertain" or row["settled_at"] is not None:
        raise Conflict("This message is not uncertain any more; nothing was sent.")
    old = _delivery(row)
    data = {**old.data, "again_of": old.id}
    new = queue(tx, NewDelivery(old.kind, old.ref_id, old.channel, old.customer_id, old.address, data))
    tx.execute(
        "UPDATE delivery SET settled_at = %s, data = data || %s WHERE id = %s",
        (tx.now, Json({"sent_again": new, "sent_again_by": by}), id),
    )
    return new


def unsettled_permits(tx: Tx, customer_id: str) -> int:
    """How many messages to a customer are on their way right now: permitted and not settled."""
    return int(
        tx.value(
            "SELECT count(*) FROM delivery WHERE customer_id = %s AND state = 'claimed'"
            " AND permit_expires_at > %s",
            (customer_id, tx.now),
        )
    )


def permitted(tx: Tx, ids: Sequence[str], expires_at: datetime) -> None:
    """Notes until when the permits of claimed messages hold."""
    lock(tx, ids)
    tx.execute(
        "UPDATE delivery SET permit_expires_at = %s WHERE id = ANY(%s::uuid[]) AND state = 'claimed'",
        (expires_at, list(ids)),
    )


def _settle(tx: Tx, id: str, state: str, reason: str, claimed_at: datetime | None) -> bool:
    return (
        tx.execute(
            "UPDATE delivery SET state = %s, reason = %s, settled_at = %s, permit_expires_at = NULL"
            " WHERE id = %s AND state IN ('claimed', 'uncertain')"
            " AND (%s::timestamptz IS NULL OR claimed_at = %s)",
            (state, reason, tx.now, id, claimed_at, claimed_at),
        )
        == 1
    )


def _delivery(row: Row) -> Delivery:
    known = {each.name: row[each.name] for each in fields(Delivery)}
    for name in ("id", "ref_id", "customer_id"):
        known[name] = None if known[name] is None else str(known[name])
    return Delivery(**known)
