"""Channels: the one message, the port by which it leaves, and the ledger of what became of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import structlog

from shared.errors import HearbackError
from shared.roles import Loop, health
from shared.settings import Settings

_log = structlog.get_logger("hearback.sender")

Channel = Literal["email", "sms"]

# A provider that has not answered by then may or may not have taken the message (a permit lives longer).
TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message to one person, ready to be handed over.

    `delivery_id` goes along as the provider's custom argument and comes back in its webhooks; nothing
    else about the person does. SMS have neither subject nor HTML.
    """

    delivery_id: str
    channel: str
    to: str
    text: str
    to_name: str = ""
    subject: str = ""
    html: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    sender_name: str = ""
    sender_email: str = ""
    reply_to: str = ""


class TransportError(HearbackError):
    """The provider certainly did not take the message.

    `permanent`: it never will (a wrong address); else trying again after `retry_after` seconds makes sense.
    """

    status, slug = 502, "provider"

    def __init__(self, message: str, *, permanent: bool, retry_after: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.permanent = permanent


class UncertainError(TransportError):
    """Nobody can tell whether the provider took the message; it must not be sent again unasked."""

    slug = "provider-uncertain"

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=False)


class CredentialsError(TransportError):
    """The provider does not accept us: key, account or sender. It is no message's fault; all of them wait."""

    slug = "provider-credentials"

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=False, retry_after=60)


class Transport(Protocol):
    """A way out for one channel."""

    def send(self, message: Message) -> str:
        """Hands a message over; returns the provider's id for it.

        Raises `TransportError` when it was certainly not taken, `UncertainError` when that is unknown.
        Nothing else leaves it. Answers or raises within `TIMEOUT_SECONDS`.
        """
        ...


class Provider(Transport, Protocol):
    """A transport that can be asked whether it would work."""

    def check(self) -> str:
        """Asks the provider, harmlessly, whether it accepts us; returns that in a few words.

        Raises `CredentialsError` when it does not, another `TransportError` when that cannot be told now.
        """
        ...


def transport(settings: Settings, channel: str) -> Provider:
    """The transport that the settings choose for `channel`; only the chosen provider's library is loaded."""
    provider = {"email": settings.mail, "sms": settings.sms}.get(channel)
    if provider is None:
        raise TransportError(f"There is no way to send on the channel {channel}.", permanent=True)
    if provider == "sendgrid":
        from shared.channels.sendgrid import SendGridTransport

        return SendGridTransport(settings)
    if provider == "smtp":
        from shared.channels.smtp import SmtpTransport

        return SmtpTransport(settings)
    if provider == "twilio":
        from shared.channels.twilio import TwilioTransport

        return TwilioTransport(settings)
    from shared.channels.mailbox import MailboxTransport

    return MailboxTransport(settings)


def checked(settings: Settings, loop: Loop) -> Loop:
    """A sender's loop that first asks the providers whether they accept us, and does not send while not.

    A provider that cannot be reached is no reason to wait: sending finds out by itself.
    """

    def run(stop: threading.Event) -> None:
        for channel in ("email", "sms"):
            try:
                transport(settings, channel).check()
            except CredentialsError as error:
                health().failed(error.message)
                _log.error("provider does not accept us", channel=channel, error=error.message)
                stop.wait(error.retry_after)
                return
            except TransportError as error:
                _log.warning("provider not checked", channel=channel, error=error.message)
        loop(stop)

    run.__name__ = getattr(loop, "__name__", "sender")
    return run


__all__ = [
    "TIMEOUT_SECONDS",
    "Channel",
    "CredentialsError",
    "Message",
    "Provider",
    "Transport",
    "TransportError",
    "UncertainError",
    "checked",
    "transport",
]
