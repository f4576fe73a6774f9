"""The mailbox as a provider: messages handed over by HTTP, its webhooks checked by their signature."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import asdict
from datetime import datetime
from functools import lru_cache

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError

from shared.channels import TIMEOUT_SECONDS, Message, TransportError, UncertainError
from shared.errors import Unauthenticated
from shared.settings import Settings

TIMESTAMP_HEADER = "X-Mailbox-Timestamp"
SIGNATURE_HEADER = "X-Mailbox-Signature"
STALE_SECONDS = 300


def transport(settings: Settings) -> MailboxTransport:
    """The way to the mailbox, for any channel."""
    return MailboxTransport(settings)


class MailboxTransport:
    """Speaks to the mailbox over a pool of kept connections, one pool a process."""

    def __init__(self, settings: Settings) -> None:
        self.url = f"{settings.mailbox_url}/mailbox/api/send"
        self.key = settings.key("mailbox-send").hex()

    def send(self, message: Message) -> str:
        """Hands a message over; returns the mailbox's id for it."""
        try:
            answer = _pool(os.getpid()).request(
                "POST",
                self.url,
                body=json.dumps(asdict(message), ensure_ascii=False).encode(),
                headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
                timeout=urllib3.Timeout(total=TIMEOUT_SECONDS),
                retries=False,
                redirect=False,
            )
        except NewConnectionError as error:
            raise TransportError("The mailbox cannot be reached.", permanent=False, retry_after=5) from error
        except urllib3.exceptions.ConnectTimeoutError as error:
            raise TransportError("The mailbox cannot be reached.", permanent=False, retry_after=5) from error
        except HTTPError as error:
            raise UncertainError("The mailbox did not answer in time.") from error
        return _read(answer)


def _read(answer: urllib3.BaseHTTPResponse) -> str:
    if answer.status in (429, 503):
        raise TransportError(
            "The mailbox asks to wait.",
            permanent=False,
            retry_after=_seconds(answer.headers.get("Retry-After")),
        )
    if answer.status in (401, 403):
        # Ours to mend, not the message's fault: it waits until the key is right.
        raise TransportError("The mailbox does not accept our key.", permanent=False, retry_after=60)
    if 400 <= answer.status < 500:
        raise TransportError(f"The mailbox refused the message ({answer.status}).", permanent=True)
    if answer.status != 202:
        raise UncertainError(f"The mailbox answered {answer.status}.")
    try:
        return str(answer.json()["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise UncertainError("The mailbox's answer cannot be read.") from error


def _seconds(text: str | None) -> int | None:
    return min(int(text), 3600) if text and text.isdigit() else None


@lru_cache(maxsize=1)
def _pool(process: int) -> urllib3.PoolManager:
    # By process: connections made before a fork must not be used by two.
    return urllib3.PoolManager(num_pools=4, maxsize=8)


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
