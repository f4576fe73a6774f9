"""Twilio: what it is told of a text, and what each of its answers and codes means for the text."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from shared.channels import (
    OPTED_OUT,
    Message,
    RefusesUsError,
    TransportError,
    UncertainError,
    transport,
)
from shared.channels import twilio as ours
from shared.settings import Settings
from tests.integration.channels.sending import Send, caught
from tests.support.providers.server import Reply, Trouble, refusal
from tests.support.providers.stand_in import StandIn


@pytest.fixture
def send(out: Settings, sms: Message) -> Send:
    return lambda: transport(out, "sms").send(sms)


def coded(status: int, code: int, **headers: str) -> Trouble:
    body = {"code": code, "message": "made up +4930123456", "more_info": "", "status": status}
    return Trouble("answer", Reply(status, json.dumps(body).encode(), headers))


def test_a_text_is_taken_with_an_address_for_its_reports(
    providers: StandIn, send: Send, sms: Message
) -> None:
    sid = send()
    text = providers.twilio.texts[0]
    assert text["sid"] == sid and (text["To"], text["Body"]) == (sms.to, sms.text)
    assert text["From"] == providers.twilio.number and "MessagingServiceSid" not in text
    assert text["StatusCallback"] == (
        f"https://feedback.example.org/webhooks/twilio/status?delivery_id={sms.delivery_id}"
    )


def test_a_messaging_service_sends_instead_of_a_number(
    providers: StandIn, out: Settings, sms: Message
) -> None:
    assert out.twilio is not None
    by_service = replace(out.twilio, sender="", service_sid=providers.twilio.service)
    transport(replace(out, twilio=by_service), "sms").send(sms)
    assert "From" not in providers.twilio.texts[0]


def test_an_api_key_sends_for_the_account(providers: StandIn, out: Settings, sms: Message) -> None:
    assert out.twilio is not None
    providers.twilio.keys = {"SK1": "hush"}
    by_key = replace(out, twilio=replace(out.twilio, key_sid="SK1", key_secret="hush"))
    assert transport(by_key, "sms").send(sms)
    wrong = replace(out, twilio=replace(out.twilio, key_sid="SK1", key_secret="hash"))
    assert isinstance(caught(lambda: transport(wrong, "sms").send(sms)), RefusesUsError)


def test_each_thread_has_a_client_of_its_own_and_all_share_the_connections(
    providers: StandIn, out: Settings, sms: Message
) -> None:
    ids = [f"01890000-0000-7000-8000-{number:012x}" for number in range(200)]
    made: set[int] = set()
    lock = threading.Lock()

    def work(id: str) -> str | None:
        sid = transport(out, "sms").send(replace(sms, delivery_id=id))
        assert out.twilio is not None
        client: Any = ours._client(out.twilio, out.extra_ca)
        with lock:
            made.add(id_of(client))
        return sid

    def id_of(client: Any) -> int:
        clients.append(client)  # kept, so that no address is used twice
        return id(client)

    clients: list[Any] = []
    with ThreadPoolExecutor(50) as pool:
        taken = set(pool.map(work, ids))
        threads = len(pool._threads)
    assert len(taken) == 200 and sorted(providers.twilio.delivery_ids()) == ids
    assert len(made) <= threads and providers.server.connections <= 50


def test_the_sdk_reads_no_settings_of_its_own(
    providers: StandIn, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWILIO_REGION", "ie1")
    monkeypatch.setenv("TWILIO_EDGE", "dublin")
    del ours._here.key
    send()
    assert len(providers.twilio.texts) == 1


def test_too_many_waits_for_as_long_as_it_says(providers: StandIn, send: Send) -> None:
    providers.server.misbehave(coded(429, 20429, **{"Retry-After": "9"}), coded(429, 20429))
    error = caught(send)
    assert (type(error), error.permanent, error.retry_after) == (TransportError, False, 9)
    assert caught(send).retry_after is None
    assert send()


@pytest.mark.parametrize("code", [21211, 21614, 21612, 21617, 21408, 21217])
def test_a_refusal_of_the_text_is_for_good_and_names_no_number(
    providers: StandIn, send: Send, code: int
) -> None:
    providers.server.misbehave(coded(400, code))
    error = caught(send)
    assert error.permanent and str(code) in error.message and "+49" not in error.message


def test_a_number_that_sent_stop_is_told_as_an_opt_out(providers: StandIn, send: Send, sms: Message) -> None:
    providers.twilio.stopped = {sms.to}
    error = caught(send)
    assert error.permanent and error.message == OPTED_OUT


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, 20003), (403, 20003), (400, 21606), (404, 20404), (400, 21212), (400, 21603), (400, 21609)],
)
def test_a_refusal_of_us_is_not_the_texts_fault(
    providers: StandIn, send: Send, status: int, code: int
) -> None:
    providers.server.misbehave(coded(status, code))
    error = caught(send)
    assert isinstance(error, RefusesUsError) and not error.permanent and str(code) in error.message


@pytest.mark.parametrize("code", [21611, 30001, 14107])
def test_a_full_queue_waits(providers: StandIn, send: Send, code: int) -> None:
    providers.server.misbehave(coded(400, code))
    error = caught(send)
    assert not error.permanent and type(error) is TransportError


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"code": 20500, "message": "x", "status": 500}'])
def test_a_server_error_may_have_taken_it(providers: StandIn, send: Send, status: int, body: bytes) -> None:
    providers.server.misbehave(Trouble("accept-answer", Reply(status, body)))
    assert isinstance(caught(send), UncertainError)


@pytest.mark.parametrize("body", [b"", b"what", b"[]", b'{"sid": null}'])
def test_a_yes_that_cannot_be_read_is_uncertain(providers: StandIn, send: Send, body: bytes) -> None:
    providers.server.misbehave(Trouble("accept-answer", Reply(201, body)))
    assert isinstance(caught(send), UncertainError)


def test_a_new_kind_of_problem_document_is_read_too(providers: StandIn, send: Send) -> None:
    problem = {"type": "about:blank", "title": "stopped", "status": 400, "code": 21610}
    providers.server.misbehave(Trouble("answer", Reply(400, json.dumps(problem).encode())))
    assert caught(send).message == OPTED_OUT


def test_where_nobody_listens_nothing_was_taken(out: Settings, sms: Message) -> None:
    assert out.twilio is not None
    nowhere = replace(out, twilio=replace(out.twilio, url="https://127.0.0.1:9"))
    error = caught(lambda: transport(nowhere, "sms").send(sms))
    assert not isinstance(error, UncertainError) and not error.permanent and error.retry_after


def test_words_that_cannot_be_written_never_leave(providers: StandIn, out: Settings, sms: Message) -> None:
    error = caught(lambda: transport(out, "sms").send(replace(sms, text="\ud800")))
    assert error.permanent and list(providers.server.requests) == []


def test_another_host_that_answers_is_not_twilio(providers: StandIn, send: Send) -> None:
    providers.server.misbehave(refusal(302, location="https://elsewhere.example"))
    assert isinstance(caught(send), RefusesUsError)
