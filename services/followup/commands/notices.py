"""A notice's life: queued, sent or skipped, delivered, answered; each an event under the customer's lock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from services.followup.commands import locks
from services.followup.domain.by import By
from shared.channels import ledger
from shared.channels.ledger import Delivery, NewDelivery
from shared.db import Database, Row, Tx
from shared.errors import Conflict, NotFound
from shared.events import outbox
from shared.events.envelope import Event
from shared.ids import is_id

BATCH = 1000


def queue(tx: Tx, made: list[Row]) -> None:
    """Queues a delivery for each notice ({id, delivery_id, customer_id, channel}), to go out where its
    customer was asked, or where the permit will say.
    """
    ledger.queue_many(
        tx,
        [
            NewDelivery(
                "notice", row["id"], row["channel"] or "email", row["customer_id"], id=row["delivery_id"]
            )
            for row in made
        ],
    )


def sent(tx: Tx, notice_id: str, delivery_id: str, channel: str, at: datetime) -> None:
    """A provider has the notice. Twice, or after the provider already said "delivered", is once."""
    notice = _locked(tx, notice_id)
    if notice["sent_at"]:
        return
    _report(
        tx,
        notice,
        "notice.sent",
        "state = 'sent', skip_reason = NULL, channel = %(channel)s, delivery_id = %(delivery)s,"
        " sent_at = %(sent_at)s",
        {"channel": channel, "delivery": delivery_id, "sent_at": at},
    )


def skip(tx: Tx, notice_id: str, reason: str, *, state: str = "skipped") -> None:
    """A waiting notice will not go out: `skipped`, or `failed` because nobody would take it."""
    notice = _locked(tx, notice_id)
    if notice["state"] not in ("queued", "uncertain"):
        return
    _report(
        tx,
        notice,
        "notice.skipped",
        "state = %(state)s, skip_reason = %(reason)s",
        {"state": state, "reason": reason},
    )


def uncertain(tx: Tx, delivery_id: str) -> None:
    """Nobody knows whether a notice's message reached the provider; a report or a person will settle it."""
    tx.execute(
        "UPDATE notice n SET state = 'uncertain', channel = d.channel FROM delivery d"
        " WHERE d.id = %s AND d.state = 'uncertain' AND n.delivery_id = d.id AND n.state = 'queued'",
        (delivery_id,),
    )


def send_again(tx: Tx, notice_id: str, by: By) -> Row:
    """A person decides to send an uncertain notice once more, perhaps a second time; returns it, queued.

    Raises `Conflict` when it is not uncertain (any more).
    """
    notice = _locked(tx, notice_id)
    if notice["state"] != "uncertain":
        raise Conflict("It is known by now what became of this message. Nothing was sent again.")
    delivery_id = ledger.send_again(tx, notice["delivery_id"], by.name)
    tx.execute("UPDATE notice SET state = 'queued', delivery_id = %s WHERE id = %s", (delivery_id, notice_id))
    return {**notice, "state": "queued", "delivery_id": delivery_id}


def take_another_delivery(tx: Tx, notice_id: str) -> None:
    """Queues a waiting notice under a new delivery, because survey has closed the old one unused."""
    notice = _locked(tx, notice_id)
    if notice["state"] != "queued":
        return
    channel = tx.value("SELECT channel FROM delivery WHERE id = %s", (notice["delivery_id"],))
    again = {
        "id": notice_id,
        "delivery_id": tx.ids.new(),
        "customer_id": notice["customer_id"],
        "channel": channel,
    }
    queue(tx, [again])
    tx.execute("UPDATE notice SET delivery_id = %s WHERE id = %s", (again["delivery_id"], notice_id))


def answer(tx: Tx, notice_id: str, helped: bool) -> Row:
    """The customer says whether the change helped; the last word counts. Returns the notice.

    Who answers has read it: an uncertain notice was therefore sent. Raises `NotFound` for one that was
    never sent, or whose customer is erased.
    """
    notice = _locked(tx, notice_id)
    if _is_erased(tx, notice["customer_id"]) or notice["state"] in ("queued", "skipped"):
        raise NotFound("We do not know this message.")
    if not notice["sent_at"]:
        at = tx.value(
            "SELECT coalesce(claimed_at, created_at) FROM delivery WHERE id = %s", (notice["delivery_id"],)
        )
        sent(tx, notice_id, notice["delivery_id"], notice["channel"] or "email", at or tx.now)
        notice = _locked(tx, notice_id)
    if notice["helped"] == helped:
        return notice
    return _report(
        tx,
        notice,
        "notice.answered",
        "state = 'sent', skip_reason = NULL, helped = %(helped)s, helped_at = %(now)s",
        {"helped": helped},
    )


def lock(tx: Tx, deliveries: Sequence[tuple[str, str, str | None]]) -> None:
    """Locks notices' customers, the notices, and their deliveries, each sorted, as everybody does.

    `deliveries` are (delivery, notice, customer), by their ids.
    """
    locks.lock(tx, [], [customer for _, _, customer in deliveries if customer])
    tx.later(
        "SELECT 1 FROM notice WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE",
        ([notice for _, notice, _ in deliveries],),
    )
    ledger.lock(tx, [delivery for delivery, _, _ in deliveries])


def cancel_waiting(tx: Tx, change_id: str, reason: str) -> int:
    """Skips the notices of a change that nobody has begun to send; returns how many."""
    # All of them before the first is written: one batch after the other would be another order. Under their
    # customers' locks nobody has an uncertain one sent again; and then no other becomes a waiting one.
    for table, ids, states, strength in (
        ("customer", "customer_id", ["queued", "uncertain"], "NO KEY UPDATE"),
        ("notice", "id", ["queued"], "NO KEY UPDATE"),
        ("delivery", "delivery_id", ["queued"], "UPDATE"),
    ):
        tx.value(
            f"SELECT count(*) FROM (SELECT FROM {table} WHERE id IN"  # noqa: S608
            f" (SELECT {ids} FROM notice WHERE change_id = %s AND state = ANY(%s))"
            f" ORDER BY id FOR {strength}) locked",
            (change_id, states),
        )
    cancelled = 0
    while rows := tx.all(
        "UPDATE delivery SET state = 'refused', reason = %s, settled_at = %s WHERE state = 'queued' AND id IN"
        " (SELECT d.id FROM delivery d JOIN notice n ON n.delivery_id = d.id"
        "  WHERE n.change_id = %s AND n.state = 'queued' AND d.state = 'queued' ORDER BY n.id LIMIT %s)"
        " RETURNING ref_id",
        (reason, tx.now, change_id, BATCH),
    ):
        for row in rows:
            skip(tx, row["ref_id"], reason)
        cancelled += len(rows)
    return cancelled


def on_delivery_reported(tx: Tx, event: Event) -> None:
    """What the provider said of a notice's message; reports of other messages are none of ours."""
    data = event.data or {}
    if data.get("kind") != "notice":
        return
    notice_id = data["ref_id"]
    if not tx.one("SELECT 1 FROM notice WHERE id = %s", (notice_id,)):
        return
    notice = _locked(tx, notice_id)
    told = ledger.report(tx, data["delivery_id"], data["state"], data["reason"])
    if told is None:
        return
    if told.delivery.state == "delivered":
        _arrived(tx, notice, told.delivery, datetime.fromisoformat(data["at"]))
    elif notice["delivery_id"] == told.delivery.id and notice["helped"] is None:
        _bounced(tx, notice)


def on_customer_erased(tx: Tx, customer_id: str) -> None:
    """Removes a customer's words from notices and stops what still waits.

    To be called while their responses are still there, in the transaction that removes them. The rows
    stay, without a word of theirs, so that a change's counts stay what they were.
    """
    tx.execute(
        "DELETE FROM response_theme WHERE response_id IN (SELECT id FROM response WHERE customer_id = %s)",
        (customer_id,),
    )
    tx.execute(
        "UPDATE notice n SET quote = NULL, state = CASE WHEN waits THEN 'skipped' ELSE n.state END,"
        " skip_reason = CASE WHEN waits THEN 'erased' ELSE skip_reason END"
        " FROM (SELECT id, state IN ('queued', 'uncertain') AS waits FROM notice"
        " WHERE customer_id = %(id)s) was WHERE n.id = was.id",
        {"id": customer_id},
    )
    ledger.lock_of_customer(tx, customer_id)
    tx.execute(
        "UPDATE delivery SET address = NULL, data = '{}',"
        " reason = CASE state WHEN 'queued' THEN 'erased' ELSE reason END,"
        " state = CASE state WHEN 'queued' THEN 'refused' ELSE state END WHERE customer_id = %s",
        (customer_id,),
    )


def republish(db: Database) -> int:
    """Publishes the present state of every notice that has had an event again, marked as replay; returns
    how many. Those of erased customers stay silent."""
    count, after = 0, None
    while True:
        with db.transaction() as tx:
            arguments = {"after": after, "limit": BATCH}
            # Customers first and sorted, as everybody locks them.
            tx.all(
                "SELECT 1 FROM customer WHERE id IN (SELECT customer_id FROM notice WHERE version > 1"
                " AND (%(after)s::uuid IS NULL OR id > %(after)s::uuid) ORDER BY id LIMIT %(limit)s)"
                " ORDER BY id FOR NO KEY UPDATE",
                arguments,
            )
            rows = tx.all(
                "SELECT n.*, e.customer_id IS NOT NULL AS erased FROM notice n"
                " LEFT JOIN erased e USING (customer_id) WHERE n.version > 1"
                " AND (%(after)s::uuid IS NULL OR n.id > %(after)s::uuid) ORDER BY n.id LIMIT %(limit)s",
                arguments,
            )
            known = [row for row in rows if not row["erased"]]
            for row in known:
                _append(tx, _last_event(row), row, replay=True)
        if not rows:
            return count
        count, after = count + len(known), rows[-1]["id"]


def _arrived(tx: Tx, notice: Row, delivery: Delivery, at: datetime) -> None:
    # A person may have had it sent again while it was on its way: that second message is not needed.
    tx.execute(
        "UPDATE delivery SET state = 'refused', reason = 'already_delivered', settled_at = %s"
        " WHERE ref_id = %s AND kind = 'notice' AND state = 'queued'",
        (tx.now, notice["id"]),
    )
    waits = notice["state"] in ("queued", "uncertain") or notice["skip_reason"] == "bounced"
    if not notice["sent_at"] and waits:
        sent(tx, notice["id"], delivery.id, delivery.channel, at)
    tx.execute(
        "UPDATE notice SET delivered_at = coalesce(delivered_at, %s), state = 'sent', skip_reason = NULL"
        " WHERE id = %s AND sent_at IS NOT NULL",
        (at, notice["id"]),
    )


def _bounced(tx: Tx, notice: Row) -> None:
    if notice["sent_at"]:
        tx.execute(
            "UPDATE notice SET state = 'failed', skip_reason = 'bounced', delivered_at = NULL WHERE id = %s",
            (notice["id"],),
        )
    else:
        skip(tx, notice["id"], "bounced", state="failed")


def _locked(tx: Tx, notice_id: str) -> Row:
    """The notice, with its customer's row (the key of its events) and its own locked."""
    customer = None
    if is_id(notice_id):
        customer = tx.value("SELECT customer_id FROM notice WHERE id = %s", (notice_id,))
    if customer is None:
        raise NotFound("We do not know this message.")
    locks.lock(tx, [], [customer])
    notice = tx.one("SELECT * FROM notice WHERE id = %s FOR NO KEY UPDATE", (notice_id,))
    assert notice is not None  # noqa: S101 - notices are never deleted
    return notice


def _report(tx: Tx, notice: Row, kind: str, changes: str, values: dict[str, Any]) -> Row:
    row = tx.one(
        f"UPDATE notice SET version = version + 1, reported_at = %(now)s, {changes}"  # noqa: S608
        " WHERE id = %(id)s RETURNING *",
        {**values, "now": tx.now, "id": notice["id"]},
    )
    assert row is not None  # noqa: S101 - its row is locked
    if not _is_erased(tx, row["customer_id"]):
        _append(tx, kind, row)
    return row


def _last_event(notice: Row) -> str:
    if notice["helped"] is not None:
        return "notice.answered"
    return "notice.sent" if notice["sent_at"] else "notice.skipped"


def _append(tx: Tx, kind: str, notice: Row, *, replay: bool = False) -> None:
    outbox.append(
        tx,
        kind,
        notice["customer_id"],
        notice["version"],
        {
            "notice_id": notice["id"],
            "change_id": notice["change_id"],
            "customer_id": notice["customer_id"],
            "response_id": notice["response_id"],
            "channel": notice["channel"],
            "delivery_id": notice["delivery_id"],
            "quote": notice["quote"],
            "sent_at": notice["sent_at"],
            "reason": notice["skip_reason"],
            "helped": notice["helped"],
            "helped_at": notice["helped_at"],
            "at": notice["reported_at"],
        },
        replay=replay,
        occurred_at=notice["reported_at"] if replay else None,
    )


def _is_erased(tx: Tx, customer_id: str) -> bool:
    return tx.one("SELECT 1 FROM erased WHERE customer_id = %s", (customer_id,)) is not None
