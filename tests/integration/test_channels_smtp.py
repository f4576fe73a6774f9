"""Mail by SMTP, against a server that speaks it over TLS and asks for a login."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from shared.channels import CredentialsError, TransportError, UncertainError, smtp, transport
from shared.settings import Settings, Smtp
from tests.integration.test_channels_providers import MAIL

USER, PASSWORD = "hearback", "a password of the stand-in"


@dataclass
class Server:
    """What the server took, how it answers (by command), and whether it hangs up once it has a mail."""

    port: int = 0
    ca: str = ""
    taken: list[Envelope] = field(default_factory=list)
    sessions: set[Any] = field(default_factory=set)
    answers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        self.sessions.add(session.peer)
        envelope.mail_from = address
        return self.answers.get("MAIL", "250 OK")

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:
        envelope.rcpt_tos.append(address)
        return self.answers.get("RCPT", "250 OK")

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if "DATA" in self.answers:
            return self.answers["DATA"]
        self.taken.append(envelope)
        if self.hang_up:
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return "250 OK"


def _authenticate(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    fine = isinstance(data, LoginPassword) and (data.login, data.password) == (
        USER.encode(),
        PASSWORD.encode(),
    )
    return AuthResult(success=fine, handled=False)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    authority = trustme.CA()
    found.ca = authority.cert_pem.bytes().decode()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(tls)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found.port = probe.getsockname()[1]
    controller = Controller(
        found, hostname="127.0.0.1", port=found.port, tls_context=tls, require_starttls=True,
        authenticator=_authenticate, auth_required=True,
    )  # fmt: skip
    controller.start()
    yield found
    smtp.forget()
    controller.stop()


@pytest.fixture
def settings(server: Server) -> Settings:
    return Settings(
        home=Path("/nowhere"),
        secret="s" * 40,
        mail="smtp",
        smtp=Smtp("127.0.0.1", server.port, USER, PASSWORD),
        extra_ca=server.ca,
    )


def test_a_mail_arrives_as_it_was_written(server: Server, settings: Settings) -> None:
    id = transport(settings, "email").send(MAIL)
    [envelope] = server.taken
    assert (envelope.mail_from, envelope.rcpt_tos) == ("hello@example.org", ["ada@example.com"])
    assert isinstance(envelope.content, bytes)
    mail = message_from_bytes(envelope.content, policy=default)
    assert mail["From"] == '"Example, Ltd" <hello@example.org>'
    assert mail["To"] == "Ada Löwe <ada@example.com>"
    assert mail["Message-ID"] == id == f"<{MAIL.delivery_id}@example.org>"
    for name, value in {"Subject": MAIL.subject, "Reply-To": MAIL.reply_to, **MAIL.headers}.items():
        assert mail[name] == value
    bodies = [part.get_content().replace("\r\n", "\n") for part in mail.walk() if not part.is_multipart()]
    assert bodies == [MAIL.text + "\n", MAIL.html + "\n"]  # the line with a dot alone, too


def test_many_mails_share_one_connection(server: Server, settings: Settings) -> None:
    one = transport(settings, "email")
    for _ in range(5):
        one.send(MAIL)
    assert len(server.taken) == 5 and len(server.sessions) == 1


@pytest.mark.parametrize(
    ("command", "answer", "permanent"),
    [
        ("RCPT", "550 No such user", True),
        ("RCPT", "451 Greylisted", False),
        ("MAIL", "553 Not from you", False),
        ("DATA", "554 Spam", True),
        ("DATA", "452 Full", False),
    ],
)
def test_each_refusal_says_what_becomes_of_the_mail(
    server: Server, settings: Settings, command: str, answer: str, permanent: bool
) -> None:
    one = transport(settings, "email")
    server.answers[command] = answer
    with pytest.raises(TransportError) as caught:
        one.send(MAIL)
    assert type(caught.value) is TransportError and caught.value.permanent is permanent
    assert MAIL.to not in caught.value.message
    server.answers.clear()
    one.send(MAIL)
    assert len(server.taken) == 1


def test_a_server_that_hangs_up_with_the_mail_leaves_it_uncertain(server: Server, settings: Settings) -> None:
    one = transport(settings, "email")
    server.hang_up = True
    with pytest.raises(UncertainError):
        one.send(MAIL)
    assert len(server.taken) == 1
    server.hang_up = False
    one.send(MAIL)
    assert len(server.taken) == 2


@pytest.mark.parametrize(
    "mail",
    [replace(MAIL, to="jürgen@example.com"), replace(MAIL, subject="two\nlines")],
    ids=["address", "header"],
)
def test_what_cannot_be_written_is_final(server: Server, settings: Settings, mail: Any) -> None:
    with pytest.raises(TransportError) as caught:
        transport(settings, "email").send(mail)
    assert caught.value.permanent and server.taken == []


def test_credentials_are_checked_without_sending(server: Server, settings: Settings) -> None:
    assert "accepts us" in transport(settings, "email").check()
    assert settings.smtp
    wrong = replace(settings, smtp=replace(settings.smtp, password="wrong"))
    with pytest.raises(CredentialsError, match="SMTP_USER and SMTP_PASSWORD"):
        transport(wrong, "email").check()
    with pytest.raises(CredentialsError):
        transport(wrong, "email").send(MAIL)
    assert server.taken == []


def test_an_unknown_certificate_and_nobody_there_are_no_words_about_the_mail(
    server: Server, settings: Settings
) -> None:
    assert settings.smtp
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nowhere = replace(settings.smtp, port=closed.getsockname()[1])
    for other in (replace(settings, extra_ca=""), replace(settings, smtp=nowhere)):
        with pytest.raises(TransportError) as caught:
            transport(other, "email").send(MAIL)
        assert type(caught.value) is TransportError and not caught.value.permanent
    assert server.taken == []
