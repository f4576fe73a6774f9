"""Channels: the one message, the port by which it leaves, and the ledger of what became of it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from shared.errors import HearbackError
from shared.settings import Settings

Channel = Literal["email", "sms"]
CHANNELS: tuple[Channel, ...] = ("email", "sms")

# The reason of a failure that is an opt-out (the recipient said so to the provider): survey notes it as one.
OPTED_OUT = "The recipient has opted out at the provider."

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


class RefusesUsError(TransportError):
    """The provider takes nothing from us at all: a wrong key, sender or account.

    Ours to mend and not the message's fault, so it waits for as long as that takes.
    """

    slug = "provider-refuses-us"

    def __init__(self, message: str, *, retry_after: int = 60) -> None:
        super().__init__(message, permanent=False, retry_after=retry_after)


class UncertainError(TransportError):
    """Nobody can tell whether the provider took the message; it must not be sent again unasked."""

    slug = "provider-uncertain"

    def __init__(self, message: str) -> None:
        super().__init__(message, permanent=False)


class Transport(Protocol):
    """A way out for one channel."""

    def send(self, message: Message) -> str | None:
        """Hands a message over; returns the provider's id for it, None when it says none.

        Raises `TransportError` when it was certainly not taken, `UncertainError` when that is unknown.
        Answers or raises within `TIMEOUT_SECONDS`.
        """
        ...


def transport(settings: Settings, channel: str) -> Transport:
    """The transport that the settings choose for `channel`; only its own provider's library is loaded.

    Connections and clients are kept by process and thread, not by transport: making one costs nothing.
    """
    chosen = {"email": settings.mail, "sms": settings.sms}.get(channel)
    if chosen is None:
        raise TransportError(f"There is no way to send on the channel {channel}.", permanent=True)
    made: Transport = importlib.import_module(f"shared.channels.{chosen}").transport(settings)
    return made


__all__ = [
    "CHANNELS",
    "OPTED_OUT",
    "TIMEOUT_SECONDS",
    "Channel",
    "Message",
    "RefusesUsError",
    "Transport",
    "TransportError",
    "UncertainError",
    "transport",
]
