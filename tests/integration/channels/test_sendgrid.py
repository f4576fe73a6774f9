"""SendGrid: what it is told of a mail, and what each of its answers means for the mail."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from shared.channels import Message, RefusesUsError, TransportError, UncertainError, http, transport
from shared.channels.sendgrid import SendGridTransport
from shared.settings import Settings
from tests.integration.channels.sending import Send, caught
from tests.support.providers.server import Reply, Trouble, refusal
from tests.support.providers.stand_in import StandIn


@pytest.fixture
def send(out: Settings, mail: Message) -> Send:
    return lambda: transport(out, "email").send(mail)


def test_a_mail_is_taken_with_everything_and_nothing_else_about_the_person(
    providers: StandIn, send: Send
) -> None:
    id = send()
    taken = providers.sendgrid.mails[0]
    assert id == taken["id"]
    assert taken["personalizations"] == [{"to": [{"email": "ann@example.com", "name": "Ann, O'Neill"}]}]
    assert taken["from"] == {"email": "feedback@example.org", "name": "Example Ltd"}
    assert taken["reply_to"] == {"email": "hello@example.org"}
    assert taken["custom_args"] == {"delivery_id": "01890000-0000-7000-8000-0000000000aa"}
    assert taken["headers"]["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert [part["type"] for part in taken["content"]] == ["text/plain", "text/html"]


def test_a_mail_that_is_taken_without_an_id_is_taken(providers: StandIn, send: Send) -> None:
    providers.server.misbehave(
        *(Trouble("accept-answer", Reply(202, b"", h)) for h in ({}, {"X-Message-Id": ""}))
    )
    assert (send(), send()) == (None, None)
    assert len(providers.sendgrid.mails) == 2


def test_connections_are_kept_and_one_that_was_closed_meanwhile_is_no_uncertainty(
    providers: StandIn, send: Send
) -> None:
    for _ in range(3):
        send()
    assert providers.server.connections == 1
    providers.server.drop_connections()
    time.sleep(0.1)
    send()
    assert providers.server.connections == 2 and len(providers.sendgrid.mails) == 4


def test_a_connection_that_was_idle_for_long_is_not_used_again(
    providers: StandIn, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()
    monkeypatch.setattr(http, "IDLE_SECONDS", -1.0)
    send()
    assert providers.server.connections == 2


def test_fifty_threads_send_at_once_each_mail_once(providers: StandIn, out: Settings, mail: Message) -> None:
    ids = [f"01890000-0000-7000-8000-{number:012x}" for number in range(400)]
    with ThreadPoolExecutor(50) as pool:
        taken = set(pool.map(lambda id: transport(out, "email").send(replace(mail, delivery_id=id)), ids))
    assert len(taken) == 400 and sorted(providers.sendgrid.delivery_ids()) == ids
    assert providers.server.connections <= 50


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "999999"}, 3600),
    ],
)
def test_too_many_waits_for_as_long_as_it_says(
    providers: StandIn, send: Send, headers: dict[str, str], seconds: int | None
) -> None:
    providers.server.misbehave(refusal(429, **headers))
    error = caught(send)
    assert (error.permanent, error.retry_after, type(error)) == (False, seconds, TransportError)
    assert send()  # and nothing waits below


def test_the_limit_resets_at_an_instant(providers: StandIn, send: Send) -> None:
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 40)}
    providers.server.misbehave(Trouble("answer", Reply(429, b"", headers)))
    assert 35 <= (caught(send).retry_after or 0) <= 40


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_refusal_of_the_mail_is_for_good(providers: StandIn, send: Send, status: int) -> None:
    providers.server.misbehave(refusal(status))
    error = caught(send)
    assert error.permanent and type(error) is TransportError


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_a_refusal_of_us_is_not_the_mails_fault(providers: StandIn, send: Send, status: int) -> None:
    providers.server.misbehave(refusal(status, location="https://elsewhere.example"))
    error = caught(send)
    assert isinstance(error, RefusesUsError) and not error.permanent and error.retry_after
    assert len(providers.server.requests) == 1


def test_a_mail_it_cannot_take_is_refused_with_the_field_and_without_the_address(
    providers: StandIn, out: Settings, mail: Message
) -> None:
    error = caught(lambda: transport(out, "email").send(replace(mail, to="no address at all")))
    assert error.permanent and "personalizations.0.to" in error.message
    assert "no address at all" not in error.message and providers.sendgrid.mails == []


def test_an_api_key_in_the_words_stays_here(providers: StandIn, out: Settings, mail: Message) -> None:
    error = caught(lambda: transport(out, "email").send(replace(mail, text="SG.abc.def")))
    assert error.permanent and list(providers.server.requests) == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_may_have_taken_it(providers: StandIn, send: Send, status: int) -> None:
    providers.server.misbehave(Trouble("accept-answer", Reply(status)))
    assert isinstance(caught(send), UncertainError)
    assert len(providers.sendgrid.mails) == 1


def test_a_server_that_says_when_to_come_back_took_nothing(providers: StandIn, send: Send) -> None:
    providers.server.misbehave(refusal(503, retry_after="20"))
    error = caught(send)
    assert not isinstance(error, UncertainError) and error.retry_after == 20


def test_where_nobody_listens_nothing_was_taken(out: Settings, mail: Message) -> None:
    assert out.sendgrid is not None
    nowhere = replace(out, sendgrid=replace(out.sendgrid, url="https://127.0.0.1:9"))
    error = caught(lambda: transport(nowhere, "email").send(mail))
    assert not isinstance(error, UncertainError) and not error.permanent and error.retry_after
    assert "refused" in error.message


def test_a_certificate_nobody_knows_is_not_trusted_and_says_so(
    providers: StandIn, out: Settings, mail: Message
) -> None:
    error = caught(lambda: transport(replace(out, extra_ca=""), "email").send(mail))
    assert not isinstance(error, UncertainError) and "HEARBACK_EXTRA_CA" in error.message
    assert list(providers.server.requests) == []


def test_whatever_goes_wrong_is_an_error_of_the_port(out: Settings, mail: Message) -> None:
    assert out.sendgrid is not None
    for url in ("https://nowhere.invalid", "http://[::1", "https://127.0.0.1:9/\n"):
        bad = replace(out, sendgrid=replace(out.sendgrid, url=url))
        assert not isinstance(caught(lambda bad=bad: transport(bad, "email").send(mail)), UncertainError)  # type: ignore[misc]


def test_only_what_is_chosen_is_made(out: Settings) -> None:
    assert isinstance(transport(out, "email"), SendGridTransport)
    with pytest.raises(TransportError):
        SendGridTransport(replace(out, sendgrid=None))
