"""Followup's customers, notices and deliveries are locked in one order by all who lock several of them."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest

from services.followup import handlers
from services.followup.commands import changes, notices
from shared.errors import Conflict
from tests.integration.followup.test_notices import LEAD, Sending
from tests.integration.followup.test_notices import sending as sending
from tests.support.followup import new_id
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
    assert oppose(25, send, send, report, report, again, publish, steps=steps) == []


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_who_is_erased_while_a_message_of_theirs_waits_does_not_come_back(
    sending: Sending, known: bool
) -> None:
    followup = sending.followup
    customer = sending.customer() if known else new_id()
    with ThreadPoolExecutor(1) as pool:
        with followup.db.transaction() as tx:
            handlers.apply(tx, [followup.erasure(customer)])
            waiting = pool.submit(followup.apply, followup.message(customer, "Call me"))
            until = time.monotonic() + 20
            while not followup.all(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            ):
                assert time.monotonic() < until and not waiting.done()
        waiting.result()
    assert not followup.all("SELECT 1 FROM customer WHERE id = %s", customer)
    assert not followup.all("SELECT 1 FROM inbound_message")
