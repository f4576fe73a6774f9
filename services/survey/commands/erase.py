"""Erases a customer: everything personal goes, the id stays known so that nothing comes back."""

from __future__ import annotations

from services.survey import store
from services.survey.addresses import Fingerprints
from shared.channels import ledger
from shared.db import Tx
from shared.events import outbox


def erase(tx: Tx, customer_id: str, fingerprints: Fingerprints) -> bool:
    """Removes the customer with all they said and got; returns whether there was one.

    Opt-outs survive as fingerprints of the addresses, deliveries as counts without address or
    content. A message that waits is not sent; one that is being handed over right now cannot be called
    back, and its settling finds its row.
    """
    customer = store.lock_customer(tx, customer_id)
    if customer is None:
        return False
    store.add_opt_outs(
        tx,
        [
            (channel, fingerprints(channel, customer[name])[-1], customer[f"{channel}_opt_out_at"], "staff")
            for channel, name in (("email", "email"), ("sms", "phone"))
            if customer[name] and customer[f"{channel}_opt_out_at"]
        ],
    )
    ledger.lock_of_customer(tx, customer_id)
    tx.execute(
        "UPDATE delivery SET address = NULL, data = '{}',"
        " state = CASE WHEN state = 'queued' THEN 'refused' ELSE state END,"
        " reason = CASE WHEN state = 'queued' THEN 'erased' ELSE reason END,"
        " settled_at = CASE WHEN state = 'queued' THEN %s ELSE settled_at END"
        " WHERE customer_id = %s",
        (tx.now, customer_id),
    )
    responses = [
        row["id"] for row in tx.all("SELECT id FROM response WHERE customer_id = %s", (customer_id,))
    ]
    # Invitations, skips, tokens, answers with their versions, clicks and inbound texts go with the row.
    tx.execute("DELETE FROM customer WHERE id = %s", (customer_id,))
    # Only now: a notice that was being noted held the row until it was there to be deleted.
    tx.execute("DELETE FROM notice_replica WHERE customer_id = %s", (customer_id,))
    tx.execute("DELETE FROM task_response WHERE response_id = ANY(%s::uuid[])", (responses,))
    # Replies kept for a repeated request may hold the customer; the repetition then finds them gone.
    tx.execute("DELETE FROM idempotency WHERE position(%s::bytea IN body) > 0", (customer_id.encode(),))
    version = customer["version"] + 1
    tx.execute(
        "INSERT INTO erased (customer_id, at, version) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        (customer_id, tx.now, version),
    )
    outbox.erase(tx, customer_id, version)
    return True
