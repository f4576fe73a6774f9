"""SendGrid: mails written by its SDK and handed over by our pooled transport; its signed event webhook."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Any

import urllib3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from shared.channels import CredentialsError, Message, TransportError, UncertainError
from shared.channels.http import exchange, retry_after
from shared.errors import Unauthenticated
from shared.settings import SendGrid, Settings

NAME = "SendGrid"
SIGNATURE_HEADER = "X-Twilio-Email-Event-Webhook-Signature"
TIMESTAMP_HEADER = "X-Twilio-Email-Event-Webhook-Timestamp"
STALE_SECONDS = 300
# The custom argument that comes back with each event. Nothing else: it cannot be erased there.
ARGUMENT = "delivery_id"


class SendGridTransport:
    """Speaks to the v3 API. The SDK's own client has no time-out and connects anew for each mail."""

    def __init__(self, settings: Settings) -> None:
        assert settings.sendgrid is not None  # noqa: S101 (load makes it when SendGrid is chosen)
        self.settings: SendGrid = settings.sendgrid
        self.ca = settings.extra_ca
        self.headers = {
            "Authorization": f"Bearer {self.settings.api_key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }

    def send(self, message: Message) -> str:
        """Hands a mail over; returns SendGrid's id for it."""
        body = json.dumps(payload(message), ensure_ascii=False).encode()
        return _read(self._call("POST", "/v3/mail/send", body))

    def check(self) -> str:
        """Asks what the key may do. Raises `CredentialsError` when it may not send mail."""
        answer = self._call("GET", "/v3/scopes")
        if answer.status in (401, 403):
            raise _refused(answer.status)
        if answer.status != 200:
            raise TransportError(f"{NAME} answered {answer.status}.", permanent=False)
        try:
            scopes = answer.json()["scopes"]
        except (ValueError, KeyError, TypeError) as error:
            raise TransportError(f"{NAME}'s answer cannot be read.", permanent=False) from error
        if "mail.send" not in scopes:
            raise CredentialsError(
                f"{NAME} knows the key in SENDGRID_API_KEY, but it may not send mail: give it the permission "
                "Mail Send."
            )
        return f"{NAME} accepts the key"

    def _call(self, method: str, path: str, body: bytes | None = None) -> urllib3.BaseHTTPResponse:
        return exchange(NAME, method, self.settings.url + path, body=body, headers=self.headers, ca=self.ca)


def payload(message: Message) -> dict[str, Any]:
    """The request's body for one mail, as the SDK writes it."""
    from sendgrid.helpers import mail as sdk

    written = sdk.Mail()
    written.from_email = sdk.From(message.sender_email, message.sender_name or None)
    written.subject = message.subject
    to = sdk.Personalization()
    to.add_to(sdk.To(message.to, message.to_name or None))
    written.add_personalization(to)
    if message.reply_to:
        written.reply_to = sdk.ReplyTo(message.reply_to)
    written.add_content(sdk.Content("text/plain", message.text))
    if message.html:
        written.add_content(sdk.Content("text/html", message.html))
    for name, value in message.headers.items():
        written.add_header(sdk.Header(name, value))
    written.add_custom_arg(sdk.CustomArg(ARGUMENT, message.delivery_id))
    # Rewritten links would hide where a score leads, and its own unsubscribe link would compete with ours.
    tracking = sdk.TrackingSettings()
    tracking.click_tracking = sdk.ClickTracking(False, False)
    tracking.open_tracking = sdk.OpenTracking(False)
    tracking.subscription_tracking = sdk.SubscriptionTracking(False)
    written.tracking_settings = tracking
    found: dict[str, Any] = written.get()
    return found


def _read(answer: urllib3.BaseHTTPResponse) -> str:
    status = answer.status
    if status in (200, 202):
        return answer.headers.get("X-Message-Id") or ""
    if status in (429, 503):
        # 503 is its word for "not available": turned away before anything was done.
        raise TransportError(
            f"{NAME} asks to wait ({status}).", permanent=False, retry_after=retry_after(answer.headers)
        )
    if status in (401, 403):
        raise _refused(status)
    if 400 <= status < 500:
        raise TransportError(f"{NAME} refused the message ({status}{_field(answer)}).", permanent=True)
    raise UncertainError(f"{NAME} answered {status}.")


def _refused(status: int) -> CredentialsError:
    # Ours to mend, not the message's fault: it waits until the key, or the sender's identity, is right.
    return CredentialsError(
        f"{NAME} does not accept the key in SENDGRID_API_KEY ({status})."
        if status == 401
        else f"{NAME} does not let this key send from this sender ({status}): verify the sender there."
    )


def _field(answer: urllib3.BaseHTTPResponse) -> str:
    """Which field it does not like; its sentence may repeat an address, so it is left out."""
    try:
        field = answer.json()["errors"][0].get("field")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return ""
    return f", {field}" if field else ""


def verify(key: SendGrid, timestamp: str | None, signature: str | None, body: bytes, now: datetime) -> None:
    """Raises `Unauthenticated` unless SendGrid signed this body within the last five minutes.

    ECDSA on P-256 with SHA-256 over timestamp and raw body, the signature in base64 (DER). The SDK's verifier
    decodes the body first and raises all kinds of things when the signature is no signature.
    """
    if not timestamp or not signature or not timestamp.isascii() or not timestamp.isdigit():
        raise Unauthenticated("This webhook is not signed.", slug="bad-signature")
    if len(timestamp) > 12 or abs(now.timestamp() - int(timestamp)) > STALE_SECONDS:
        raise Unauthenticated("This webhook is too old.", slug="stale-webhook")
    public = load_der_public_key(key.webhook_key)
    try:
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise InvalidSignature
        raw = base64.b64decode(signature, validate=True)
        public.verify(raw, timestamp.encode() + body, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise Unauthenticated("This webhook's signature is wrong.", slug="bad-signature") from error
