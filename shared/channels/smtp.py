"""SMTP: mails handed over to a mail server over one kept connection a thread."""

from __future__ import annotations

import re
import smtplib
import ssl
import time
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from shared.channels import TIMEOUT_SECONDS, Message, RefusesUsError, TransportError, UncertainError
from shared.channels.http import CONNECT_SECONDS, UNREACHABLE_SECONDS, OfThread, reason, tls_context
from shared.provider_settings import Smtp
from shared.settings import Settings

# Servers end a session after some hundred messages or minutes; a NOOP before each use finds that out.
_KEPT_SECONDS = 60.0


def transport(settings: Settings) -> SmtpTransport:
    """The way to the mail server, for mails."""
    return SmtpTransport(settings)


class SmtpTransport:
    """Sends one mail a transaction, so that each recipient's refusal is their own."""

    def __init__(self, settings: Settings) -> None:
        self.us = _chosen(settings)
        self.extra_ca = settings.extra_ca

    def send(self, message: Message) -> str:
        """Hands a mail over; returns its Message-ID, which is made from the delivery's id."""
        try:
            made, id = build(message)
            sender, to = _wire_address(message.sender_email), _wire_address(message.to)
        except Exception as error:  # a line break in a header, an address that cannot be written down
            raise TransportError(
                "The mail cannot be written as mail servers want it.", permanent=True
            ) from error
        session = _Session.of_thread(self.us, self.extra_ca)
        try:
            session.hand_over(sender, to, made)
        except BaseException:
            session.close()
            raise
        return id


def build(message: Message) -> tuple[bytes, str]:
    """The mail as it goes over the wire, and its Message-ID. Raises `ValueError` for unwritable headers."""
    mail = EmailMessage(policy=WIRE)
    mail["From"] = Address(message.sender_name, addr_spec=message.sender_email)
    mail["To"] = Address(message.to_name, addr_spec=message.to)
    if message.reply_to:
        mail["Reply-To"] = Address(addr_spec=message.reply_to)
    mail["Subject"] = message.subject
    id = f"<{message.delivery_id}@{message.sender_email.rpartition('@')[2]}>"
    mail["Message-ID"] = id
    mail["Date"] = formatdate(time.time(), usegmt=True)
    mail.set_content(message.text, cte="quoted-printable")
    if message.html:
        mail.add_alternative(message.html, subtype="html", cte="quoted-printable")
    # By hand: the library would fold a long List-Unsubscribe into encoded words, which nobody can click.
    lines = [_header(name, value) for name, value in message.headers.items()]
    return b"".join(lines) + mail.as_bytes(), id


def _header(name: str, value: str) -> bytes:
    """One header as it stands (RFC 5322: at most 998 characters, all of them ASCII). Raises `ValueError`."""
    line = f"{name}: {value}"
    if not re.fullmatch(r"[!-9;-~]+", name) or not re.fullmatch(r"[ -~]{1,998}", line):
        raise ValueError("no header")
    return line.encode() + b"\r\n"


def check(settings: Settings) -> str:
    """Logs in and says NOOP; returns what is fine. Raises `RefusesUsError` when the server wants nothing
    from us, another `TransportError` when nobody can tell.
    """
    us = _chosen(settings)
    session = _Session(us, settings.extra_ca)
    try:
        session.open()
        session.noop()
    finally:
        session.close()
    return "the server lets us in" if us.user else "the server answers, without a login"


class _Timed:
    """Ends each step of a conversation at the hand-over's deadline; in front of smtplib's classes."""

    deadline = float("inf")

    def send(self, s: Any) -> None:
        self._limit()
        super().send(s)  # type: ignore[misc]

    def getreply(self) -> tuple[int, bytes]:
        self._limit()
        reply: tuple[int, bytes] = super().getreply()  # type: ignore[misc]
        return reply

    def _limit(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server took too long")
        sock = getattr(self, "sock", None)
        if sock is not None:
            sock.settimeout(left)


class _Plain(_Timed, smtplib.SMTP):
    pass


class _Secure(_Timed, smtplib.SMTP_SSL):
    pass


_here = OfThread()


class _Session:
    """A connection to the server, logged in, and what its answers mean."""

    def __init__(self, us: Smtp, extra_ca: str) -> None:
        self.us, self.extra_ca = us, extra_ca
        self.smtp: _Plain | _Secure | None = None
        self.used_at = 0.0
        self.deadline = time.monotonic() + TIMEOUT_SECONDS

    @staticmethod
    def of_thread(us: Smtp, extra_ca: str) -> _Session:
        """This thread's session."""
        return _here.get((us, extra_ca), lambda: _Session(us, extra_ca))

    def hand_over(self, sender: str, to: str, mail: bytes) -> None:
        """One mail. Raises as the port says; until its words leave, nothing was certainly taken."""
        self.deadline = time.monotonic() + TIMEOUT_SECONDS
        smtp = self._ready()
        try:
            self._expect(smtp.docmd("MAIL", f"FROM:<{sender}>"), "its sender", ours=True)
            self._expect(smtp.docmd("RCPT", f"TO:<{to}>"), "its recipient")
            reply = smtp.docmd("DATA")
            self._expect(reply, "the mail")
            if reply[0] != 354:  # it did not say "go on": the words would be read as commands
                raise TransportError("The mail server cannot be understood.", permanent=False)
        except (OSError, smtplib.SMTPException) as error:
            raise _unreachable(error) from error
        try:
            smtp.send(re.sub(rb"(?m)^\.", b"..", mail.rstrip(b"\r\n")) + b"\r\n.\r\n")
            reply = smtp.getreply()
        except (OSError, smtplib.SMTPException) as error:
            raise UncertainError(f"The mail server did not answer ({type(error).__name__}).") from error
        self._expect(reply, "the mail")
        self.used_at = time.monotonic()

    def _ready(self) -> _Plain | _Secure:
        if self.smtp is not None:
            try:
                if time.monotonic() - self.used_at < _KEPT_SECONDS:
                    self.smtp.deadline = self.deadline
                    self.noop()
                    return self.smtp
            except TransportError:
                pass  # it was closed meanwhile
            self.close()
        return self.open()

    def open(self) -> _Plain | _Secure:
        """Connects, secures, and logs in. Nothing was taken when this raises."""
        context = tls_context_once(self.extra_ca)
        try:
            smtp: _Plain | _Secure
            if self.us.tls == "tls":
                smtp = _Secure(timeout=CONNECT_SECONDS, context=context)
            else:
                smtp = _Plain(timeout=CONNECT_SECONDS)
            self.smtp = smtp
            smtp.deadline = self.deadline
            # The constructor sets it only when it connects; the certificate is checked for this name.
            smtp._host = self.us.host  # type: ignore[union-attr]
            self._expect(smtp.connect(self.us.host, self.us.port), "us", ours=True)
            self._expect(smtp.ehlo(), "us", ours=True)
            if self.us.tls == "starttls":
                if not smtp.has_extn("starttls"):
                    raise RefusesUsError("The mail server offers no STARTTLS: see SMTP_TLS.")
                self._expect(smtp.starttls(context=context), "STARTTLS", ours=True)
                self._expect(smtp.ehlo(), "us", ours=True)
            if self.us.user:
                self._log_in(smtp)
        except smtplib.SMTPAuthenticationError as error:
            if 400 <= error.smtp_code < 500:
                raise TransportError("The mail server asks to wait.", permanent=False) from error
            raise RefusesUsError("The mail server does not accept SMTP_USER and SMTP_PASSWORD.") from error
        except UnicodeError as error:
            raise RefusesUsError("SMTP_USER or SMTP_PASSWORD has characters that no login has.") from error
        except smtplib.SMTPResponseException as error:
            self._expect((error.smtp_code, b""), "us", ours=True)
            raise _unreachable(error) from error
        except (OSError, smtplib.SMTPException) as error:
            raise _unreachable(error) from error
        return smtp

    def _log_in(self, smtp: _Plain | _Secure) -> None:
        # One way only: smtplib's `login` tries the next after a wrong password, and a server that has
        # closed by then would look as if it were out of reach.
        offered = smtp.esmtp_features.get("auth", "").upper().split()
        way = next((one for one in ("PLAIN", "LOGIN", "CRAM-MD5") if one in offered), None)
        if way is None:
            raise RefusesUsError("The mail server offers no login: see SMTP_USER and SMTP_TLS.")
        smtp.user, smtp.password = self.us.user, self.us.password
        smtp.auth(way, getattr(smtp, f"auth_{way.lower().replace('-', '_')}"))

    def noop(self) -> None:
        """Asks whether the server is there."""
        if self.smtp is None:
            raise TransportError("The mail server is not connected.", permanent=False)
        try:
            self._expect(self.smtp.noop(), "us", ours=True)
        except (OSError, smtplib.SMTPException) as error:
            raise _unreachable(error) from error

    def close(self) -> None:
        """Ends the connection without ceremony."""
        if self.smtp is not None:
            self.smtp.close()
            self.smtp = None

    def __del__(self) -> None:
        self.close()  # with the thread that kept it

    @staticmethod
    def _expect(reply: tuple[int, bytes], what: str, *, ours: bool = False) -> None:
        """Raises unless the server goes on (2xx, 3xx). Its sentence is left out: it may quote an address."""
        code = reply[0]
        if 200 <= code < 400:
            return
        if 400 <= code < 500:  # 421 too: it is closing, or has enough of us for now (RFC 5321, 4.2.1)
            raise TransportError(f"The mail server asks to wait ({code}).", permanent=False)
        if code in (530, 534, 535, 538) or (ours and code != 552):  # a login is wanted; 552: the mail's size
            raise RefusesUsError(f"The mail server refused {what} ({code}).")
        if code < 200:
            raise TransportError("The mail server cannot be understood.", permanent=False)
        raise TransportError(f"The mail server refused {what} ({code}).", permanent=True)


def _unreachable(error: BaseException) -> TransportError:
    said = "it closed the connection" if isinstance(error, smtplib.SMTPServerDisconnected) else reason(error)
    return TransportError(
        f"The mail server cannot be reached: {said}.", permanent=False, retry_after=UNREACHABLE_SECONDS
    )


def _wire_address(address: str) -> str:
    """The address in ASCII. Raises `ValueError` where only SMTPUTF8 could write it, which few servers speak,
    and for what could end the command.
    """
    local, _, domain = address.rpartition("@")
    written = f"{local}@{domain.encode('idna').decode()}"
    written.encode("ascii")
    if not local or re.search(r"[\s<>\x00-\x1f\x7f]", written):
        raise ValueError("no address")
    return written


@lru_cache(maxsize=4)
def tls_context_once(extra_ca: str) -> ssl.SSLContext:
    """Loading the certificates takes 20 ms: once a process is enough."""
    return tls_context(extra_ca)


def _chosen(settings: Settings) -> Smtp:
    if settings.smtp is None:
        raise TransportError("SMTP is not chosen.", permanent=True)
    return settings.smtp
