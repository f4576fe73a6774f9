"""A mail server as a way out: at which step it says no decides what that means for the mail."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from shared.channels import Message, RefusesUsError, TransportError, UncertainError, smtp, transport
from shared.channels.credentials import check
from shared.provider_settings import Smtp
from shared.settings import Settings
from tests.integration.channels.sending import Send, caught
from tests.support.providers.mail_server import PASSWORD, USER, MailServer, mail_server


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as made:
        yield made
        smtp._Session.of_thread(Smtp("", 1), "").close()


@pytest.fixture
def out(server: MailServer) -> Settings:
    return Settings(
        home=Path("/nowhere"),
        secret="s" * 40,
        mail="smtp",
        smtp=Smtp("127.0.0.1", server.port, USER, PASSWORD),
        extra_ca=server.ca,
    )


@pytest.fixture
def send(out: Settings, mail: Message) -> Iterator[Send]:
    yield lambda: transport(out, "email").send(mail)
    assert out.smtp is not None
    smtp._Session.of_thread(out.smtp, out.extra_ca).close()


def test_a_mail_is_taken_whole(server: MailServer, send: Send, mail: Message) -> None:
    assert send() == f"<{mail.delivery_id}@example.org>"
    taken, raw = server.mails[0], server.raw[0]
    assert taken["Message-ID"] == f"<{mail.delivery_id}@example.org>" and taken["Date"]
    assert taken["Subject"] == mail.subject and taken["To"].addresses[0].display_name == mail.to_name
    body, html = taken.get_body(("plain",)), taken.get_body(("html",))
    assert body is not None and body.get_content().replace("\r\n", "\n") == mail.text
    assert html is not None and html.get_content().strip() == mail.html
    # In one line and as it is, or no mail program would find it.
    assert f"List-Unsubscribe: {mail.headers['List-Unsubscribe']}\r\n".encode() in raw
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert server.senders == ["feedback@example.org"]


def test_one_connection_serves_many_mails_and_a_closed_one_is_replaced(
    server: MailServer, send: Send
) -> None:
    for _ in range(3):
        send()
    assert len(server.sessions) == 1
    server.replies["END"] = "drop"
    assert isinstance(caught(send), UncertainError)
    send()
    assert len(server.mails) == 5 and len(server.sessions) == 2


def test_threads_have_connections_of_their_own(server: MailServer, out: Settings, mail: Message) -> None:
    def work(number: int) -> str | None:
        id = transport(out, "email").send(replace(mail, delivery_id=f"d{number}"))
        assert out.smtp is not None
        if number >= 40:  # the last of each thread
            barrier.wait(20)
            smtp._Session.of_thread(out.smtp, out.extra_ca).close()
        return id

    barrier = threading.Barrier(10)
    with ThreadPoolExecutor(10) as pool:
        assert len(set(pool.map(work, range(50)))) == 50
    assert len(server.mails) == 50 and len(server.sessions) <= 10


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "END"])
@pytest.mark.parametrize("reply", ["450 4.2.0 greylisted", "421 4.7.0 too many", "451 4.3.0 trouble"])
def test_a_passing_refusal_waits(server: MailServer, send: Send, step: str, reply: str) -> None:
    server.replies[step] = reply
    error = caught(send)
    assert type(error) is TransportError and not error.permanent
    send()
    assert len(server.mails) == 1


@pytest.mark.parametrize(
    ("step", "reply"), [("RCPT", "550 5.1.1 <ann@example.com> unknown"), ("END", "554 5.6.0 no")]
)
def test_a_refusal_of_the_recipient_or_the_mail_is_for_good(
    server: MailServer, send: Send, step: str, reply: str
) -> None:
    server.replies[step] = reply
    error = caught(send)
    assert error.permanent and reply[:3] in error.message and "ann@" not in error.message
    send()


@pytest.mark.parametrize("reply", ["550 5.7.1 not your sender", "530 5.7.0 log in first"])
def test_a_refusal_of_the_sender_is_ours_to_mend(server: MailServer, send: Send, reply: str) -> None:
    server.replies["MAIL"] = reply
    error = caught(send)
    assert isinstance(error, RefusesUsError) and not error.permanent


@pytest.mark.parametrize("step", ["MAIL", "RCPT"])
def test_a_connection_that_ends_before_the_words_took_nothing(
    server: MailServer, send: Send, step: str
) -> None:
    server.replies[step] = "drop"
    error = caught(send)
    assert not isinstance(error, UncertainError) and not error.permanent
    send()
    assert len(server.mails) == 1


def test_a_server_that_does_not_say_go_on_gets_no_words(
    server: MailServer, send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    docmd = smtp._Plain.docmd

    def confused(self: smtp._Plain, command: str, arguments: str = "") -> tuple[int, bytes]:
        return (250, b"fine") if command == "DATA" else docmd(self, command, arguments)

    monkeypatch.setattr(smtp._Plain, "docmd", confused)
    error = caught(send)
    assert type(error) is TransportError and not error.permanent and server.mails == []


def test_a_connection_that_ends_after_the_words_is_uncertain(server: MailServer, send: Send) -> None:
    server.replies["END"] = "drop"
    assert isinstance(caught(send), UncertainError) and len(server.mails) == 1


def test_a_wrong_password_is_ours_to_mend(out: Settings, mail: Message) -> None:
    assert out.smtp is not None
    wrong = replace(out, smtp=replace(out.smtp, password="wrong"))
    error = caught(lambda: transport(wrong, "email").send(mail))
    assert isinstance(error, RefusesUsError) and "SMTP_PASSWORD" in error.message
    assert check(wrong)[0].wrong and check(out)[0].problem == ""


def test_a_server_without_starttls_gets_no_password(mail: Message) -> None:
    with mail_server(secure=False, offer_tls=False) as server:
        settings = Settings(
            home=Path("/x"), secret="s" * 40, mail="smtp", smtp=Smtp("127.0.0.1", server.port, USER, PASSWORD)
        )
        error = caught(lambda: transport(settings, "email").send(mail))
        assert isinstance(error, RefusesUsError) and "SMTP_TLS" in error.message
        plain = replace(settings, smtp=Smtp("127.0.0.1", server.port, tls="none"))
        transport(plain, "email").send(mail)
        assert len(server.mails) == 1
        assert plain.smtp is not None
        smtp._Session.of_thread(plain.smtp, "").close()


def test_a_certificate_nobody_knows_is_not_trusted(out: Settings, mail: Message) -> None:
    error = caught(lambda: transport(replace(out, extra_ca=""), "email").send(mail))
    assert "HEARBACK_EXTRA_CA" in error.message and not isinstance(error, UncertainError)


def test_silence_ends_in_time(mail: Message, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp, "TIMEOUT_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = Smtp("127.0.0.1", silent.getsockname()[1], tls="none")
        settings = Settings(home=Path("/x"), secret="s" * 40, mail="smtp", smtp=where)
        began = time.monotonic()
        error = caught(lambda: transport(settings, "email").send(mail))
        assert time.monotonic() - began < 3
    assert not isinstance(error, UncertainError) and not error.permanent


@pytest.mark.parametrize(
    "changed",
    [
        {"subject": "two\r\nBcc: everybody@example.com"},
        {"to": "ann@example.com>\r\nRCPT TO:<bob@example.com"},
        {"to": "jörg@example.com"},
        {"headers": {"X": "a\r\nBcc: b@example.com"}},
    ],
)
def test_what_cannot_be_written_is_refused_and_never_smuggles_anything(
    server: MailServer, out: Settings, mail: Message, changed: dict[str, str]
) -> None:
    error = caught(lambda: transport(out, "email").send(replace(mail, **changed)))  # type: ignore[arg-type]
    assert error.permanent and server.mails == []


def test_a_domain_in_another_script_is_written_in_ascii(
    server: MailServer, out: Settings, mail: Message
) -> None:
    transport(out, "email").send(replace(mail, to="ann@bücher.example"))
    assert len(server.mails) == 1
    assert out.smtp is not None
    smtp._Session.of_thread(out.smtp, out.extra_ca).close()
