"""What became of hand-overs: invitations become sent, failed, skipped or uncertain, and others hear of it.

Permits and erasures lock a customer and then their deliveries; so does everything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg2.extras import Json

from services.survey import facts, store
from services.survey.addresses import Fingerprints
from services.survey.commands import opt_out, permits
from shared.channels import OPTED_OUT, ledger
from shared.channels.sender import Outcome
from shared.db import Row, Tx
from shared.errors import Conflict, NotFound
from shared.ids import is_id

Report = Literal["delivered", "bounced", "failed", "complained"]


@dataclass(frozen=True, slots=True)
class Result:
    """How followup's hand-over of a notice ended; 'returned' means that it certainly did not leave."""

    id: str
    result: Literal["handed", "failed", "uncertain", "returned"]
    provider_id: str | None = None
    reason: str | None = None
    claim: str | None = None


def settled(tx: Tx, outcomes: Sequence[Outcome], fingerprints: Fingerprints) -> None:
    """Follows the ledger for survey's own messages, in the transaction that has locked and settled them."""
    rows = _rows(tx, [outcome.delivery.id for outcome in outcomes])
    refused, sent = [], []
    for outcome in outcomes:
        row = rows.get(outcome.delivery.id)
        if row is None:  # erased meanwhile
            continue
        state = row["state"]
        if outcome.result == "handed" and state in ("handed", "delivered", "bounced"):
            sent.append(row)
        elif outcome.result == "uncertain" and state == "uncertain":
            _invitation_state(tx, row, "uncertain", ("queued",))
        elif outcome.result == "failed" and state == "failed":
            _invitation_state(tx, row, "failed", ("queued", "uncertain"))
            facts.publish(tx, [facts.delivery_reported(row, "failed", row["reason"], tx.now)])
            _heed(tx, row, fingerprints)
        elif outcome.result == "refused" and state == "refused":
            refused.append(row)
    mark_sent(tx, sent)
    _skip(tx, refused)


def notices(tx: Tx, results: Sequence[Result], fingerprints: Fingerprints) -> None:
    """Settles permits that followup had; the same result again changes nothing.

    What may have left counts whenever it is told; that nothing has left counts for its own permit alone.
    """
    lock(tx, [result.id for result in results])
    failed = []
    for result in results:
        if result.result == "handed":
            ledger.handed(tx, {result.id: result.provider_id})
        elif result.result == "uncertain":
            ledger.uncertain(tx, result.id, result.reason or "")
        elif not _is_of_this_permit(tx, result):
            continue
        # Failed for good or for now: either way it gives the budget back, and a new permit may be asked for.
        elif ledger.failed(tx, result.id, result.reason or result.result) and result.result == "failed":
            failed.append(result.id)
    for row in _rows(tx, failed).values() if failed else ():
        facts.publish(tx, [facts.delivery_reported(row, "failed", row["reason"], tx.now)])
        _heed(tx, row, fingerprints)


def _is_of_this_permit(tx: Tx, result: Result) -> bool:
    """Whether a result is about the permit that is out, and not about an earlier one of the same message."""
    row = tx.one("SELECT data->>'claim' AS claim, claimed_at FROM delivery WHERE id = %s", (result.id,))
    if row is None or row["claim"] is None:
        return True
    if result.claim is None:  # nobody knows any more: then it is none that may still be used
        return bool(row["claimed_at"] <= tx.now - permits.LIFETIME)
    return bool(result.claim == row["claim"])


def report(
    tx: Tx, delivery_id: str, state: Report, reason: str | None, at: datetime, fingerprints: Fingerprints
) -> None:
    """What a provider says of a message; an unknown one, and what is known already, changes nothing.

    A bounce ends messages to the address, a complaint opts it out; neither touches a newer address.
    """
    if not is_id(delivery_id):
        return
    lock(tx, [delivery_id])
    # What is published again later says the same time; a complaint has its own.
    if ledger.report(tx, delivery_id, state, reason, None if state == "complained" else at) is None:
        return
    row = _rows(tx, [delivery_id]).get(delivery_id.lower())
    if row is None:
        return
    if state != "failed":
        mark_sent(tx, [row])
    else:
        _invitation_state(tx, row, "failed", ("queued", "uncertain"))
    facts.publish(tx, [facts.delivery_reported(row, state, reason, at)])
    if state == "complained":
        # The ledger's state stays what it was; this is what is published again later.
        tx.execute(
            "UPDATE delivery SET data = data || %s WHERE id = %s",
            (Json({"complained_at": at.isoformat()}), delivery_id),
        )
        _opt_out(tx, row, "complaint", fingerprints)
    elif state == "bounced" and _theirs(tx, row, fingerprints):
        opt_out.bounced(tx, str(row["customer_id"]), row["channel"])
    elif state == "failed":
        _heed(tx, row, fingerprints)


def taken(tx: Tx, delivery_id: str, provider_id: str | None) -> None:
    """The provider says that it has this message and is at it: what was uncertain is handed over."""
    lock(tx, [delivery_id])
    row = tx.one("SELECT state FROM delivery WHERE id = %s", (delivery_id,))
    if row is None or row["state"] not in ("claimed", "uncertain"):
        return
    ledger.handed(tx, {delivery_id: provider_id})
    mark_sent(tx, list(_rows(tx, [delivery_id]).values()))


def unsubscribed(tx: Tx, delivery_id: str, fingerprints: Fingerprints) -> tuple[str, str] | None:
    """Whoever got this message told the provider to stop: that is an opt-out. An unknown one is none.

    Returns the customer and the channel whose permits are to be waited for.
    """
    if not is_id(delivery_id):
        return None
    lock(tx, [delivery_id])
    row = _rows(tx, [delivery_id]).get(delivery_id.lower())
    if row is None:
        return None
    _opt_out(tx, row, "link", fingerprints)
    return str(row["customer_id"]), row["channel"]


def _heed(tx: Tx, row: Row, fingerprints: Fingerprints) -> None:
    """A message that failed because its recipient opted out at the provider opts them out here as well."""
    if row["reason"] == OPTED_OUT:
        _opt_out(tx, row, "stop", fingerprints)


def _theirs(tx: Tx, row: Row, fingerprints: Fingerprints) -> bool:
    """Whether the message went to the address that its customer has now."""
    written_to = bytes.fromhex(row["data"].get("written_to", ""))
    return not written_to or opt_out.is_theirs(
        tx, str(row["customer_id"]), row["channel"], written_to, fingerprints
    )


def _opt_out(tx: Tx, row: Row, source: str, fingerprints: Fingerprints) -> None:
    if _theirs(tx, row, fingerprints):
        opt_out.opt_out(tx, str(row["customer_id"]), row["channel"], source, fingerprints)
    else:  # their address was corrected since: it is the old one that opted out
        store.add_opt_outs(tx, [(row["channel"], bytes.fromhex(row["data"]["written_to"]), tx.now, source)])


def lock(tx: Tx, ids: Sequence[str]) -> None:
    """Locks deliveries, and before them their customers, for publishing under their keys."""
    tx.later(
        "SELECT 1 FROM customer WHERE id IN (SELECT customer_id FROM delivery WHERE id = ANY(%s::uuid[]))"
        " ORDER BY id FOR NO KEY UPDATE",
        (list(ids),),
    )
    ledger.lock(tx, ids)


def _rows(tx: Tx, ids: Sequence[str]) -> dict[str, Row]:
    """Locked deliveries by id, as they are now; without those of erased customers."""
    rows = tx.all(
        "SELECT d.* FROM delivery d JOIN customer c ON c.id = d.customer_id"
        " WHERE d.id = ANY(%s::uuid[]) ORDER BY d.id",
        (list(ids),),
    )
    return {str(row["id"]): row for row in rows}


def mark_sent(tx: Tx, rows: Sequence[Row]) -> None:
    """The deliveries' invitations are sent, and told, once. The caller holds the customers' locks."""
    by_invitation = {str(row["ref_id"]): row for row in rows if row["kind"] == "invitation"}
    if not by_invitation:
        return
    sent = tx.all(
        "UPDATE invitation SET state = 'sent', sent_at = %s, version = version + 1"
        " WHERE id = ANY(%s::uuid[]) AND state IN ('queued', 'uncertain', 'failed', 'expired')"
        " AND sent_at IS NULL RETURNING id",
        (tx.now, list(by_invitation)),
    )
    first = {str(row["id"]) for row in sent}
    for id, row in by_invitation.items():
        if id not in first:  # sent again by a person: told already
            _invitation_state(tx, row, "sent", ("queued", "uncertain"))
    if not first:
        return
    found = tx.all(facts.INVITATIONS + " WHERE i.id = ANY(%s::uuid[])", (list(first),))
    facts.publish(
        tx,
        [
            facts.invitation_sent(row | {"delivery_id": by_invitation[str(row["invitation_id"])]["id"]})
            for row in found
        ],
    )
    asked = [by_invitation[str(row["invitation_id"])]["customer_id"] for row in found if not row["test"]]
    tx.execute(
        "UPDATE customer SET last_asked_at = %s WHERE id = ANY(%s::uuid[])", (tx.now, list(map(str, asked)))
    )


def _invitation_state(tx: Tx, row: Row, state: str, before: Sequence[str]) -> None:
    if row["kind"] == "invitation":
        tx.execute(
            "UPDATE invitation SET state = %s, version = version + 1 WHERE id = %s AND state = ANY(%s)",
            (state, row["ref_id"], list(before)),
        )


def _skip(tx: Tx, rows: Sequence[Row]) -> None:
    """Invitations that were refused a permit end as recorded skips."""
    skips = tx.values(
        "INSERT INTO skip (id, program_id, customer_id, ask_run_id, invitation_id, touchpoint, reason, at)"
        " SELECT v.id, i.program_id, i.customer_id, i.ask_run_id, i.id, i.touchpoint, v.reason, v.at"
        " FROM (VALUES %s) AS v (id, invitation_id, reason, at)"
        " JOIN invitation i ON i.id = v.invitation_id AND i.state IN ('queued', 'uncertain')"
        " RETURNING id, invitation_id",
        [(tx.ids.new(), row["ref_id"], row["reason"], tx.now) for row in rows if row["kind"] == "invitation"],
        template="(%s::uuid, %s::uuid, %s, %s::timestamptz)",
        fetch=True,
    )
    if skips:
        tx.execute(
            "UPDATE invitation SET state = 'skipped', version = version + 1 WHERE id = ANY(%s::uuid[])",
            ([str(row["invitation_id"]) for row in skips],),
        )
        told = tx.all(facts.SKIPS + " WHERE s.id = ANY(%s::uuid[])", ([str(row["id"]) for row in skips],))
        facts.publish(tx, [facts.skipped(row) for row in told])


def send_again(tx: Tx, delivery_id: str, by: str) -> str:
    """A person decides that an uncertain message is sent (perhaps a second time); returns the new id.

    Raises `NotFound`, or `Conflict` when it is not uncertain any more or a notice (followup sends those).
    """
    if _own(tx, delivery_id)["kind"] == "notice":
        raise Conflict("This message tells of a change: send it again from there.")
    new = ledger.send_again(tx, delivery_id, by)
    tx.execute(
        "UPDATE invitation SET state = 'queued', version = version + 1 WHERE state = 'uncertain'"
        " AND id = (SELECT ref_id FROM delivery WHERE id = %s)",
        (new,),
    )
    return new


def leave(tx: Tx, delivery_id: str) -> None:
    """A person leaves an uncertain message as it is: it stays uncertain, and nobody is asked again.

    Raises `NotFound`, or `Conflict` when that was decided already.
    """
    _own(tx, delivery_id)
    left = tx.execute(
        "UPDATE delivery SET settled_at = %s WHERE id = %s AND state = 'uncertain' AND settled_at IS NULL",
        (tx.now, delivery_id),
    )
    if not left:
        raise Conflict("What became of this message is known by now, or somebody decided it already.")


def _own(tx: Tx, delivery_id: str) -> Row:
    row = tx.one("SELECT kind FROM delivery WHERE id = %s", (delivery_id,)) if is_id(delivery_id) else None
    if row is None:
        raise NotFound("There is no such message.")
    return row
