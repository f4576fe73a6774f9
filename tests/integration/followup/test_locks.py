"""Followup's customers, notices and deliveries are locked in one order by all who lock several of them."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial

from services.followup.commands import changes, notices
from shared.errors import Conflict
from tests.integration.followup.test_notices import LEAD, Sending
from tests.integration.followup.test_notices import sending as sending
from tests.support.opposing import oppose


def test_senders_reports_withdrawals_and_erasures_never_wait_in_a_ring(sending: Sending) -> None:
    followup = sending.followup
    customers = [sending.customer() for _ in range(10)]
    published = [sending.publish(f"Change {number}") for number in range(12)]
    made = followup.all("SELECT * FROM notice")
    sender = sending.sender._sender

    def send(chosen: random.Random) -> None:
        sender.step()
        # Some are claimed for good, as by a sender that died; a later step finds them. Others wait again.
        with followup.db.transaction() as tx:
            tx.execute(
                "UPDATE delivery SET state = 'claimed', claimed_at = %s WHERE id = %s",
                (tx.now - timedelta(minutes=5), chosen.choice(made)["delivery_id"]),
            )
        with followup.db.transaction() as tx:
            tx.execute(
                "UPDATE delivery SET state = 'queued', not_before = %s WHERE id = %s",
                (tx.now, chosen.choice(made)["delivery_id"]),
            )
        sender._swept_at = float("-inf")

    def report(chosen: random.Random) -> None:
        told = [
            sending.reported_of(one, chosen.choice(("delivered", "failed")))
            for one in chosen.sample(made, 20)
        ]
        followup.apply(*told)

    def again(chosen: random.Random) -> None:
        try:
            with followup.db.transaction() as tx:
                notices.send_again(tx, chosen.choice(made)["id"], LEAD)
        except Conflict:
            pass

    def publish(chosen: random.Random) -> None:
        sending.publish(f"One more {chosen.random()}")

    def erase(*some: str) -> None:
        followup.apply(*map(followup.erasure, some))

    def withdraw(change: str) -> None:
        with followup.db.transaction() as tx:
            changes.withdraw(tx, change)

    steps = [
        *(partial(withdraw, one) for one in published[:6]),
        *(partial(erase, *sorted(customers[n : n + 2], reverse=True)) for n in range(0, 10, 2)),
        *(partial(withdraw, one) for one in published[6:]),
    ]
    assert oppose(25, send, send, report, report, again, publish, steps=steps) == 0
