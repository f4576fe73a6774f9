"""The mailbox as a provider: messages handed over by HTTP, its webhooks checked by their signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from dataclasses import asdict
from datetime import datetime

from shared.channels import Message, RefusesUsError, TransportError, UncertainError
from shared.channels.http import Answer, call, retry_after
from shared.errors import Unauthenticated
from shared.settings import Settings

TIMESTAMP_HEADER = "X-Mailbox-Timestamp"
SIGNATURE_HEADER = "X-Mailbox-Signature"
STALE_SECONDS = 300


def transport(settings: Settings) -> MailboxTransport:
    """The way to the mailbox, for any channel."""
    return MailboxTransport(settings)


class MailboxTransport:
    """Speaks to the mailbox over kept connections."""

    def __init__(self, settings: Settings) -> None:
        self.url = f"{settings.mailbox_url}/mailbox/api/send"
        self.key = settings.key("mailbox-send").hex()

    def send(self, message: Message) -> str:
        """Hands a message over; returns the mailbox's id for it."""
        answer = call(
            "The mailbox",
            "POST",
            self.url,
            body=json.dumps(asdict(message), ensure_ascii=False).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        return _read(answer)


def _read(answer: Answer) -> str:
    if answer.status in (429, 503):
        raise TransportError(
            "The mailbox asks to wait.",
            permanent=False,
            retry_after=retry_after(answer.headers, time.time()),
        )
    if answer.status in (401, 403):
        raise RefusesUsError("The mailbox does not accept our key.")
    if 400 <= answer.status < 500:
        raise TransportError(f"The mailbox refused the message ({answer.status}).", permanent=True)
    if answer.status != 202:
        raise UncertainError(f"The mailbox answered {answer.status}.")
    try:
        return str(answer.json()["id"])
    except (LookupError, TypeError) as error:
        raise UncertainError("The mailbox's answer cannot be read.") from error


def sign(key: bytes, timestamp: str, body: bytes) -> str:
    """The signature over a webhook's timestamp and raw body: HMAC-SHA-256 in hex."""
    return hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def verify(
    settings: Settings, timestamp: str | None, signature: str | None, body: bytes, now: datetime
) -> None:
    """Raises `Unauthenticated` unless the mailbox signed this body within the last five minutes."""
    if not timestamp or not signature or not timestamp.isascii() or not timestamp.isdigit():
        raise Unauthenticated("This webhook is not signed.", slug="bad-signature")
    if len(timestamp) > 12 or abs(now.timestamp() - int(timestamp)) > STALE_SECONDS:
        raise Unauthenticated("This webhook is too old.", slug="stale-webhook")
    given = signature.encode("utf-8", "replace")
    if not any(
        hmac.compare_digest(sign(key, timestamp, body).encode(), given)
        for key in settings.keys("mailbox-webhook")
    ):
        raise Unauthenticated("This webhook's signature is wrong.", slug="bad-signature")
