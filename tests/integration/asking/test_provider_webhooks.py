"""What SendGrid and Twilio post back: signed for us and fresh, or nothing happens; and once."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from werkzeug.test import TestResponse

from services.survey.commands.sender import make_sender
from shared.settings import SendGrid, Settings, Twilio
from tests.support.asking import Asking
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.providers import ACCOUNT, API_KEY, NUMBER, TOKEN, Misbehaviour, StandIn, stand_in

PUBLIC = "https://feedback.example"
PHONE = "+4930123456"


@pytest.fixture(scope="module")
def there() -> Iterator[StandIn]:
    with stand_in() as here:
        yield here


@pytest.fixture(scope="module")
def one_survey(
    there: StandIn, postgres: TestPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asking]:
    urls = FreshDatabases(postgres)
    survey = Asking(_settings(there, urls, tmp_path_factory.mktemp("providers")))
    yield survey
    survey.close()
    urls.drop()


def _settings(there: StandIn, urls: FreshDatabases, home: Path) -> Settings:
    return Settings(
        home=home,
        secret="a secret of the tests, 32 characters or more",
        public_url=PUBLIC,
        mail="sendgrid",
        sms="twilio",
        sendgrid=SendGrid(API_KEY, there.webhook_key, there.url),
        twilio=Twilio(ACCOUNT, TOKEN, NUMBER, url=there.url),
        extra_ca=there.ca,
        database_urls=urls,
    )


@pytest.fixture
def survey(one_survey: Asking, there: StandIn) -> Asking:
    one_survey.reset()
    there.taken.clear()
    there.unruly.clear()
    # Messages leave by the real SDKs.
    one_survey.sender = make_sender(one_survey.settings, one_survey.db, one_survey.clock)
    return one_survey


def sent(survey: Asking, **values: Any) -> str:
    """One new customer, asked through the provider; the delivery's id."""
    survey.ask({"customers": [survey.add(**values)]})
    survey.send()
    return str(survey.one("SELECT id FROM delivery")["id"])


def state(survey: Asking) -> str:
    return str(survey.one("SELECT state FROM delivery")["state"])


def event(survey: Asking, delivery: str, what: str, **more: Any) -> dict[str, Any]:
    at = int(survey.clock.now().timestamp())
    return {"event": what, "sg_event_id": uuid.uuid4().hex, "delivery_id": delivery, "timestamp": at, **more}


def post_mail(survey: Asking, there: StandIn, *events: dict[str, Any], **changes: Any) -> TestResponse:
    body = changes.get("body", json.dumps(events).encode())
    headers = there.sendgrid_headers(body, changes.get("at", survey.clock.now().timestamp()))
    return survey.http.post(
        "/webhooks/sendgrid", data=changes.get("sent", body), headers=headers | changes.get("headers", {})
    )


def post_text(
    survey: Asking,
    there: StandIn,
    path: str = "message",
    *,
    headers: Any = None,
    **form: str,
) -> TestResponse:
    """A form of Twilio's, signed for the public address; the proxy in front speaks HTTP to us."""
    fields = {"AccountSid": ACCOUNT, "MessageSid": f"SM{uuid.uuid4().hex}", "To": NUMBER, **form}
    signed = there.twilio_headers(f"{PUBLIC}/webhooks/twilio/{path}", fields)
    return survey.http.post(
        f"/webhooks/twilio/{path}",
        data=urlencode(fields),
        headers={**signed, **(headers or {})},
        base_url="http://10.0.0.7:8080",
    )


def everything(survey: Asking) -> str:
    """All of survey's state, to see that nothing of it has changed."""
    tables = (
        "delivery", "invitation", "response", "inbound", "webhook_event", "customer", "opt_out", "outbox",
    )  # fmt: skip
    with survey.db.transaction() as tx:
        return repr([tx.all(f"SELECT * FROM {name} ORDER BY 1, 2") for name in tables])


@pytest.mark.parametrize(
    ("what", "more", "becomes"),
    [
        ("delivered", {}, "delivered"),
        ("bounce", {"type": "bounce"}, "bounced"),
        ("bounce", {"type": "blocked"}, "failed"),
        ("dropped", {}, "failed"),
        ("deferred", {}, "handed"),
        ("processed", {}, "handed"),
        ("click", {}, "handed"),
    ],
)
def test_each_of_sendgrids_events_means_what_it_says(
    survey: Asking, there: StandIn, what: str, more: dict[str, str], becomes: str
) -> None:
    delivery = sent(survey)
    assert state(survey) == "handed" and there.taken[0].body["custom_args"] == {"delivery_id": delivery}
    assert post_mail(survey, there, event(survey, delivery, what, **more)).status_code == 204
    assert state(survey) == becomes


def test_a_spam_report_opts_out(survey: Asking, there: StandIn) -> None:
    delivery = sent(survey)
    post_mail(survey, there, event(survey, delivery, "spamreport"))
    assert survey.one("SELECT email_opt_out_at FROM customer")["email_opt_out_at"] is not None


def test_events_in_any_order_and_any_number_end_the_same(survey: Asking, there: StandIn) -> None:
    delivery = sent(survey)
    survey.events()
    bounce, delivered = event(survey, delivery, "bounce"), event(survey, delivery, "delivered")
    for batch in ([bounce, delivered], [delivered, bounce], [bounce, bounce], [delivered]):
        assert post_mail(survey, there, *batch).status_code == 204
    assert state(survey) == "bounced"
    assert [said["data"]["state"] for said in survey.events("delivery.reported")] == ["bounced"]


def test_the_same_batch_fifty_times_at_once_has_one_effect(survey: Asking, there: StandIn) -> None:
    delivery = sent(survey)
    survey.events()
    said = event(survey, delivery, "delivered")
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: _post_from_a_thread(survey, there, said), range(50)))
    assert set(answers) == {204}
    assert len(survey.events("delivery.reported")) == 1


def _post_from_a_thread(survey: Asking, there: StandIn, said: dict[str, Any]) -> int:
    body = json.dumps([said]).encode()
    headers = there.sendgrid_headers(body, survey.clock.now().timestamp())
    return survey.app.test_client().post("/webhooks/sendgrid", data=body, headers=headers).status_code


def test_an_uncertain_mail_is_settled_by_its_webhook(survey: Asking, there: StandIn) -> None:
    there.unruly.append(Misbehaviour(hang_up_after_accepting=True))
    delivery = sent(survey)
    assert state(survey) == "uncertain" and len(there.taken) == 1
    survey.send()
    assert len(there.taken) == 1  # nothing resends by itself
    post_mail(survey, there, event(survey, delivery, "delivered"))
    assert state(survey) == "delivered"
    assert survey.one("SELECT state FROM invitation")["state"] == "sent"


def test_of_another_applications_mails_nothing_is_kept(survey: Asking, there: StandIn) -> None:
    sent(survey)
    before = everything(survey)
    foreign = {**event(survey, "", "bounce"), "custom": "of somebody else"}
    del foreign["delivery_id"]
    assert post_mail(survey, there, foreign).status_code == 204
    assert everything(survey) == before


REFUSALS: dict[str, Callable[[Asking, StandIn, dict[str, Any]], TestResponse]] = {
    "unsigned": lambda s, t, e: s.http.post("/webhooks/sendgrid", data=json.dumps([e])),
    "no signature": lambda s, t, e: post_mail(
        s, t, e, headers={"X-Twilio-Email-Event-Webhook-Signature": "%%% no base64"}
    ),
    "not DER": lambda s, t, e: post_mail(
        s, t, e, headers={"X-Twilio-Email-Event-Webhook-Signature": "bm90IERFUg=="}
    ),
    "forged": lambda s, t, e: post_mail(s, replace(t, secret=ec.generate_private_key(ec.SECP256R1())), e),
    "stale": lambda s, t, e: post_mail(s, t, e, at=s.clock.now().timestamp() - 301),
    "from the future": lambda s, t, e: post_mail(s, t, e, at=s.clock.now().timestamp() + 301),
    "truncated": lambda s, t, e: post_mail(s, t, e, sent=json.dumps([e]).encode()[:-9]),
    "changed": lambda s, t, e: post_mail(s, t, e, sent=json.dumps([{**e, "event": "delivered"}]).encode()),
    "another time": lambda s, t, e: post_mail(
        s, t, e, headers={"X-Twilio-Email-Event-Webhook-Timestamp": str(int(s.clock.now().timestamp()) - 1)}
    ),
    "not JSON": lambda s, t, e: post_mail(s, t, body=b"\xff[{"),
    "no list": lambda s, t, e: post_mail(s, t, body=json.dumps(e).encode()),
    "no events": lambda s, t, e: post_mail(s, t, body=b"[1, null]"),
}


@pytest.mark.parametrize("how", REFUSALS)
def test_a_batch_that_is_not_sendgrids_is_refused_without_a_trace(
    survey: Asking, there: StandIn, how: str
) -> None:
    delivery = sent(survey)
    before = everything(survey)
    answer = REFUSALS[how](survey, there, event(survey, delivery, "bounce"))
    assert answer.status_code in (401, 422), answer.text
    assert everything(survey) == before


def test_a_customer_answers_by_text_through_twilio(survey: Asking, there: StandIn) -> None:
    sent(survey, phone=PHONE)
    assert there.taken[0].to == PHONE
    answer = post_text(survey, there, From=PHONE, Body="3 too slow", MessageSid="SM1")
    assert answer.status_code == 200 and answer.mimetype == "text/xml"
    assert answer.text.endswith("<Response/>")  # our words go out through the ledger
    assert (survey.response()["score"], survey.response()["comment"]) == (3, "too slow")
    post_text(survey, there, From=PHONE, Body="3 too slow", MessageSid="SM1")
    assert survey.response()["version"] == 1
    survey.send()
    assert "we noted your 3" in there.taken[1].body["Body"]


@pytest.mark.parametrize("form", [{"Body": "Stop."}, {"Body": "ARRET", "OptOutType": "STOP"}])
def test_stop_and_start_through_twilio_do_what_they_say(
    survey: Asking, there: StandIn, form: dict[str, str]
) -> None:
    sent(survey, phone=PHONE)
    assert post_text(survey, there, From=PHONE, **form).status_code == 200
    assert survey.one("SELECT sms_opt_out_at FROM customer")["sms_opt_out_at"] is not None
    assert post_text(survey, there, From=PHONE, Body="START").status_code == 200
    assert survey.one("SELECT sms_opt_out_at FROM customer")["sms_opt_out_at"] is None


def test_help_through_twilio_is_answered(survey: Asking, there: StandIn) -> None:
    sent(survey, phone=PHONE)
    post_text(survey, there, From=PHONE, Body="HELP")
    survey.send()
    assert len(there.taken) == 2 and "STOP" in there.taken[1].body["Body"]


def test_a_text_that_is_replayed_months_later_is_no_new_one(survey: Asking, there: StandIn) -> None:
    sent(survey, phone=PHONE)
    post_text(survey, there, From=PHONE, Body="STOP", MessageSid="SM1")
    post_text(survey, there, From=PHONE, Body="START")
    with survey.db.transaction() as tx:
        tx.execute("DELETE FROM webhook_event")  # as the clock does after some weeks
    assert post_text(survey, there, From=PHONE, Body="STOP", MessageSid="SM1").status_code == 200
    assert survey.one("SELECT sms_opt_out_at FROM customer")["sms_opt_out_at"] is None


@pytest.mark.parametrize(
    ("said", "code", "becomes"),
    [
        ("queued", "", "handed"),
        ("sent", "", "handed"),
        ("delivered", "", "delivered"),
        ("undelivered", "30003", "failed"),
        ("undelivered", "30005", "bounced"),
        ("failed", "30006", "bounced"),
        ("failed", "30001", "failed"),
    ],
)
def test_each_of_twilios_statuses_means_what_it_says(
    survey: Asking, there: StandIn, said: str, code: str, becomes: str
) -> None:
    delivery = sent(survey, phone=PHONE)
    assert there.taken[0].body["StatusCallback"] == f"{PUBLIC}/webhooks/twilio/status?delivery={delivery}"
    answer = post_text(survey, there, f"status?delivery={delivery}", MessageStatus=said, ErrorCode=code)
    assert answer.status_code == 204
    assert state(survey) == becomes


def test_twilios_statuses_may_come_in_any_order_and_twice(survey: Asking, there: StandIn) -> None:
    delivery = sent(survey, phone=PHONE)
    survey.events()
    for said in ("delivered", "sent", "queued", "delivered"):
        post_text(survey, there, f"status?delivery={delivery}", MessageStatus=said, MessageSid="SM1")
    assert state(survey) == "delivered"
    assert len(survey.events("delivery.reported")) == 1


TEXT_REFUSALS: dict[str, Callable[[Asking, StandIn], TestResponse]] = {
    "unsigned": lambda s, t: s.http.post("/webhooks/twilio/message", data={"From": PHONE, "Body": "STOP"}),
    "forged": lambda s, t: post_text(
        s, t, From=PHONE, Body="STOP", headers={"X-Twilio-Signature": "Zm9yZ2Vk"}
    ),
    "not ASCII": lambda s, t: post_text(s, t, From=PHONE, Body="STOP", headers={"X-Twilio-Signature": "ü"}),
    "another account's": lambda s, t: post_text(s, t, From=PHONE, Body="STOP", AccountSid="AC" + "9" * 32),
    "another address's": lambda s, t: s.http.post(
        "/webhooks/twilio/message",
        data=(
            form := {"AccountSid": ACCOUNT, "MessageSid": "SM1", "From": PHONE, "Body": "STOP", "To": NUMBER}
        ),
        headers=t.twilio_headers("https://elsewhere.example/webhooks/twilio/message", form),
        base_url="https://elsewhere.example",
    ),
    "with more in its query": lambda s, t: s.http.post(
        "/webhooks/twilio/message?x=1",
        data=(
            form := {"AccountSid": ACCOUNT, "MessageSid": "SM1", "From": PHONE, "Body": "STOP", "To": NUMBER}
        ),
        headers=t.twilio_headers(f"{PUBLIC}/webhooks/twilio/message", form),
    ),
    "truncated": lambda s, t: s.http.post(
        "/webhooks/twilio/message",
        data=urlencode({"AccountSid": ACCOUNT, "MessageSid": "SM1", "From": PHONE}),
        headers=t.twilio_headers(
            f"{PUBLIC}/webhooks/twilio/message",
            {"AccountSid": ACCOUNT, "MessageSid": "SM1", "From": PHONE, "Body": "STOP"},
        ),
    ),
    "without a sender": lambda s, t: post_text(s, t, Body="STOP"),
}


@pytest.mark.parametrize("how", TEXT_REFUSALS)
def test_a_form_that_is_not_twilios_is_refused_without_a_trace(
    survey: Asking, there: StandIn, how: str
) -> None:
    sent(survey, phone=PHONE)
    before = everything(survey)
    assert TEXT_REFUSALS[how](survey, there).status_code in (401, 403, 422)
    assert everything(survey) == before


def test_a_text_to_another_number_of_the_account_has_no_effect(survey: Asking, there: StandIn) -> None:
    sent(survey, phone=PHONE)
    before = everything(survey)
    assert post_text(survey, there, From=PHONE, Body="STOP", To="+14155559999").status_code == 200
    assert everything(survey) == before


def test_providers_that_are_not_chosen_have_no_page(survey: Asking, there: StandIn) -> None:
    plain = Asking(replace(survey.settings, mail="mailbox", sms="mailbox", sendgrid=None, twilio=None))
    try:
        for path in ("sendgrid", "twilio/message", "twilio/status"):
            assert plain.http.post(f"/webhooks/{path}", data=b"[]").status_code == 404
    finally:
        plain.close()
