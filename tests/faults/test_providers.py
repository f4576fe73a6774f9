"""Faults 18 to 20 with SendGrid and Twilio: senders die, providers fail, reports are forged or come often."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import urllib3

from shared.channels import CHANNELS, ledger
from shared.channels.sender import HANDS
from shared.settings import SERVICES
from tests.faults.conftest import settings_for
from tests.support import trial
from tests.support.checker import check
from tests.support.history import History
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.providers.server import Reply, Trouble, refusal
from tests.support.providers.stand_in import Hooks, Reporter, StandIn, stand_in
from tests.support.running import Cast, Running, running
from tests.support.wall_clock import WallClock

MAILS, TEXTS = 30, 10
TIMES = 100


@dataclass
class Provided(History):
    """An installation that sends by SendGrid and Twilio."""

    providers: StandIn = field(kw_only=True)
    wall: WallClock = field(kw_only=True)
    dies_at: str = field(kw_only=True)


@pytest.fixture(
    scope="module",
    params=[
        ("embedded", "sender.after_hand_over"),
        pytest.param(("embedded", "sender.after_claim"), marks=pytest.mark.slow_fault),
        pytest.param(("kafka", "sender.before_settle"), marks=pytest.mark.slow_fault),
    ],
    ids=lambda param: "-".join(param),
)
def history(
    request: pytest.FixtureRequest, postgres: TestPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Provided]:
    """Nobody is asked yet. The tests go on from each other."""
    log, point = request.param
    wall = WallClock(tmp_path_factory.mktemp("clock") / "off")
    wall.set(datetime.now(UTC))
    kafka = settings_for(request.getfixturevalue("broker")) if log == "kafka" else None
    urls = FreshDatabases(postgres)
    with stand_in() as providers:
        environment = providers.environment() | wall.environment()
        with running(urls, environment, log=log, kafka=kafka, clock=wall) as installation:
            yield Provided(
                installation,
                cast=Cast(installation),
                taken=providers.taken,
                providers=providers,
                wall=wall,
                dies_at=point,
            )
    urls.drop()


def states(installation: Running) -> dict[str, str]:
    with installation.db("survey").transaction() as tx:
        return {str(row["id"]): row["state"] for row in tx.all("SELECT id, state FROM delivery")}


def everything(installation: Running) -> dict[str, list[str]]:
    """What the services have, in all their tables; not when the web last said that it runs."""
    found = {}
    for service in SERVICES:
        with installation.db(service).transaction() as tx:
            for row in tx.all(
                "SELECT format('%I', tablename) AS name FROM pg_tables WHERE schemaname = 'public'"
                " AND tablename <> 'running_process'"
            ):
                rows = tx.all(f"SELECT t::text AS it FROM {row['name']} t ORDER BY 1")
                found[f"{service}.{row['name']}"] = [one["it"] for one in rows]
    return found


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
    """Of the processes only the web runs on, so that whatever changes is the webhooks' doing."""

    history: Provided
    said: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    @property
    def installation(self) -> Running:
        return self.history.running

    @property
    def providers(self) -> StandIn:
        return self.history.providers

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
def served(history: Provided) -> Iterator[Served]:
    """At the end the others start again, and what was acknowledged must be there as if nothing had been."""
    history.running.settle()
    for process in history.running.processes:
        if process is not history.cast.web:
            process.stop()
    yield Served(history)
    history.running.workers()
    history.answer(next(person for person in history.people if person.token))
    history.running.settle()
    check(history)


def _answer(history: History, hooks: Hooks) -> None:
    """Whoever got a message answers: to a mail on the page, to a text by a text."""
    for person in history.people:
        if person.token and not person.phone:
            history.answer(person)
        elif person.token:
            form = history.form(person)
            said = hooks.stand_in.twilio.inbound(person.phone, f"{form['score']} {form['comment']}")
            assert hooks.text(said) == 200
            history.acknowledged(person, form, {"effect": "saved", "version": 1})


def test_fault_18_a_sender_dies_and_providers_fail_and_each_message_is_taken_once(
    history: Provided,
) -> None:
    installation, providers = history.running, history.providers
    http = urllib3.PoolManager(retries=False, timeout=20)

    def post(path: str, body: bytes, headers: Mapping[str, str]) -> int:
        return http.request("POST", installation.url + path, body=body, headers=headers).status

    history.cast.others[0].stop()
    installation.role("survey", "clock")
    dying = installation.role("survey", "sender", crash_at=history.dies_at)
    history.ask(MAILS + TEXTS, texts=TEXTS)
    installation.wait_crash(dying)
    assert "claimed" in states(installation).values()
    # Then it is believed to be dead.
    history.wall.set(history.wall.now() + ledger.CLAIM_LIFETIME)
    providers.server.misbehave(
        refusal(429, retry_after="1"),
        Trouble("accept-close"),
        Trouble("accept-answer", Reply(502)),
        refusal(503, retry_after="1"),
        Trouble("garble"),
        Trouble("accept-hang"),
        Trouble("hang"),
    )
    hooks = Hooks(providers, post, installation.url)
    reporter = Reporter(providers, hooks, copies=3, shuffled=True)
    sender = installation.role("survey", "sender")

    def taken() -> list[str]:
        return [message.delivery_id for message in providers.taken()]

    def told_of() -> bool:
        found = states(installation)
        return (
            len(found) == MAILS + TEXTS
            and set(found.values()) <= {"delivered", "uncertain"}
            and all((found[id] == "delivered") == (id in taken()) for id in found)
        )

    installation.wait(told_of, sender, "every message that was taken to be told delivered")
    reporter.close()
    assert not providers.server.waiting, "not everything went wrong that should have"
    ids = taken()
    assert len(ids) == len(set(ids)) and reporter.refused == 0
    # What hung, or other hands had begun when the sender died, and nobody took is in doubt, and shown so.
    lost = [id for id in states(installation) if id not in ids]
    with installation.db("survey").transaction() as tx:
        assert sorted(one.id for one in ledger.uncertain_ones(tx)) == sorted(lost)
    assert len(lost) <= len(CHANNELS) * HANDS and len(ids) + len(lost) == MAILS + TEXTS
    with installation.db("survey").transaction() as tx:
        sent = tx.value("SELECT count(*) FROM invitation WHERE state = 'sent'")
    history.reached()
    _answer(history, hooks)
    installation.settle()
    check(history)
    assert len(history.acks) == sent == len(ids)
    with installation.db("reporting").transaction() as tx:
        told = tx.value("SELECT count(*) FROM delivery WHERE state = 'delivered'")
    log = installation.log()
    said = [
        entry.headers["id"]
        for entry in log.tail("deliveries", 1_000_000)
        if entry.headers["type"] == "delivery.reported"
    ]
    log.close()
    assert told == len(said) == len(set(said)) == len(ids)


def test_fault_18_followups_sender_dies_and_each_notice_is_taken_once(history: Provided) -> None:
    installation, providers = history.running, history.providers
    followup = installation.db("followup")
    history.cast.others[1].stop()
    installation.role("followup", "relay", "clock")
    dying = installation.role("followup", "sender", crash_at=history.dies_at)
    before = {message.delivery_id for message in providers.taken()}
    change = history.publish("Saturdays")
    installation.wait_crash(dying)
    with followup.transaction() as tx:
        assert tx.value("SELECT count(*) FROM delivery WHERE kind = 'notice' AND state = 'claimed'")
    history.wall.set(history.wall.now() + ledger.CLAIM_LIFETIME)
    sender = installation.role("followup", "sender")

    def notices() -> dict[str, str]:
        with followup.transaction() as tx:
            rows = tx.all("SELECT delivery_id, state FROM notice WHERE change_id = %s", (change,))
        return {str(row["delivery_id"]): row["state"] for row in rows}

    installation.wait(lambda: "queued" not in notices().values(), sender, "the notices")
    installation.settle()
    told = notices()
    ids = [message.delivery_id for message in providers.taken() if message.delivery_id not in before]
    assert len(told) == len(history.final()) and len(ids) == len(set(ids)) and set(ids) <= told.keys()
    assert {id for id, state in told.items() if state == "sent"} <= set(ids), "sent, and nobody has it"
    in_doubt = {id for id, state in told.items() if state == "uncertain"}
    assert told.keys() - set(ids) <= in_doubt, "lost, and not shown so"
    assert len(in_doubt) <= len(CHANNELS) * HANDS and (
        history.dies_at != "sender.after_claim" or not in_doubt
    )
    # Survey, which gave leave for each, knows the same of it.
    known = {id: state for id, state in states(installation).items() if id in told}
    assert known == {id: "handed" if state == "sent" else state for id, state in told.items()}
    check(history)


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
    for table in ("survey.customer", "survey.delivery"):
        assert after[table] != before[table]
    for path, body, headers in list(served.said):
        assert served.post(path, body, headers) < 300, path
    assert everything(served.installation) == after


def test_fault_20_the_same_reports_and_texts_a_hundred_times_at_once_have_one_effect(
    history: Provided,
) -> None:
    installation, providers = history.running, history.providers
    history.running.settle()
    stopped = providers.twilio.texts[0]["To"]
    silent = next(one for one in history.people if one.phone and one.token and one.phone != stopped)
    history.form(silent)  # a word after their answer is another version of it
    text = providers.twilio.inbound(silent.phone, "please call me, all of it is broken")
    event = providers.sendgrid.event(providers.sendgrid.delivery_ids()[1], "bounce", type="bounce")
    http = urllib3.PoolManager(maxsize=TIMES, retries=False, timeout=30)

    def post(path: str, body: bytes, headers: Mapping[str, str]) -> int:
        return http.request("POST", installation.url + path, body=body, headers=headers).status

    hooks = Hooks(providers, post, installation.url)
    together = threading.Barrier(TIMES)

    def say(number: int) -> int:
        together.wait()
        return hooks.text(text) if number % 2 else hooks.events(event)

    with ThreadPoolExecutor(TIMES) as pool:
        statuses = list(pool.map(say, range(TIMES)))
    assert all(200 <= status < 300 for status in statuses), sorted(set(statuses))
    installation.settle()
    with installation.db("survey").transaction() as tx:
        texts = tx.value("SELECT count(*) FROM inbound WHERE text = %s", (text["Body"],))
    with installation.db("reporting").transaction() as tx:
        told = tx.all("SELECT state FROM delivery WHERE id = %s", (event["delivery_id"],))
    assert texts == 1 and [row["state"] for row in told] == ["bounced"]
    log = installation.log()
    said = [json.loads(entry.value or b"{}") for entry in log.tail("deliveries", 1_000_000)]
    log.close()
    became = [one["state"] for one in said if one.get("delivery_id") == event["delivery_id"]]
    assert became.count("bounced") == 1, became
    check(history)
