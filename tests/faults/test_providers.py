"""Faults 18 to 20 with SendGrid and Twilio: senders die, providers fail, reports are forged or come often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest
import urllib3

from services.survey.commands import ask, company, customers, programs
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
from shared.channels import CHANNELS, ledger
from shared.channels.sender import HANDS
from tests.support import trial
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


def everything(installation: Running) -> dict[str, list[str]]:
    """What survey has, in all its tables."""
    with installation.db("survey").transaction() as tx:
        names = [
            row["name"]
            for row in tx.all(
                "SELECT format('%I', tablename) AS name FROM pg_tables WHERE schemaname = 'public'"
            )
        ]
        return {
            name: [row["it"] for row in tx.all(f"SELECT t::text AS it FROM {name} t ORDER BY 1")]
            for name in names
        }


_SIGNATURES = ("X-Twilio-Email-Event-Webhook-Signature", "X-Twilio-Signature")
Spoil = Callable[[bytes, dict[str, str]], tuple[bytes, dict[str, str]]]
# What a stranger, or a bad line, makes of a webhook that was meant.
SPOILT: dict[str, Spoil] = {
    "unsigned": lambda body, headers: (
        body,
        {name: value for name, value in headers.items() if name not in _SIGNATURES},
    ),
    "forged": lambda body, headers: (
        body,
        {
            name: value[:8] + ("A" if value[8] != "A" else "B") + value[9:] if name in _SIGNATURES else value
            for name, value in headers.items()
        },
    ),
    "truncated": lambda body, headers: (body[: len(body) // 2], headers),
    "lengthened": lambda body, headers: (body + b"&Body=10" * 2, headers),
}


@dataclass
class Served:
    """Everybody was asked, and of the processes only the web runs on."""

    installation: Running
    providers: StandIn
    said: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> int:
        self.said.append((path, body, dict(headers)))
        return urllib3.request(
            "POST", self.installation.url + path, body=body, headers=headers, retries=False, timeout=20
        ).status

    def say_everything(self, spoil: Spoil = lambda body, headers: (body, headers)) -> list[int]:
        """A mail bounces, a text is not delivered, a customer writes STOP."""

        def post(path: str, body: bytes, headers: Mapping[str, str]) -> int:
            return self.post(path, *spoil(body, dict(headers)))

        hooks = Hooks(self.providers, post, self.installation.url)
        mail, text = self.providers.sendgrid.delivery_ids()[0], self.providers.twilio.texts[0]
        return [
            hooks.events(self.providers.sendgrid.event(mail, "bounce", type="bounce")),
            hooks.status(text, "undelivered", ErrorCode="30003"),
            hooks.text(self.providers.twilio.inbound(text["To"], "STOP")),
        ]


@pytest.fixture
def served(installation: Running, providers: StandIn) -> Served:
    installation.web()
    invite(installation)
    sender = installation.role("survey", "sender")
    installation.wait(lambda: set(states(installation).values()) == {"handed"}, sender, "the messages")
    sender.stop()
    return Served(installation, providers)


def test_fault_19_spoilt_and_stale_webhooks_are_refused_and_change_nothing(served: Served) -> None:
    before = everything(served.installation)
    for how, spoil in SPOILT.items():
        assert served.say_everything(spoil) == [401, 401, 401], how
        assert everything(served.installation) == before, how
    trial.checked(0, trials=3 * len(SPOILT) + 1)
    # Only SendGrid says when it signed; what Twilio repeats has no second effect.
    hooks = Hooks(served.providers, served.post, served.installation.url)
    event = served.providers.sendgrid.event(served.providers.sendgrid.delivery_ids()[0], "delivered")
    assert hooks.events(event, at=time.time() - 301) == 401
    assert everything(served.installation) == before


def test_fault_19_a_replayed_webhook_has_no_second_effect(served: Served) -> None:
    before = everything(served.installation)
    assert served.say_everything() == [204, 200, 200]
    after = everything(served.installation)
    assert after["customer"] != before["customer"] and after["delivery"] != before["delivery"]
    for path, body, headers in list(served.said):
        assert served.post(path, body, headers) < 300, path
    assert everything(served.installation) == after


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
        Trouble("accept-hang"),
        Trouble("hang"),
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
    # What hung, or other hands had begun when the sender died, and nobody took is in doubt, and shown so.
    lost = [id for id in states(installation) if id not in ids]
    with installation.db("survey").transaction() as tx:
        assert sorted(one.id for one in ledger.uncertain_ones(tx)) == sorted(lost)
    assert len(lost) <= len(CHANNELS) * HANDS and len(ids) + len(lost) == MAILS + TEXTS
    with installation.db("survey").transaction() as tx:
        told = tx.all(
            "SELECT key, count(*) AS times FROM outbox WHERE type = 'delivery.reported' GROUP BY key"
        )
        sent = tx.value("SELECT count(*) FROM invitation WHERE state = 'sent'")
    trial.checked(len(ids), {"doubled": len(ids) - len(set(ids))})
    assert len(told) == sent == len(ids) and {row["times"] for row in told} == {1}
