"""Survey's customers and deliveries are locked in one order by all who lock both."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial
from typing import Literal

from services.survey.commands import erase, permits, settle
from services.survey.commands.permits import Request
from services.survey.commands.settle import Result
from shared.channels import ledger
from shared.channels.ledger import NewDelivery
from tests.support.asking import Asking
from tests.support.opposing import oppose

ENDS: tuple[Literal["handed"], Literal["failed"]] = ("handed", "failed")


def test_permits_settling_reports_and_erasures_never_wait_in_a_ring(survey: Asking) -> None:
    customers = [survey.add() for _ in range(12)]
    with survey.db.transaction() as tx:
        of = {
            id: customer
            for customer in customers
            for id in ledger.queue_many(
                tx, [NewDelivery("notice", tx.ids.new(), "email", customer) for _ in range(3)]
            )
        }
    survey.ask({"customers": customers})
    known = survey.fingerprints

    def take(chosen: random.Random) -> None:
        wanted = [Request(id, "notice", id, of[id]) for id in chosen.sample(list(of), 5)]
        with survey.db.transaction() as tx:
            permits.take(tx, wanted, "https://feedback.example.org", known)

    def tell(chosen: random.Random) -> None:
        results = [Result(id, chosen.choice(ENDS)) for id in chosen.sample(list(of), 5)]
        with survey.db.transaction() as tx:
            settle.notices(tx, results, known)

    def report(chosen: random.Random) -> None:
        id = chosen.choice(list(of))
        state: settle.Report = chosen.choice(("delivered", "failed", "bounced"))
        with survey.db.transaction() as tx:
            settle.report(tx, id, state, None, tx.now, known)

    def taken(chosen: random.Random) -> None:
        with survey.db.transaction() as tx:
            settle.taken(tx, chosen.choice(list(of)), "p")

    def unsubscribed(chosen: random.Random) -> None:
        with survey.db.transaction() as tx:
            settle.unsubscribed(tx, chosen.choice(list(of)), known)

    def send(chosen: random.Random) -> None:
        survey.sender.step()
        # Some are claimed for good, as by a sender that died; a later step finds them.
        with survey.db.transaction() as tx:
            tx.execute(
                "UPDATE delivery SET state = 'claimed', claimed_at = %s WHERE id = %s",
                (tx.now - timedelta(minutes=5), chosen.choice(list(of))),
            )
        survey.sender._swept_at = float("-inf")

    def erases(customer: str) -> None:
        with survey.db.transaction() as tx:
            erase.erase(tx, customer, known)

    steps = [partial(erases, one) for one in customers]
    assert oppose(60, take, tell, report, taken, unsubscribed, send, steps=steps) == []
