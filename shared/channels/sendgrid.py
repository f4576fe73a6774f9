"""SendGrid: mails handed over through its v3 API, and its event webhook checked by its signature."""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
from datetime import datetime
from functools import lru_cache
from typing import Any

from shared.channels import Message, RefusesUsError, TransportError, UncertainError
from shared.channels.http import Answer, call, retry_after
from shared.errors import Unauthenticated
from shared.provider_settings import SendGrid
from shared.settings import Settings

NAME = "SendGrid"
TIMESTAMP_HEADER = "X-Twilio-Email-Event-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Twilio-Email-Event-Webhook-Signature"
STALE_SECONDS = 300
# The custom argument that comes back in every event of a mail: the delivery's id, and nothing else.
ARGUMENT = "delivery_id"
# SendGrid sets these itself and refuses a mail that brings them as headers (v3 API, "headers").
_RESERVED = frozenset(
    "x-sg-id x-sg-eid received dkim-signature content-type content-transfer-encoding to from subject reply-to"
    " cc bcc".split()
)


def transport(settings: Settings) -> SendGridTransport:
    """The way to SendGrid, for mails."""
    return SendGridTransport(settings)


class SendGridTransport:
    """Builds with the SDK's helpers, and sends over our own pool: the SDK's has no time-out, keeps no
    connection and hides the headers of a 429.
    """

    def __init__(self, settings: Settings) -> None:
        self.us = _chosen(settings)
        self.extra_ca = settings.extra_ca

    def send(self, message: Message) -> str | None:
        """Hands a mail over; returns SendGrid's id for it, if it says one."""
        try:
            body = json.dumps(build(message)).encode()
        except Exception as error:  # whatever its helpers find wrong, it will be wrong the next time
            raise TransportError(
                "The mail cannot be written as SendGrid wants it.", permanent=True
            ) from error
        answer = call(
            NAME,
            "POST",
            f"{self.us.url}/v3/mail/send",
            headers={**_headers(self.us), "Content-Type": "application/json"},
            body=body,
            extra_ca=self.extra_ca,
        )
        return verdict(answer, time.time())


def build(message: Message) -> dict[str, Any]:
    """The body of `/v3/mail/send`: one recipient, both forms of the words, nothing tracked."""
    from sendgrid.helpers import mail as sg  # 20 MB: only where mails are sent

    made = sg.Mail()
    made.from_email = sg.From(message.sender_email, message.sender_name or None)
    made.reply_to = sg.ReplyTo(message.reply_to) if message.reply_to else None
    made.subject = message.subject
    made.add_to(sg.To(message.to, message.to_name or None))
    made.add_content(message.text, "text/plain")
    if message.html:
        made.add_content(message.html, "text/html")
    for name, value in message.headers.items():
        if name.casefold() not in _RESERVED:
            made.add_header(sg.Header(name, value))
    made.add_custom_arg(sg.CustomArg(ARGUMENT, message.delivery_id))
    tracking = sg.TrackingSettings()
    # Links in our mails carry tokens and are clicked by scanners: no detour through another host. Its
    # subscription tracking would put a List-Unsubscribe of its own in place of ours.
    tracking.click_tracking = sg.ClickTracking(False, False)
    tracking.open_tracking = sg.OpenTracking(False)
    tracking.subscription_tracking = sg.SubscriptionTracking(False)
    tracking.ganalytics = sg.Ganalytics(False)
    made.tracking_settings = tracking
    body: dict[str, Any] = made.get()
    return body


def verdict(answer: Answer, now: float) -> str | None:
    """What an answer to a hand-over means: SendGrid's id, or an error that says whether it was taken."""
    status = answer.status
    if (
        status == 202
    ):  # that it took the mail; its events find the delivery by our own argument, not by its id
        return answer.headers.get("X-Message-Id") or None
    if status in (408, 429):
        raise TransportError(
            "SendGrid asks to wait.", permanent=False, retry_after=retry_after(answer.headers, now)
        )
    if status == 401:
        raise RefusesUsError("SendGrid does not accept SENDGRID_API_KEY.")
    if status == 403:
        raise RefusesUsError(
            "SendGrid does not let us send (403): the company's sender is not verified there, or the key may"
            " not send mail."
        )
    if 300 <= status < 400 or status in (404, 405):
        raise RefusesUsError(f"SendGrid is not at SENDGRID_API_URL ({status}).")
    if 400 <= status < 500:
        raise TransportError(f"SendGrid refused the mail ({status}{_field(answer)}).", permanent=True)
    if status == 503 and (seconds := retry_after(answer.headers, now)):
        # A server that says when to come back has decided; without that a 503 may also come from a proxy
        # whose connection broke while the mail was being taken.
        raise TransportError("SendGrid asks to wait.", permanent=False, retry_after=seconds)
    raise UncertainError(f"SendGrid answered {status}.")


def _field(answer: Answer) -> str:
    """Which field it found wrong; its sentence may quote an address."""
    try:
        field = answer.json()["errors"][0]["field"]
    except (LookupError, TypeError):
        return ""
    return f", {field}" if isinstance(field, str) and re.fullmatch(r"[\w.]{1,80}", field) else ""


def check(settings: Settings) -> str:
    """Asks SendGrid what the key may do; returns what is fine. Raises `RefusesUsError` when it may not
    send, another `TransportError` when nobody can tell.
    """
    us = _chosen(settings)
    answer = call(NAME, "GET", f"{us.url}/v3/scopes", headers=_headers(us), extra_ca=settings.extra_ca)
    if answer.status == 401:
        raise RefusesUsError("SendGrid does not accept SENDGRID_API_KEY.")
    if answer.status == 403:  # a key restricted so far that it may not even ask
        raise RefusesUsError("SENDGRID_API_KEY may not send mail: give it the permission Mail Send.")
    if 300 <= answer.status < 400 or answer.status in (404, 405):
        raise RefusesUsError(f"SendGrid is not at SENDGRID_API_URL ({answer.status}).")
    try:
        scopes = answer.json()["scopes"] if answer.status == 200 else None
    except (LookupError, TypeError):
        scopes = None
    if not isinstance(scopes, list):
        raise TransportError(
            f"SendGrid cannot say what our key may do ({answer.status}).", permanent=False, retry_after=30
        )
    if "mail.send" not in scopes:
        raise RefusesUsError("SENDGRID_API_KEY may not send mail: give it the permission Mail Send.")
    return "the key may send"


def verify(
    settings: Settings, timestamp: str | None, signature: str | None, body: bytes, now: datetime
) -> None:
    """Raises `Unauthenticated` unless SendGrid signed this raw body within the last five minutes.

    ECDSA over P-256 with SHA-256, of the timestamp followed by the body. The SDK's verifier raises all
    sorts on a malformed signature, and decodes the body first.
    """
    if not timestamp or not signature or not timestamp.isascii() or not timestamp.isdigit():
        raise Unauthenticated("This webhook is not signed.", slug="bad-signature")
    if len(timestamp) > 12 or abs(now.timestamp() - int(timestamp)) > STALE_SECONDS:
        raise Unauthenticated("This webhook is too old.", slug="stale-webhook")
    if not _signed(_chosen(settings).webhook_key, signature, timestamp.encode() + body):
        raise Unauthenticated("This webhook's signature is wrong.", slug="bad-signature")


def _signed(key: bytes, signature: str, what: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        _public_key(key).verify(base64.b64decode(signature, validate=True), what, ECDSA(SHA256()))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


@lru_cache(maxsize=2)
def _public_key(der: bytes) -> Any:
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    return load_der_public_key(der)


def _headers(us: SendGrid) -> dict[str, str]:
    return {"Authorization": f"Bearer {us.api_key}", "Accept": "application/json", "User-Agent": "hearback"}


def _chosen(settings: Settings) -> SendGrid:
    if settings.sendgrid is None:
        raise TransportError("SendGrid is not chosen.", permanent=True)
    return settings.sendgrid
