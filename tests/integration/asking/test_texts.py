"""Text messages: answers, further words, STOP, START and HELP, and what comes from providers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from services.survey.commands import permits, settle
from services.survey.commands.permits import Request
from shared.channels import Message
from shared.channels.mailbox import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from tests.support.asking import Asking, trail_link

PHONE = "+4930123456"


@pytest.fixture
def question(survey: Asking) -> Message:
    message = survey.invited(phone=PHONE)
    survey.events()
    return message


def test_score_and_words_in_one_text_answer(survey: Asking, question: Message) -> None:
    assert survey.text(PHONE, "3 too slow").status_code == 204
    row = survey.response()
    assert (row["score"], row["comment"], row["source"], row["state"]) == (3, "too slow", "sms", "counted")
    reply = survey.send()[0]
    assert "we noted your 3" in reply.text and "HELP" in reply.text and reply.to == PHONE
    assert "too slow" in survey.page(trail_link(reply)).text


def test_further_words_are_added_and_a_new_score_revises(survey: Asking, question: Message) -> None:
    survey.text(PHONE, "3")
    survey.text(PHONE, "too slow")
    survey.text(PHONE, "and rude")
    assert survey.response()["comment"] == "too slow\nand rude"
    survey.text(PHONE, "8 they called me, thank you")
    row = survey.response()
    assert (row["score"], row["comment"], row["version"]) == (8, "they called me, thank you", 4)
    survey.text(PHONE, "9")
    assert survey.response()["comment"] == "they called me, thank you"
    assert survey.events("message.received") == []


@pytest.mark.parametrize(
    "words", ["10 days and nobody called", "2 people came, both late", "9 Tage gewartet"]
)
def test_a_number_that_counts_something_is_no_change_of_mind(
    survey: Asking, question: Message, words: str
) -> None:
    survey.text(PHONE, "3")
    survey.text(PHONE, words)
    row = survey.response()
    assert (row["score"], row["comment"]) == (3, words)


def test_words_without_a_score_become_a_message_for_a_person(survey: Asking, question: Message) -> None:
    survey.text(PHONE, "who is this?")
    assert survey.all("SELECT * FROM response") == []
    event = survey.events("message.received")[0]
    assert event["data"]["text"] == "who is this?"
    assert survey.send() == []


def test_stop_ends_texts_and_gets_no_reply(survey: Asking, question: Message) -> None:
    assert survey.text(PHONE, " Stop! ").status_code == 204
    event = survey.events("customer.changed")[0]
    assert event["data"]["may_sms"] is False and event["data"]["sms_opt_out_at"]
    assert survey.send() == []
    survey.clock.advance(timedelta(days=40))
    survey.ask()
    assert survey.send() == []
    survey.text(PHONE, "START")
    assert survey.events("customer.changed")[-1]["data"]["may_sms"] is True
    assert "again" in survey.send()[0].text


def test_a_stop_and_its_repetition_say_when_a_message_was_on_its_way(
    survey: Asking, question: Message
) -> None:
    customer = str(survey.one("SELECT id FROM customer")["id"])
    request = Request(survey.db.ids.new(), "notice", survey.db.ids.new(), customer, prefer_channel="sms")
    with survey.db.transaction() as tx:
        assert permits.take(tx, [request], "http://x", survey.fingerprints)[0]
    for _ in range(2):
        reply = survey.text(PHONE, "STOP", "the-same-text")
        assert (reply.status_code, reply.json) == (200, {"on_its_way": True})
    with survey.db.transaction() as tx:
        settle.notices(tx, [settle.Result(request.id, "handed", "p")], survey.fingerprints)
    assert survey.text(PHONE, "STOP", "the-same-text").status_code == 204


def test_a_score_whose_only_words_are_stop_is_both(survey: Asking, question: Message) -> None:
    survey.text(PHONE, "2 STOP")
    assert survey.response()["score"] == 2
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is not None
    assert survey.send() == []


def test_stop_from_a_number_nobody_has_is_remembered(survey: Asking) -> None:
    survey.text("+4930999999", "STOP")
    survey.add(phone="+4930999999")
    assert survey.ask()["asked"] == 0


def test_help_says_who_asks_and_how_to_stop(survey: Asking, question: Message) -> None:
    survey.text(PHONE, "help")
    reply = survey.send()[0]
    assert "STOP" in reply.text and "Example Ltd" in reply.text


def test_info_is_help(survey: Asking, question: Message) -> None:
    survey.text(PHONE, "Info")
    assert "STOP" in survey.send()[0].text and survey.events("message.received") == []


def test_a_yes_is_words_but_for_somebody_who_has_stopped(survey: Asking, question: Message) -> None:
    survey.text(PHONE, "Yes!")
    assert [event["data"]["text"] for event in survey.events("message.received")] == ["Yes!"]
    survey.text(PHONE, "3 slow")
    survey.send()
    survey.text(PHONE, "yes")
    assert survey.response()["comment"] == "slow\nyes" and survey.send() == []
    survey.text(PHONE, "STOP")
    survey.text(PHONE, "YES")
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is None and "again" in survey.send()[0].text
    assert survey.response()["comment"] == "slow\nyes"


def test_an_auto_responder_is_not_answered_for_ever(survey: Asking, question: Message) -> None:
    for _ in range(20):
        survey.text(PHONE, "HELP")
    assert len(survey.send()) == 5


def test_the_same_text_again_has_one_effect(survey: Asking, question: Message) -> None:
    for _ in range(3):
        assert survey.text(PHONE, "3 slow", "the-same").status_code == 204
    assert survey.response()["version"] == 1
    assert len(survey.send()) == 1


def test_reports_are_told_once_and_end_what_cannot_arrive(survey: Asking, question: Message) -> None:
    for _ in range(2):
        survey.report(question, "delivered")
    survey.report(question, "bounced")
    survey.report(question, "delivered")
    told = [(e["data"]["state"], e["version"]) for e in survey.events("delivery.reported")]
    assert told == [("delivered", 1), ("bounced", 2)]
    assert survey.customer(phone=PHONE)["sms_bounced_at"] is not None


def test_a_complaint_opts_out(survey: Asking) -> None:
    message = survey.invited(email="ann@example.com")
    survey.report(message, "delivered")
    survey.report(message, "complained")
    survey.report(message, "complained")
    assert survey.customer(email="ann@example.com")["email_opt_out_at"] is not None
    assert [e["data"]["state"] for e in survey.events("delivery.reported")] == ["delivered", "complained"]


@pytest.mark.parametrize("state", ["bounced", "complained"])
def test_a_late_report_leaves_an_address_alone_that_was_corrected_since(survey: Asking, state: str) -> None:
    message = survey.invited(external_id="7", email="old@example.com")
    survey.add(external_id="7", email="new@example.com")
    survey.report(message, state)
    customer = survey.customer(email="new@example.com")
    assert customer["email_bounced_at"] is None and customer["email_opt_out_at"] is None
    back = survey.add(external_id="8", email="Old@example.com")
    opted_out = survey.one("SELECT email_opt_out_at FROM customer WHERE id = %s", (back,))
    assert (opted_out["email_opt_out_at"] is not None) == (state == "complained")


@pytest.mark.parametrize("odd", ["\x00", "\ud800"])
def test_an_odd_character_costs_a_webhook_nothing_else(survey: Asking, question: Message, odd: str) -> None:
    assert survey.text(PHONE, f"3 slow{odd}", f"in{odd}").status_code == 204
    assert survey.response()["comment"].startswith("slow")
    assert survey.text(PHONE + odd, "3").status_code == 204
    report = {"id": f"ev{odd}", "type": "bounced", "delivery_id": question.delivery_id, "reason": f"no{odd}"}
    assert survey.webhook({**report, "at": survey.clock.now().isoformat()}).status_code == 204
    assert survey.one("SELECT reason FROM delivery WHERE kind = 'invitation'")["reason"] == "no\ufffd"


def test_forged_stale_and_damaged_webhooks_change_nothing(survey: Asking, question: Message) -> None:
    event = {"id": "x", "type": "inbound", "from": PHONE, "text": "0", "at": survey.clock.now().isoformat()}
    assert survey.webhook(event, key="other").status_code == 401
    stale = str(int((survey.clock.now() - timedelta(minutes=6)).timestamp()))
    assert survey.webhook(event, at=stale).status_code == 401
    assert survey.webhook({"id": "x", "type": "inbound", "at": "yesterday"}).status_code == 422
    assert survey.http.post("/webhooks/mailbox", data=b"{}").status_code == 401
    assert survey.webhook({**event, "type": "something new"}).status_code == 204
    assert survey.all("SELECT * FROM response") == []


def test_the_same_text_a_hundred_times_at_once_has_one_effect(survey: Asking, question: Message) -> None:
    def arrive(_: int) -> int:
        event = {"id": "one", "type": "inbound", "from": PHONE, "text": "3 slow"}
        raw = json.dumps({**event, "at": survey.clock.now().isoformat()}).encode()
        stamp = str(int(survey.clock.now().timestamp()))
        headers = {
            TIMESTAMP_HEADER: stamp,
            SIGNATURE_HEADER: sign(survey.settings.key("mailbox-webhook"), stamp, raw),
        }
        return survey.app.test_client().post("/webhooks/mailbox", data=raw, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(arrive, range(100))) == {204}
    assert survey.response()["version"] == 1
    assert len(survey.events("response.recorded")) == 1
    assert len(survey.send()) == 1
