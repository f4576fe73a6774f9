"""Providers that break off, or say nothing: of HTTP the same for mails and texts."""

from __future__ import annotations

import time

import pytest

from shared.channels import Message, UncertainError, http, transport
from shared.settings import Settings
from tests.integration.channels.sending import Send, caught
from tests.support.providers.server import Kind, Reply, Trouble
from tests.support.providers.stand_in import StandIn


@pytest.fixture(params=["email", "sms"])
def send(request: pytest.FixtureRequest, out: Settings, mail: Message, sms: Message) -> Send:
    message = mail if request.param == "email" else sms
    return lambda: transport(out, message.channel).send(message)


@pytest.mark.parametrize("kind", ["close", "reset", "accept-close", "garble"])
def test_a_connection_that_ends_after_the_request_is_uncertain_and_is_not_tried_again(
    providers: StandIn, send: Send, kind: Kind
) -> None:
    send()  # on a kept connection it is no different
    providers.server.misbehave(Trouble(kind))
    assert isinstance(caught(send), UncertainError)
    assert len(providers.server.requests) == 2


@pytest.mark.parametrize("body", [b"[" * 60_000, b"9" * 5000, b"\xff", b"null"])
def test_a_refusal_is_one_whatever_its_words_are(providers: StandIn, send: Send, body: bytes) -> None:
    providers.server.misbehave(Trouble("answer", Reply(400, body)))
    assert caught(send).permanent


@pytest.mark.parametrize("kind", ["hang", "drip", "accept-hang"])
def test_silence_and_drops_end_in_time(
    providers: StandIn, send: Send, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()  # a new connection may take its time
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.4)
    providers.server.misbehave(Trouble(kind))
    began = time.monotonic()
    assert isinstance(caught(send), UncertainError)
    assert time.monotonic() - began < 2
