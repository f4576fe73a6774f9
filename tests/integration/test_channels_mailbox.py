"""The mailbox as a transport: what it answers decides whether a message left, did not, or may have."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shared.channels import Message, TransportError, UncertainError, http, transport
from shared.channels.mailbox import sign, verify
from shared.errors import Unauthenticated
from shared.settings import Settings

NOW = datetime(2026, 3, 3, 10, tzinfo=UTC)
MESSAGE = Message("d1", "sms", "+14155550100", "words")


class Provider(ThreadingHTTPServer):
    status = 202
    answer = b'{"id": "p1"}'
    headers: dict[str, str]
    drop = False
    connections = 0
    received: list[tuple[dict[str, str], Any]]


class _Handler(BaseHTTPRequestHandler):
    server: Provider
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        self.server.connections += 1
        super().setup()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((dict(self.headers), body))
        if self.server.drop:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def provider() -> Iterator[Provider]:
    server = Provider(("127.0.0.1", 0), _Handler)
    server.headers, server.received = {}, []
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    http._make_pool.cache_clear()
    thread.join()


@pytest.fixture
def settings(provider: Provider) -> Settings:
    url = f"http://127.0.0.1:{provider.server_address[1]}"
    return Settings(home=Path("/nowhere"), secret="s" * 40, previous_secret="p" * 40, mailbox_url=url)


def test_a_message_is_handed_over_with_the_key_and_nothing_else_about_the_person(
    provider: Provider, settings: Settings
) -> None:
    assert transport(settings, "sms").send(MESSAGE) == "p1"
    headers, body = provider.received[0]
    assert headers["Authorization"] == f"Bearer {settings.key('mailbox-send').hex()}"
    assert body["delivery_id"] == "d1" and body["to"] == "+14155550100"


def test_connections_are_kept(provider: Provider, settings: Settings) -> None:
    for _ in range(3):
        transport(settings, "email").send(MESSAGE)
    assert len(provider.received) == 3 and provider.connections == 1


@pytest.mark.parametrize(
    ("status", "permanent"), [(422, True), (400, True), (429, False), (503, False), (401, False)]
)
def test_a_refusal_certainly_took_nothing(
    provider: Provider, settings: Settings, status: int, permanent: bool
) -> None:
    provider.status, provider.headers = status, {"Retry-After": "7"}
    with pytest.raises(TransportError) as caught:
        transport(settings, "sms").send(MESSAGE)
    assert not isinstance(caught.value, UncertainError) and caught.value.permanent is permanent
    if status in (429, 503):
        assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    ("status", "answer"), [(500, b""), (502, b""), (302, b""), (202, b"what"), (202, b"[]")]
)
def test_any_other_answer_is_uncertain(
    provider: Provider, settings: Settings, status: int, answer: bytes
) -> None:
    provider.status, provider.answer = status, answer
    with pytest.raises(UncertainError):
        transport(settings, "sms").send(MESSAGE)
    assert len(provider.received) == 1  # nothing below tries again by itself


def test_a_connection_that_drops_after_taking_it_is_uncertain(provider: Provider, settings: Settings) -> None:
    provider.drop = True
    with pytest.raises(UncertainError):
        transport(settings, "sms").send(MESSAGE)
    assert len(provider.received) == 1


def test_silence_is_uncertain(
    provider: Provider, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.2)
    hold = threading.Event()
    monkeypatch.setattr(_Handler, "do_POST", lambda self: hold.wait(5))
    try:
        with pytest.raises(UncertainError):
            transport(settings, "sms").send(MESSAGE)
    finally:
        hold.set()


def test_where_nobody_listens_nothing_was_taken() -> None:
    settings = Settings(home=Path("/x"), secret="s" * 40, mailbox_url="http://127.0.0.1:9")
    with pytest.raises(TransportError) as caught:
        transport(settings, "sms").send(MESSAGE)
    assert not isinstance(caught.value, UncertainError) and not caught.value.permanent


def test_there_is_no_way_to_send_on_a_channel_nobody_knows(settings: Settings) -> None:
    with pytest.raises(TransportError):
        transport(settings, "pigeon")


def _signed(settings: Settings, body: bytes, at: datetime = NOW) -> tuple[str, str]:
    timestamp = str(int(at.timestamp()))
    return timestamp, sign(settings.key("mailbox-webhook"), timestamp, body)


def test_a_webhook_of_the_mailbox_is_accepted_during_a_rotation_too(settings: Settings) -> None:
    timestamp, signature = _signed(settings, b"{}")
    verify(settings, timestamp, signature, b"{}", NOW + timedelta(minutes=4))
    old = Settings(home=Path("/x"), secret="p" * 40)
    verify(settings, *_signed(old, b"{}"), b"{}", NOW)


def test_a_forged_stale_truncated_or_unsigned_webhook_is_refused(settings: Settings) -> None:
    timestamp, signature = _signed(settings, b'{"a": 1}')
    body = b'{"a": 1}'
    stranger = Settings(home=Path("/x"), secret="x" * 40)
    for given in (
        (timestamp, signature, body[:-1], NOW),
        (timestamp, signature[:-1], body, NOW),
        (timestamp, "", body, NOW),
        (None, signature, body, NOW),
        ("later", signature, body, NOW),
        ("9" * 30, signature, body, NOW),
        (timestamp, "é" * 64, body, NOW),
        (str(int(timestamp) + 1), signature, body, NOW),
        (timestamp, signature, body, NOW + timedelta(minutes=6)),
        (*_signed(settings, body, NOW + timedelta(minutes=6)), body, NOW),
        (*_signed(stranger, body), body, NOW),
    ):
        with pytest.raises(Unauthenticated):
            verify(settings, *given)
