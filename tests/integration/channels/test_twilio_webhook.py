"""Twilio's webhooks: texts and reports count when signed for our address, once, in whatever order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from twilio.request_validator import RequestValidator

from tests.integration.channels.test_sendgrid_webhook import everything
from tests.support.asking import Asking
from tests.support.providers.stand_in import Hooks, StandIn

PHONE = "+4930123456"
PUBLIC = "https://feedback.example.org"


@pytest.fixture
def text(survey: Asking, providers: StandIn) -> dict[str, str]:
    """An invitation that Twilio has taken."""
    survey.ask({"customers": [survey.add(phone=PHONE)]})
    survey.send()
    survey.events()
    return providers.twilio.texts[0]


@pytest.fixture
def write(providers: StandIn, hooks: Hooks) -> Callable[..., int]:
    """The customer writes."""
    return lambda words, **more: hooks.text(providers.twilio.inbound(PHONE, words, **more))


def state(survey: Asking) -> Any:
    return survey.one("SELECT state FROM delivery WHERE kind = 'invitation'")["state"]


def test_a_score_and_words_answer_and_the_reply_goes_by_twilio(
    survey: Asking, providers: StandIn, text: dict[str, str], write: Callable[..., int]
) -> None:
    assert write("3 too slow") == 200
    row = survey.response()
    assert (row["score"], row["comment"], row["source"]) == (3, "too slow", "sms")
    survey.send()
    assert "we noted your 3" in providers.twilio.texts[-1]["Body"]


def test_the_answer_to_twilio_is_empty_twiml(
    survey: Asking, providers: StandIn, text: dict[str, str]
) -> None:
    raw, headers = providers.twilio.signed(
        f"{PUBLIC}/webhooks/twilio/message", providers.twilio.inbound(PHONE, "3")
    )
    reply = survey.http.post("/webhooks/twilio/message", data=raw, headers=headers)
    assert reply.headers["Content-Type"] == "text/xml; charset=utf-8"
    assert reply.text.endswith("<Response/>")


def test_stop_start_and_help_do_what_they_always_do(
    survey: Asking, providers: StandIn, text: dict[str, str], write: Callable[..., int]
) -> None:
    write("Stop")
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is not None
    survey.send()
    assert len(providers.twilio.texts) == 1
    write("START")
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is None
    write("help")
    survey.send()
    assert [("again" in t["Body"], "STOP" in t["Body"]) for t in providers.twilio.texts[1:]] in (
        [(True, False), (False, True)],
        [(True, True), (False, True)],
    )


def test_a_keyword_of_the_providers_own_counts_and_is_not_answered_twice(
    survey: Asking, providers: StandIn, text: dict[str, str], write: Callable[..., int]
) -> None:
    write("ARRET", OptOutType="STOP")
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is not None
    write("ENCORE", OptOutType="START")
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is None
    write("AIDE", OptOutType="HELP")
    survey.send()
    assert len(providers.twilio.texts) == 1
    assert survey.all("SELECT 1 FROM response") == [] and survey.events("message.received") == []


def test_a_stop_to_the_second_number_of_a_messaging_service_counts(
    survey: Asking, text: dict[str, str], write: Callable[..., int]
) -> None:
    assert write("STOP", To="+14155559999", MessagingServiceSid="MG" + "0" * 31 + "3") == 200
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is not None


def test_a_picture_without_words_breaks_nothing(
    survey: Asking, text: dict[str, str], write: Callable[..., int]
) -> None:
    assert write("", NumMedia="1", MediaUrl0="https://api.example/x") == 200
    assert survey.all("SELECT 1 FROM response") == []


def test_the_same_text_again_has_one_effect_even_when_its_webhook_is_forgotten(
    survey: Asking, providers: StandIn, text: dict[str, str], hooks: Hooks
) -> None:
    arrived = providers.twilio.inbound(PHONE, "3 slow")
    assert [hooks.text(arrived) for _ in range(3)] == [200, 200, 200]
    with survey.db.transaction() as tx:
        tx.execute("DELETE FROM webhook_event")
    assert hooks.text(arrived) == 200
    assert survey.response()["version"] == 1


def test_a_stop_that_is_replayed_months_later_is_no_new_one(
    survey: Asking, providers: StandIn, text: dict[str, str], hooks: Hooks, write: Callable[..., int]
) -> None:
    stop = providers.twilio.inbound(PHONE, "STOP")
    assert hooks.text(stop) == 200 and write("START") == 200
    with survey.db.transaction() as tx:
        tx.execute("DELETE FROM webhook_event")  # as the clock does after some weeks
    assert hooks.text(stop) == 200
    assert survey.customer(phone=PHONE)["sms_opt_out_at"] is None


@pytest.mark.parametrize(
    ("status", "more", "after", "bounced", "opted_out"),
    [
        ("delivered", {}, "delivered", False, False),
        ("read", {}, "delivered", False, False),
        ("undelivered", {"ErrorCode": "30005"}, "bounced", True, False),
        ("undelivered", {"ErrorCode": "30003"}, "failed", False, False),
        ("failed", {"ErrorCode": "30001"}, "failed", False, False),
        ("failed", {"ErrorCode": "21610"}, "failed", False, True),
        ("failed", {}, "failed", False, False),
        ("sent", {}, "handed", False, False),
        ("something_new", {}, "handed", False, False),
    ],
)
def test_each_status_does_what_it_means(
    survey: Asking,
    text: dict[str, str],
    hooks: Hooks,
    status: str,
    more: dict[str, str],
    after: str,
    bounced: bool,
    opted_out: bool,
) -> None:
    for _ in range(2):
        assert hooks.status(text, status, **more) == 200
    customer = survey.customer(phone=PHONE)
    assert state(survey) == after
    assert (customer["sms_bounced_at"] is not None) == bounced
    assert (customer["sms_opt_out_at"] is not None) == opted_out
    assert len(survey.events("delivery.reported")) == (after != "handed")


def test_reports_in_the_wrong_order_end_where_they_should(
    survey: Asking, text: dict[str, str], hooks: Hooks
) -> None:
    for status in ("delivered", "sent", "queued", "delivered", "sending"):
        assert hooks.status(text, status) == 200
    assert state(survey) == "delivered"
    assert len(survey.events("delivery.reported")) == 1


def test_an_uncertain_text_is_settled_by_any_word_of_it(
    survey: Asking, text: dict[str, str], hooks: Hooks
) -> None:
    with survey.db.transaction() as tx:
        tx.execute("UPDATE delivery SET state = 'uncertain', settled_at = NULL, provider_id = NULL")
    assert hooks.status(text, "sent") == 200
    row = survey.one("SELECT state, provider_id FROM delivery")
    assert (row["state"], row["provider_id"]) == ("handed", text["sid"])


def test_a_number_that_twilio_knows_as_stopped_is_opted_out(survey: Asking, providers: StandIn) -> None:
    providers.twilio.stopped = {PHONE}
    survey.ask({"customers": [survey.add(phone=PHONE)]})
    survey.send()
    assert state(survey) == "failed" and survey.customer(phone=PHONE)["sms_opt_out_at"] is not None


def test_unsigned_forged_truncated_and_foreign_ones_leave_no_trace(
    survey: Asking, providers: StandIn, text: dict[str, str]
) -> None:
    path = "/webhooks/twilio/message"
    twilio = providers.twilio
    arrived = twilio.inbound(PHONE, "0 awful")
    raw, good = twilio.signed(PUBLIC + path, arrived)
    name = "X-Twilio-Signature"
    form = {"Content-Type": good["Content-Type"]}
    before = everything(survey)
    for body, headers in (
        (raw, form),
        (raw, {**form, name: ""}),
        (raw, {**form, name: "x"}),
        (raw, {**form, name: "é" * 28}),
        (raw[:-4], good),
        (raw.replace(b"awful", b"great"), good),
        (raw + b"&Body=10", good),
        (b"", good),
        (raw, {name: good[name]}),
        (raw, {"Content-Type": "application/json", name: good[name]}),
        (json.dumps(arrived).encode(), {"Content-Type": "application/json", name: good[name]}),
        twilio.signed(f"https://other.example{path}", arrived),
        twilio.signed(f"http://feedback.example.org{path}", arrived),
        twilio.signed(f"{PUBLIC}{path}?x=1", arrived),
        twilio.signed(PUBLIC + path, {**arrived, "AccountSid": "AC" + "9" * 32}),
        twilio.signed(PUBLIC + path, {k: v for k, v in arrived.items() if k != "AccountSid"}),
    ):
        reply = survey.http.post(path, data=body, headers=headers)
        assert reply.status_code == 401, (body, headers)
    for wrong in ({"MessageSid": ""}, {"MessageSid": "x\x00y"}, {"From": ""}, {"From": "+49\x00"}):
        body, headers = twilio.signed(PUBLIC + path, {**arrived, **wrong})
        assert survey.http.post(path, data=body, headers=headers).status_code == 422
    assert everything(survey) == before
    # And the very request that was changed above is taken as it was, whatever host a proxy makes of it.
    reply = survey.http.post(path, data=raw, headers=good, base_url="http://10.0.0.5:8080")
    assert reply.status_code == 200 and survey.response()["score"] == 0


def test_a_report_on_another_delivery_is_no_report_on_ours(
    survey: Asking, providers: StandIn, text: dict[str, str]
) -> None:
    params = providers.twilio.report(text["sid"], "failed")
    path = "/webhooks/twilio/status"
    before = everything(survey)
    for query in (
        "",
        "?delivery_id=",
        "?delivery_id=01890000-0000-7000-8000-0000000000ff",
        "?delivery_id=%00",
    ):
        raw, headers = providers.twilio.signed(f"{PUBLIC}{path}{query}", params)
        assert survey.http.post(path + query, data=raw, headers=headers).status_code == 200
    raw, headers = providers.twilio.signed(f"{PUBLIC}{path}?delivery_id=a", params)
    moved = f"{path}?{text['StatusCallback'].split('?')[1]}"
    assert survey.http.post(moved, data=raw, headers=headers).status_code == 401
    assert everything(survey) == before


def test_keys_that_repeat_are_signed_each(survey: Asking, providers: StandIn, text: dict[str, str]) -> None:
    path = "/webhooks/twilio/message"
    pairs = [*providers.twilio.inbound(PHONE, "3").items(), ("Tag", "b"), ("Tag", "a")]
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Twilio-Signature": providers.twilio.signature(PUBLIC + path, pairs),
    }
    assert survey.http.post(path, data=urlencode(pairs), headers=headers).status_code == 200
    assert survey.response()["score"] == 3


def test_json_is_signed_by_its_hash(survey: Asking, providers: StandIn, text: dict[str, str]) -> None:
    raw = json.dumps(providers.twilio.inbound(PHONE, "3 langsam, böse")).encode()
    path = f"/webhooks/twilio/message?bodySHA256={hashlib.sha256(raw).hexdigest()}"
    signature = RequestValidator(providers.twilio.token).compute_signature(PUBLIC + path, {})
    headers = {"Content-Type": "application/json", "X-Twilio-Signature": signature}
    for changed in (raw[:-1], raw.replace(b"3", b"9"), b"", b"\xff"):
        assert survey.http.post(path, data=changed, headers=headers).status_code == 401
    assert survey.http.post(path, data=raw, headers=headers).status_code == 200
    assert survey.response()["comment"] == "langsam, böse"


def test_half_a_character_in_a_text_is_lost_and_the_rest_is_kept(
    survey: Asking, providers: StandIn, text: dict[str, str]
) -> None:
    raw = json.dumps(providers.twilio.inbound(PHONE, "3 bad\ud83d \x00day")).encode()
    path = f"/webhooks/twilio/message?bodySHA256={hashlib.sha256(raw).hexdigest()}"
    signature = RequestValidator(providers.twilio.token).compute_signature(PUBLIC + path, {})
    headers = {"Content-Type": "application/json", "X-Twilio-Signature": signature}
    assert survey.http.post(path, data=raw, headers=headers).status_code == 200
    assert survey.response()["comment"] == "bad\ufffd day"


@pytest.mark.parametrize("query", ["?bodySHA256=", "?bodySHA256=&x=1", "?xbodySHA256=1"])
def test_a_hash_that_is_not_there_proves_nothing(
    survey: Asking, providers: StandIn, text: dict[str, str], query: str
) -> None:
    path = "/webhooks/twilio/message" + query
    raw, headers = providers.twilio.signed(PUBLIC + path, providers.twilio.inbound(PHONE, "3"))
    assert survey.http.post(path, data=b"Body=9", headers={"X-Twilio-Signature": "x"}).status_code == 401
    assert survey.http.post(path, data=raw, headers=headers).status_code == 200


def test_fault_20_the_same_text_and_report_a_hundred_times_at_once_have_one_effect(
    survey: Asking, providers: StandIn, text: dict[str, str], hooks: Hooks
) -> None:
    arrived = providers.twilio.inbound(PHONE, "3 slow")
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda _: hooks.text(arrived), range(100))
        reports = pool.map(lambda _: hooks.status(text, "delivered"), range(100))
        assert {*texts, *reports} == {200}
    assert survey.response()["version"] == 1
    told = [event["type"] for event in survey.events()]
    assert told.count("response.recorded") == told.count("delivery.reported") == 1


def test_without_twilio_there_is_no_such_route(survey: Asking, providers: StandIn) -> None:
    here = survey.app.extensions["hearback"]
    here.settings = replace(here.settings, sms="mailbox", twilio=None)
    for path in ("/webhooks/twilio/message", "/webhooks/twilio/status"):
        raw, headers = providers.twilio.signed(PUBLIC + path, providers.twilio.inbound(PHONE, "3"))
        assert survey.http.post(path, data=raw, headers=headers).status_code == 404
