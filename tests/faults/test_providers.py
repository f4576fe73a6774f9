"""Faults 18 and 20 with SendGrid and Twilio: senders die, providers fail, reports come often and shuffled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import urllib3

from services.survey.commands import ask, company, customers, programs
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
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


def states(installation: Running) -> list[str]:
    with installation.db("survey").transaction() as tx:
        return [row["state"] for row in tx.all("SELECT state FROM delivery ORDER BY state")]


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
    assert states(installation).count("claimed") >= 1
    providers.server.misbehave(
        refusal(429, retry_after="1"),
        Trouble("accept-close"),
        Trouble("accept-answer", Reply(502)),
        refusal(503, retry_after="1"),
        Trouble("garble"),
    )
    reporter = Reporter(providers, Hooks(providers, post, installation.url), copies=3, shuffled=True)
    sender = installation.role("survey", "sender")
    installation.wait(
        lambda: set(states(installation)) == {"delivered"}, sender, "every message to be told delivered"
    )
    reporter.close()
    ids = providers.sendgrid.delivery_ids() + providers.twilio.delivery_ids()
    assert len(ids) == len(set(ids)) == MAILS + TEXTS and reporter.refused == 0
    with installation.db("survey").transaction() as tx:
        told = tx.all(
            "SELECT key, count(*) AS times FROM outbox WHERE type = 'delivery.reported' GROUP BY key"
        )
        sent = tx.value("SELECT count(*) FROM invitation WHERE state = 'sent'")
    assert len(told) == sent == MAILS + TEXTS and {row["times"] for row in told} == {1}
