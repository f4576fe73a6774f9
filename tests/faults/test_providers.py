"""Faults 18 and 20 with SendGrid and Twilio: senders die, providers fail, reports come often and shuffled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import urllib3

from services.survey.commands import ask, company, customers, programs
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
from shared.channels import ledger
from shared.channels.sender import HANDS
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.providers.server import Reply, Trouble, refusal
from tests.support.providers.stand_in import Hooks, Reporter, StandIn, stand_in
from tests.support.running import Running, running

MAILS, TEXTS = 30, 10


@pytest.fixture
def providers() -> Iterator[StandIn]:
    with stand_in() as made:
        yield made


@pytest.fixture
def installation(postgres: TestPostgres, providers: StandIn) -> Iterator[Running]:
    urls = FreshDatabases(postgres)
    with running(urls, providers.environment()) as made:
        yield made
    urls.drop()


def invite(installation: Running) -> None:
    people = [{"email": f"person{number}@example.com"} for number in range(MAILS)]
    people += [{"phone": f"+49301234{number:03}"} for number in range(TEXTS)]
    with installation.db("survey").transaction() as tx:
        company.ensure(tx)
        customers.upsert(
            tx, [Row(person, {}) for person in people], opt_out_fingerprints(installation.settings)
        )
        program = programs.create(tx, "Recommend")
        run = ask.start(tx, str(program["id"]), {"all": True}, "test")
    with installation.db("survey").transaction() as tx:
        ask.step(tx, str(run["id"]))


def states(installation: Running) -> dict[str, str]:
    with installation.db("survey").transaction() as tx:
        return {str(row["id"]): row["state"] for row in tx.all("SELECT id, state FROM delivery")}


def test_fault_18_a_sender_dies_and_providers_fail_and_each_message_is_taken_once(
    installation: Running, providers: StandIn
) -> None:
    http = urllib3.PoolManager(retries=False, timeout=20)

    def post(path: str, body: bytes, headers: Mapping[str, str]) -> int:
        return http.request("POST", installation.url + path, body=body, headers=headers).status

    installation.web()
    invite(installation)
    dying = installation.role("survey", "sender", crash_at="sender.after_hand_over")
    installation.wait_crash(dying)
    assert "claimed" in states(installation).values()
    providers.server.misbehave(
        refusal(429, retry_after="1"),
        Trouble("accept-close"),
        Trouble("accept-answer", Reply(502)),
        refusal(503, retry_after="1"),
        Trouble("garble"),
    )
    reporter = Reporter(providers, Hooks(providers, post, installation.url), copies=3, shuffled=True)
    sender = installation.role("survey", "sender")

    def taken() -> list[str]:
        return providers.sendgrid.delivery_ids() + providers.twilio.delivery_ids()

    def told_of() -> bool:
        found = states(installation)
        return set(found.values()) <= {"delivered", "uncertain"} and all(
            (found[id] == "delivered") == (id in taken()) for id in found
        )

    installation.wait(told_of, sender, "every message that was taken to be told delivered")
    reporter.close()
    ids = taken()
    assert len(ids) == len(set(ids)) and reporter.refused == 0
    # What the sender's other hands had begun when it died, and nobody took, is in doubt, and shown so.
    lost = [id for id in states(installation) if id not in ids]
    with installation.db("survey").transaction() as tx:
        assert sorted(one.id for one in ledger.uncertain_ones(tx)) == sorted(lost)
    assert len(lost) < HANDS and len(ids) + len(lost) == MAILS + TEXTS
    with installation.db("survey").transaction() as tx:
        told = tx.all(
            "SELECT key, count(*) AS times FROM outbox WHERE type = 'delivery.reported' GROUP BY key"
        )
        sent = tx.value("SELECT count(*) FROM invitation WHERE state = 'sent'")
    assert len(told) == sent == len(ids) and {row["times"] for row in told} == {1}
