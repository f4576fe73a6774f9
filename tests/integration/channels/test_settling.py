"""From the decision to the webhook, by the real sender: nothing lost, nothing twice, and doubt is shown."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest

from shared.channels import http
from shared.channels.sender import HANDS
from shared.faults import crash_at
from tests.support.asking import Asking
from tests.support.providers.server import Kind, Reply, Trouble, refusal
from tests.support.providers.stand_in import Hooks, Reporter, StandIn

PHONE = "+4930123456"


def states(survey: Asking) -> list[Any]:
    return [row["state"] for row in survey.all("SELECT state FROM delivery ORDER BY created_at, id")]


def invite(survey: Asking, count: int = 1, **values: str) -> None:
    survey.ask({"customers": [survey.add(**values) for _ in range(count)]})
    survey.send()


def later(survey: Asking, **span: float) -> None:
    survey.clock.advance(timedelta(**span))
    survey.send()


def test_an_invitation_goes_by_sendgrid_is_clicked_and_told_of(
    survey: Asking, providers: StandIn, hooks: Hooks
) -> None:
    invite(survey, email="ann@example.com")
    mail = providers.sendgrid.mails[0]
    assert mail["from"]["email"] == "feedback@example.com"
    assert mail["headers"]["List-Unsubscribe"].startswith("<https://feedback.example.org/u/")
    link = re.search(r"https://feedback\.example\.org(/a/[\w-]+)\?s=3", mail["content"][1]["value"])
    assert link
    survey.submit(f"{link[1]}?s=3")
    assert survey.response()["score"] == 3
    hooks.events(providers.sendgrid.event(mail["custom_args"]["delivery_id"], "delivered"))
    row = survey.one("SELECT d.state, d.provider_id, i.state AS asked FROM delivery d, invitation i")
    assert (row["state"], row["provider_id"], row["asked"]) == ("delivered", mail["id"], "sent")


def test_one_click_in_the_mails_header_opts_out(survey: Asking, providers: StandIn) -> None:
    invite(survey, email="ann@example.com")
    header = providers.sendgrid.mails[0]["headers"]["List-Unsubscribe"]
    path = header.strip("<>").removeprefix("https://feedback.example.org")
    assert survey.http.post(path, data={"List-Unsubscribe": "One-Click"}).status_code < 400
    assert survey.customer(email="ann@example.com")["email_opt_out_at"] is not None


def test_reports_doubled_and_shuffled_end_where_they_should(
    survey: Asking, providers: StandIn, hooks: Hooks
) -> None:
    invite(survey, 30)
    invite(survey, phone=PHONE)
    reporter = Reporter(providers, hooks, copies=3, shuffled=True)
    while reporter.step():
        pass
    reporter.close()
    assert reporter.refused == 0 and states(survey) == ["delivered"] * 31
    assert len(survey.events("delivery.reported")) == 31


@pytest.mark.parametrize("kind", ["accept-close", "accept-hang", "garble", "accept-answer"])
@pytest.mark.parametrize("values", [{"email": "ann@example.com"}, {"phone": PHONE}])
def test_fault_18_what_was_taken_without_a_word_is_uncertain_and_settled_by_its_webhook(
    survey: Asking,
    providers: StandIn,
    hooks: Hooks,
    kind: Kind,
    values: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 1.0)
    providers.server.misbehave(Trouble(kind, Reply(500)))
    survey.ask({"customers": [survey.add(**values)]})
    survey.send()
    assert states(survey) == ["uncertain"]
    for _ in range(3):
        later(survey, hours=3)
    taken = len(providers.sendgrid.mails) + len(providers.twilio.texts)
    assert taken == 1 and states(survey) == ["uncertain"]
    if "email" in values:
        hooks.events(providers.sendgrid.event(providers.sendgrid.delivery_ids()[0], "delivered"))
    else:
        hooks.status(providers.twilio.texts[0], "delivered")
    assert states(survey) == ["delivered"]
    assert survey.one("SELECT state FROM invitation")["state"] == "sent"


def test_a_mail_taken_without_an_id_is_handed_over_and_its_webhook_finds_it(
    survey: Asking, providers: StandIn, hooks: Hooks
) -> None:
    providers.server.misbehave(Trouble("accept-answer", Reply(202)))
    invite(survey, email="ann@example.com")
    assert (
        states(survey) == ["handed"] and survey.one("SELECT provider_id FROM delivery")["provider_id"] is None
    )
    hooks.events(providers.sendgrid.event(providers.sendgrid.delivery_ids()[0], "delivered"))
    assert states(survey) == ["delivered"]


@pytest.mark.parametrize("kind", ["close", "reset", "hang"])
def test_fault_18_what_was_not_taken_stays_uncertain_until_a_person_decides(
    survey: Asking, providers: StandIn, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.5)
    providers.server.misbehave(Trouble(kind))
    invite(survey, email="ann@example.com")
    later(survey, hours=10)
    assert states(survey) == ["uncertain"] and providers.sendgrid.mails == []


def test_fault_18_a_crash_after_the_hand_over_is_settled_by_the_webhook(
    survey: Asking, providers: StandIn, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(BaseException):
        pass

    def dies(point: str) -> None:
        if point == "sender.after_hand_over":
            raise Died

    monkeypatch.setattr("shared.channels.sender.crash_at", dies)
    with pytest.raises(Died):
        invite(survey, email="ann@example.com")
    monkeypatch.setattr("shared.channels.sender.crash_at", crash_at)
    later(survey, minutes=2)
    survey.sender.step()
    assert states(survey) == ["uncertain"] and len(providers.sendgrid.mails) == 1
    hooks.events(providers.sendgrid.event(providers.sendgrid.delivery_ids()[0], "processed"))
    assert states(survey) == ["handed"]


@pytest.mark.parametrize("trouble", [refusal(429, retry_after="30"), refusal(503, retry_after="30")])
def test_fault_18_all_wait_while_a_provider_says_so_and_the_other_channel_goes_on(
    survey: Asking, providers: StandIn, trouble: Trouble
) -> None:
    providers.server.always(trouble)
    survey.ask({"customers": [survey.add() for _ in range(30)]})
    survey.send()
    # What the other hands had begun was refused too; nothing was begun after that.
    asked = len(providers.server.requests)
    assert asked <= HANDS and states(survey) == ["queued"] * 30
    providers.server.always(None)
    survey.ask({"customers": [survey.add(phone=PHONE)]})
    survey.send()
    assert len(providers.twilio.texts) == 1 and len(providers.server.requests) == asked + 1
    for _ in range(4):
        later(survey, seconds=31)
    ids = providers.sendgrid.delivery_ids()
    assert len(ids) == len(set(ids)) == 30


def test_whoever_asked_us_to_wait_is_asked_again_by_one_message(survey: Asking, providers: StandIn) -> None:
    providers.server.always(refusal(429, retry_after="60"))
    survey.ask({"customers": [survey.add() for _ in range(30)]})
    survey.send()
    for _ in range(3):
        before = len(providers.server.requests)
        later(survey, seconds=61)
        assert len(providers.server.requests) == before + 1
    providers.server.always(None)
    later(survey, hours=1)
    ids = providers.sendgrid.delivery_ids()
    assert len(ids) == len(set(ids)) == 30


def test_messages_outlast_a_wrong_key(survey: Asking, providers: StandIn) -> None:
    survey.ask({"customers": [survey.add() for _ in range(3)]})
    right, providers.sendgrid.key = providers.sendgrid.key, "SG.another"
    for _ in range(30):
        later(survey, minutes=20)
    assert states(survey) == ["queued"] * 3
    assert {row["attempts"] for row in survey.all("SELECT attempts FROM delivery")} == {0}
    assert "SENDGRID_API_KEY" in survey.all("SELECT reason FROM delivery")[0]["reason"]
    assert len(providers.server.requests) <= 30 + HANDS
    providers.sendgrid.key = right
    later(survey, minutes=20)
    assert sorted(states(survey)) == ["handed"] * 3 and len(providers.sendgrid.mails) == 3


def test_a_mix_of_all_troubles_loses_nothing_and_sends_nothing_twice(
    survey: Asking, providers: StandIn, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.5)
    kinds: list[Kind] = ["close", "accept-close", "reset", "garble", "accept-hang", "hang"]
    providers.server.misbehave(
        *(Trouble(kind) for kind in kinds),
        refusal(429),
        Trouble("accept-answer", Reply(502)),
        refusal(500),
        refusal(400),
    )
    survey.ask({"customers": [survey.add() for _ in range(25)]})
    for _ in range(6):
        later(survey, minutes=2)
    ids = providers.sendgrid.delivery_ids()
    assert len(ids) == len(set(ids))
    found = states(survey)
    assert (found.count("failed"), found.count("queued"), found.count("uncertain")) == (1, 0, 8)
    hooks.events(*(providers.sendgrid.event(id, "delivered") for id in ids))
    # What the stand-in never had stays uncertain, and is shown as such.
    assert states(survey).count("delivered") == len(ids) == 20
    assert states(survey).count("uncertain") == 4
