"""Mail by any SMTP server: a connection kept per thread, each command in time."""

from __future__ import annotations

import os
import smtplib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from email.utils import format_datetime, formataddr

from shared.channels import TIMEOUT_SECONDS, CredentialsError, Message, TransportError, UncertainError
from shared.channels.http import context
from shared.settings import Settings, Smtp

_local = threading.local()
# Reaching the server, greeting it and logging in leave time for the message itself.
_CONNECT_SECONDS = 4.0


class SmtpTransport:
    """Hands mails to one server. It has no webhooks: that it took a mail is the last word."""

    def __init__(self, settings: Settings) -> None:
        assert settings.smtp is not None  # noqa: S101 (load makes it when SMTP is chosen)
        self.settings: Smtp = settings.smtp
        self.ca = settings.extra_ca

    def send(self, message: Message) -> str:
        """Hands a mail over; returns its Message-ID."""
        until = time.monotonic() + TIMEOUT_SECONDS
        written, id = _written(message)
        server = self._connected(until)
        with self._dropping():
            with self._step(server, until):
                _expect(server.mail(message.sender_email), "sender", permanent=False)
            with self._step(server, until):
                _expect(server.rcpt(message.to), "recipient", permanent=True)
            with self._step(server, until):
                _expect(server.docmd("DATA"), "message", permanent=True, wanted=354)
        try:
            server.sock.settimeout(max(0.1, until - time.monotonic()))  # type: ignore[union-attr]
            server.send(written)
            code, _ = server.getreply()
        except (OSError, smtplib.SMTPException) as error:
            # All of it may have arrived.
            forget()
            raise UncertainError("The mail server did not answer in time.") from error
        if code != 250:
            forget()
            raise _refused(code, "message", permanent=True)
        return id

    def check(self) -> str:
        """Greets the server and logs in. Raises `CredentialsError` when it does not let us."""
        with self._dropping():
            server = self._connected(time.monotonic() + TIMEOUT_SECONDS)
            with self._step(server, time.monotonic() + TIMEOUT_SECONDS):
                server.noop()
        return f"the mail server {self.settings.host} accepts us"

    def _connected(self, until: float) -> smtplib.SMTP:
        """This thread's connection, asked whether it is still there."""
        key = (os.getpid(), self.settings, self.ca)
        server: smtplib.SMTP | None = getattr(_local, "server", None)
        if server is not None and getattr(_local, "key", None) == key and server.sock is not None:
            with suppress(OSError, smtplib.SMTPException):
                server.sock.settimeout(_CONNECT_SECONDS)
                if server.rset()[0] == 250:
                    return server
        forget()
        _local.server, _local.key = self._connect(until), key
        made: smtplib.SMTP = _local.server
        return made

    def _connect(self, until: float) -> smtplib.SMTP:
        here = self.settings
        server: smtplib.SMTP | None = None
        try:
            timeout = min(_CONNECT_SECONDS, max(0.1, until - time.monotonic()))
            if here.tls == "tls":
                server = smtplib.SMTP_SSL(here.host, here.port, timeout=timeout, context=context(self.ca))
            else:
                server = smtplib.SMTP(here.host, here.port, timeout=timeout)
            if here.tls == "starttls":
                server.starttls(context=context(self.ca))
            server.ehlo_or_helo_if_needed()
            if here.user:
                server.login(here.user, here.password)
            return server
        except (OSError, smtplib.SMTPException) as error:
            if server is not None:
                server.close()
            raise self._no_way_in(error) from error

    def _no_way_in(self, error: Exception) -> TransportError:
        here = self.settings
        if isinstance(error, smtplib.SMTPAuthenticationError):
            return CredentialsError(
                f"The mail server {here.host} does not accept SMTP_USER and SMTP_PASSWORD "
                f"({error.smtp_code})."
            )
        if isinstance(error, smtplib.SMTPNotSupportedError):
            return CredentialsError(
                f"The mail server {here.host} cannot do what SMTP_TLS={here.tls} or the login needs: {error}"
            )
        return TransportError(
            f"The mail server {here.host} cannot be reached ({type(error).__name__}).",
            permanent=False,
            retry_after=30,
        )

    @contextmanager
    def _step(self, server: smtplib.SMTP, until: float) -> Iterator[None]:
        """One command before the message itself: whatever goes wrong, nothing was taken."""
        try:
            server.sock.settimeout(max(0.1, until - time.monotonic()))  # type: ignore[union-attr]
            yield
        except (OSError, smtplib.SMTPException) as error:
            raise TransportError(
                f"The mail server {self.settings.host} broke off ({type(error).__name__}).",
                permanent=False,
                retry_after=30,
            ) from error

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """After any error the connection is given up: nobody knows what it is in the midst of."""
        try:
            yield
        except BaseException:
            forget()
            raise


def forget() -> None:
    """Closes this thread's connection, if it has one."""
    server, _local.server = getattr(_local, "server", None), None
    if server is not None:
        with suppress(OSError, smtplib.SMTPException):
            server.close()


def _written(message: Message) -> tuple[bytes, str]:
    """The mail as it travels, ended by its dot, and its Message-ID. Raises for an address it cannot carry."""
    domain = message.sender_email.rpartition("@")[2] or "localhost"
    id = f"<{message.delivery_id}@{domain}>"
    try:
        message.to.encode("ascii")
        # Not every server takes eight bits.
        mail = EmailMessage(policy=WIRE.clone(cte_type="7bit"))
        mail["From"] = formataddr((message.sender_name, message.sender_email))
        mail["To"] = formataddr((message.to_name, message.to))
        mail["Subject"] = message.subject
        mail["Date"] = format_datetime(datetime.now(UTC))
        mail["Message-ID"] = id
        if message.reply_to:
            mail["Reply-To"] = message.reply_to
        for name, value in message.headers.items():
            mail[name] = value
        mail.set_content(message.text)
        if message.html:
            mail.add_alternative(message.html, subtype="html")
        raw = mail.as_bytes()
    except (ValueError, LookupError) as error:
        # A line break in a header, say, or an address that needs SMTPUTF8.
        raise TransportError("The mail cannot be written for this address.", permanent=True) from error
    # RFC 5321, 4.5.2: a line that begins with a dot gets another one, and a dot alone ends the mail.
    stuffed = raw.replace(b"\r\n.", b"\r\n..")
    return stuffed + (b"" if stuffed.endswith(b"\r\n") else b"\r\n") + b".\r\n", id


def _expect(reply: tuple[int, bytes], what: str, *, permanent: bool, wanted: int = 250) -> None:
    code = reply[0]
    if code != wanted and not (wanted == 250 and code == 251):
        raise _refused(code, what, permanent=permanent)


def _refused(code: int, what: str, *, permanent: bool) -> TransportError:
    """4xx means later (RFC 5321, 4.2.1). A refused sender is ours to mend, and no message's fault."""
    later = not permanent or code < 500
    return TransportError(
        f"The mail server refused the {what} ({code}).",
        permanent=not later,
        retry_after=300 if later else None,
    )
