"""SendGrid, Twilio and SMTP: what they are handed, and what each of their answers means for the message."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from shared.channels import (
    CredentialsError,
    Message,
    Provider,
    TransportError,
    UncertainError,
    http,
    transport,
    twilio,
)
from shared.settings import SendGrid, Settings, Twilio
from tests.support.providers import ACCOUNT, API_KEY, NUMBER, TOKEN, Misbehaviour, StandIn, stand_in

MAIL = Message(
    delivery_id="11111111-2222-4333-8444-555555555555",
    channel="email",
    to="ada@example.com",
    to_name="Ada Löwe",
    subject="How likely are you to recommend us?",
    text="Click a number.\n.\nThank you.",
    html="<p>Click a number.</p>",
    headers={
        "List-Unsubscribe": "<https://feedback.example/u/x>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "Auto-Submitted": "auto-generated",
    },
    sender_name="Example, Ltd",
    sender_email="hello@example.org",
    reply_to="care@example.org",
)
TEXT = Message(
    delivery_id=MAIL.delivery_id,
    channel="sms",
    to="+14155550123",
    to_name="Ada",
    text="0 to 10? Just answer.",
)


@pytest.fixture(scope="module")
def everybody() -> Iterator[StandIn]:
    with stand_in() as here:
        yield here


@pytest.fixture
def there(everybody: StandIn) -> StandIn:
    """The stand-in, with nothing in it and on its best behaviour."""
    everybody.taken.clear()
    everybody.refused.clear()
    everybody.unruly.clear()
    everybody.scopes, everybody.account_status, everybody.connections = ("mail.send",), "active", 0
    http._pool.cache_clear()
    twilio._local.__dict__.clear()
    return everybody


@pytest.fixture
def settings(there: StandIn) -> Settings:
    return Settings(
        home=Path("/nowhere"),
        secret="s" * 40,
        public_url="https://feedback.example",
        mail="sendgrid",
        sms="twilio",
        sendgrid=SendGrid(API_KEY, there.webhook_key, there.url),
        twilio=Twilio(ACCOUNT, TOKEN, NUMBER, url=there.url),
        extra_ca=there.ca,
    )


def way(settings: Settings, channel: str) -> tuple[Provider, Message]:
    return transport(settings, channel), MAIL if channel == "email" else TEXT


def test_sendgrid_is_handed_a_mail_as_it_wants_it(there: StandIn, settings: Settings) -> None:
    provider_id = transport(settings, "email").send(MAIL)
    [taken] = there.taken
    assert provider_id == taken.id and there.refused == []
    body = taken.body
    assert body["personalizations"] == [{"to": [{"email": "ada@example.com", "name": "Ada Löwe"}]}]
    assert body["from"] == {"email": "hello@example.org", "name": "Example, Ltd"}
    assert body["reply_to"] == {"email": "care@example.org"}
    assert body["headers"] == MAIL.headers
    assert [part["value"] for part in body["content"]] == [MAIL.text, MAIL.html]
    # The delivery's id comes back in the webhooks; nothing there says who it was for.
    assert body["custom_args"] == {"delivery_id": MAIL.delivery_id}


def test_twilio_is_handed_a_text_as_it_wants_it(there: StandIn, settings: Settings) -> None:
    provider_id = transport(settings, "sms").send(TEXT)
    [taken] = there.taken
    assert provider_id == taken.id and there.refused == []
    assert taken.body == {
        "To": TEXT.to,
        "Body": TEXT.text,
        "From": NUMBER,
        "StatusCallback": f"https://feedback.example/webhooks/twilio/status?delivery={TEXT.delivery_id}",
    }


def test_twilio_sends_through_a_messaging_service(there: StandIn, settings: Settings) -> None:
    service = "MG" + "1" * 32
    through = replace(settings, twilio=Twilio(ACCOUNT, TOKEN, service_sid=service, url=there.url))
    transport(through, "sms").send(TEXT)
    assert there.taken[0].body["MessagingServiceSid"] == service and "From" not in there.taken[0].body


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_many_messages_share_one_connection(there: StandIn, settings: Settings, channel: str) -> None:
    one, message = way(settings, channel)
    for _ in range(20):
        one.send(message)
    assert len(there.taken) == 20 and there.connections == 1


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_fifty_threads_hand_over_each_message_once(there: StandIn, settings: Settings, channel: str) -> None:
    one, message = way(settings, channel)
    with ThreadPoolExecutor(50) as pool:
        ids = list(pool.map(lambda _: one.send(message), range(200)))
    assert len(set(ids)) == len(there.taken) == 200


@pytest.mark.parametrize("channel", ["email", "sms"])
@pytest.mark.parametrize(
    ("unruly", "kind", "retry_after"),
    [
        (Misbehaviour(429, {"Retry-After": "17"}), TransportError, 17),
        (Misbehaviour(429, {"Retry-After": "99999999"}), TransportError, 3600),
        (Misbehaviour(429, {"Retry-After": "soon"}), TransportError, None),
        (Misbehaviour(503), TransportError, None),
        (Misbehaviour(500), UncertainError, None),
        (Misbehaviour(502), UncertainError, None),
        (Misbehaviour(401), CredentialsError, 60),
        (Misbehaviour(403), CredentialsError, 60),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Misbehaviour) else None,
)
def test_each_answer_says_what_becomes_of_the_message(
    there: StandIn,
    settings: Settings,
    channel: str,
    unruly: Misbehaviour,
    kind: type[TransportError],
    retry_after: int | None,
) -> None:
    there.unruly.append(unruly)
    one, message = way(settings, channel)
    with pytest.raises(TransportError) as caught:
        one.send(message)
    assert type(caught.value) is kind
    assert (caught.value.permanent, caught.value.retry_after) == (False, retry_after)
    assert message.to not in caught.value.message
    one.send(message)  # the next one is none the worse for it
    assert len(there.taken) == 1


def test_sendgrid_says_by_its_rate_limit_when_to_come_back(there: StandIn, settings: Settings) -> None:
    reset = str(int(time.time()) + 40)
    there.unruly.append(Misbehaviour(429, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}))
    with pytest.raises(TransportError) as caught:
        transport(settings, "email").send(MAIL)
    assert 35 <= (caught.value.retry_after or 0) <= 40


@pytest.mark.parametrize(
    "message",
    [
        replace(MAIL, to="nobody"),
        replace(MAIL, subject=""),
        replace(TEXT, to="nobody"),
        replace(TEXT, to="+121610"),
    ],
    ids=["a bad address", "no subject", "a bad number", "a number that sent STOP"],
)
def test_what_is_wrong_with_the_message_itself_is_final(
    there: StandIn, settings: Settings, message: Message
) -> None:
    with pytest.raises(TransportError) as caught:
        transport(settings, message.channel).send(message)
    assert caught.value.permanent and there.taken == []
    assert message.to not in caught.value.message


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_a_connection_lost_after_the_message_was_taken_leaves_it_uncertain(
    there: StandIn, settings: Settings, channel: str
) -> None:
    there.unruly.append(Misbehaviour(hang_up_after_accepting=True))
    one, message = way(settings, channel)
    with pytest.raises(UncertainError):
        one.send(message)
    assert len(there.taken) == 1  # once, whatever the client made of it


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_a_provider_that_hangs_is_given_up_in_time(
    there: StandIn, settings: Settings, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(twilio, "TIMEOUT_SECONDS", 0.5)
    there.unruly.append(Misbehaviour(hang=3))
    one, message = way(settings, channel)
    began = time.monotonic()
    with pytest.raises(UncertainError):
        one.send(message)
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_nobody_there_means_that_nothing_was_taken(settings: Settings, channel: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = f"https://127.0.0.1:{closed.getsockname()[1]}"
    assert settings.sendgrid and settings.twilio
    away = replace(
        settings,
        sendgrid=replace(settings.sendgrid, url=nowhere),
        twilio=replace(settings.twilio, url=nowhere),
    )
    one, message = way(away, channel)
    with pytest.raises(TransportError) as caught:
        one.send(message)
    assert type(caught.value) is TransportError and not caught.value.permanent


@pytest.mark.parametrize("channel", ["email", "sms"])
def test_a_certificate_nobody_vouches_for_is_not_trusted(
    there: StandIn, settings: Settings, channel: str
) -> None:
    one, message = way(replace(settings, extra_ca=""), channel)
    with pytest.raises(TransportError) as caught:
        one.send(message)
    assert type(caught.value) is TransportError and there.taken == []


def test_good_credentials_are_accepted_by_a_call_that_sends_nothing(
    there: StandIn, settings: Settings
) -> None:
    assert transport(settings, "email").check() == "SendGrid accepts the key"
    assert transport(settings, "sms").check() == "Twilio accepts the account"
    assert there.taken == []


def test_bad_credentials_are_named(there: StandIn, settings: Settings) -> None:
    wrong = replace(
        settings,
        sendgrid=SendGrid("SG.wrong", there.webhook_key, there.url),
        twilio=Twilio(ACCOUNT, "wrong", NUMBER, url=there.url),
    )
    with pytest.raises(CredentialsError, match="SENDGRID_API_KEY"):
        transport(wrong, "email").check()
    with pytest.raises(CredentialsError, match="TWILIO_AUTH_TOKEN"):
        transport(wrong, "sms").check()
    there.scopes, there.account_status = ("stats.read",), "suspended"
    with pytest.raises(CredentialsError, match="Mail Send"):
        transport(settings, "email").check()
    with pytest.raises(CredentialsError, match="suspended"):
        transport(settings, "sms").check()


def test_each_thread_has_a_twilio_client_of_its_own(there: StandIn, settings: Settings) -> None:
    one = transport(settings, "sms")
    assert isinstance(one, twilio.TwilioTransport)
    together = threading.Barrier(3)

    def client(_: int) -> tuple[int, int]:
        together.wait(10)
        first = one._client()[0]
        assert one._client()[0] is first
        together.wait(10)
        return threading.get_ident(), id(first)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(client, range(3)))
    assert len(set(found)) == len({client for _, client in found}) == 3
