"""A mail server with STARTTLS and a login that keeps what it takes, and can go wrong at each step."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default as parsed
from typing import Any

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

USER, PASSWORD = "hearback", "hush"


class MailServer:
    """Takes mails from whoever logs in. `replies` are by step ("MAIL", "RCPT", "DATA", "END"): what is said
    instead of yes, once; "drop" ends the connection there.
    """

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.raw: list[bytes] = []
        self.senders: list[str] = []
        self.replies: dict[str, str] = {}
        self.sessions: set[int] = set()
        self.port = 0
        self.ca = ""

    def _say(self, step: str, server: Any, yes: str) -> str:
        reply = self.replies.pop(step, yes)
        if reply == "drop":
            server.transport.abort()
            return "421 gone"
        return reply

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        self.sessions.add(id(session))
        envelope.mail_from = address
        return self._say("MAIL", server, "250 OK")

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        reply = self._say("RCPT", server, "250 OK")
        if reply.startswith("250"):
            envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.replies.get("END", "").startswith(("4", "5")):
            return self.replies.pop("END")
        self.raw.append(envelope.content)
        self.senders.append(envelope.mail_from)
        mail = BytesParser(policy=parsed).parsebytes(envelope.content)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return self._say("END", server, "250 taken")


class _AnyPort(Controller):
    def _trigger_server(self) -> None:
        # It asks the port that it was given whether it is up: of 0 only the server knows which that is.
        server: Any = self.server
        self.port = server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@contextmanager
def mail_server(*, secure: bool = True, offer_tls: bool = True) -> Iterator[MailServer]:
    """Runs one on loopback; `secure` demands STARTTLS before a login."""
    made = MailServer()
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    made.ca = authority.cert_pem.bytes().decode()

    def log_in(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (
            USER.encode(),
            PASSWORD.encode(),
        )
        return AuthResult(success=right, handled=False)

    controller = _AnyPort(
        made,
        hostname="127.0.0.1",
        port=0,
        tls_context=context if offer_tls else None,
        require_starttls=secure and offer_tls,
        authenticator=log_in,
        auth_required=secure,
        auth_require_tls=secure,
        decode_data=False,
    )
    controller.start()
    made.port = controller.port
    try:
        yield made
    finally:
        controller.stop()
