"""What SendGrid's v3 API takes, and what we never want to tell it; its events, signed."""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.providers.server import Reply, Request

ADDRESS = re.compile(r"[^@\s<>,;]+@[^@\s<>,;]+\.[^@\s<>,;]+")
_FIELDS = frozenset(
    "personalizations from reply_to reply_to_list subject content attachments template_id headers categories"
    " custom_args send_at batch_id asm ip_pool_name mail_settings tracking_settings".split()
)
_RESERVED = frozenset(
    "x-sg-id x-sg-eid received dkim-signature content-type content-transfer-encoding to from subject reply-to"
    " cc bcc".split()
)
MAX_BYTES = 30 * 2**20


class Wrong(Exception):
    """A request that is refused: the field, and why."""


class SendGrid:
    """Takes mails and remembers them; answers what a key may do."""

    def __init__(self, key: str = "SG.stand-in.key") -> None:
        self.key = key
        self.scopes = ["mail.send", "sender_verification_eligible"]
        self.verified: set[str] | None = None
        self.mails: list[dict[str, Any]] = []
        self._private = ec.generate_private_key(ec.SECP256R1())

    @property
    def webhook_key(self) -> str:
        """The verification key as SendGrid shows it: base64 of DER."""
        der = self._private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return base64.b64encode(der).decode()

    def handle(self, request: Request) -> Reply:
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return _errors(401, "The provided authorization grant is invalid, expired, or revoked", None)
        if (request.method, request.path) == ("GET", "/v3/scopes"):
            return Reply(
                200, json.dumps({"scopes": self.scopes}).encode(), {"Content-Type": "application/json"}
            )
        if (request.method, request.path) != ("POST", "/v3/mail/send"):
            return _errors(404, "not found", None)
        if request.headers.get("content-type") != "application/json":
            return _errors(415, "Content-Type should be application/json.", None)
        if len(request.body) > MAX_BYTES:
            return _errors(413, "too large", None)
        if "mail.send" not in self.scopes:
            return _errors(403, "access forbidden", None)
        try:
            mail = json.loads(request.body)
            check(mail)
        except ValueError:
            return _errors(400, "Bad Request", None)
        except Wrong as error:
            return _errors(400, str(error.args[1]), error.args[0])
        if self.verified is not None and mail["from"]["email"] not in self.verified:
            return _errors(403, "The from address does not match a verified Sender Identity.", "from")
        id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.mails.append({**mail, "id": id})
        return Reply(202, b"", {"X-Message-Id": id})

    def delivery_ids(self) -> list[str]:
        """The deliveries of all mails taken, in order, each as often as it was taken."""
        return [mail["custom_args"]["delivery_id"] for mail in self.mails]

    def event(self, delivery_id: str, event: str, **more: Any) -> dict[str, Any]:
        """One event as SendGrid tells it."""
        return {
            "email": "somebody@example.com",
            "timestamp": int(time.time()),
            "event": event,
            "sg_event_id": base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="),
            "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
            "delivery_id": delivery_id,
            **more,
        }

    def signed(self, events: Sequence[Any] | bytes, at: float) -> tuple[bytes, dict[str, str]]:
        """The raw body of a batch and its headers, signed at `at` (epoch seconds)."""
        raw = events if isinstance(events, bytes) else json.dumps(list(events)).encode()
        stamp = str(int(at))
        signature = self._private.sign(stamp.encode() + raw, ec.ECDSA(hashes.SHA256()))
        return raw, {
            "Content-Type": "application/json",
            "X-Twilio-Email-Event-Webhook-Timestamp": stamp,
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
        }


def check(mail: Any) -> None:
    """Raises `Wrong` unless SendGrid would take it and it tells nothing that it should not."""
    _need(isinstance(mail, dict), "", "a mail is an object")
    _need(not set(mail) - _FIELDS, "", f"unknown fields {sorted(set(mail) - _FIELDS)}")
    people = mail.get("personalizations")
    _need(isinstance(people, list) and 1 <= len(people) <= 1000, "personalizations", "1 to 1000")
    seen: list[str] = []
    for place, one in enumerate(people):
        _need(bool(one.get("to")), f"personalizations.{place}.to", "is required")
        for group in ("to", "cc", "bcc"):
            for person in one.get(group, []):
                _address(person, f"personalizations.{place}.{group}")
                seen.append(person["email"].casefold())
        _need(bool(one.get("subject") or mail.get("subject")), "subject", "is required")
        _args(one.get("custom_args", {}), seen)
    _need(len(seen) <= 1000 and len(seen) == len(set(seen)), "personalizations", "each address once")
    _address(mail.get("from"), "from")
    if "reply_to" in mail:
        _address(mail["reply_to"], "reply_to")
    contents = mail.get("content")
    _need(isinstance(contents, list) and bool(contents), "content", "is required")
    for content in contents:
        _need(isinstance(content.get("value"), str) and bool(content["value"]), "content", "has a value")
    types = [content.get("type") for content in contents]
    _need(types in (["text/plain"], ["text/html"], ["text/plain", "text/html"]), "content", "in this order")
    for name, value in mail.get("headers", {}).items():
        _need(name.casefold() not in _RESERVED, f"headers.{name}", "is reserved")
        _need(isinstance(value, str) and value.isascii() and "\n" not in value, f"headers.{name}", "is ASCII")
    _args(mail.get("custom_args", {}), seen)
    _need(not mail.get("categories"), "categories", "may not be erased there")
    tracking = mail.get("tracking_settings", {})
    for name in ("click_tracking", "open_tracking", "subscription_tracking"):
        _need(tracking.get(name, {}).get("enable") is False, f"tracking_settings.{name}", "is to be off")


def _args(given: Any, addresses: Sequence[str]) -> None:
    _need(isinstance(given, dict) and len(json.dumps(given)) < 10_000, "custom_args", "below 10,000 bytes")
    _need(all(isinstance(value, str) for value in given.values()), "custom_args", "are strings")
    text = json.dumps(given).casefold()
    _need(not any(address in text for address in addresses), "custom_args", "names a person")
    _need(set(given) <= {"delivery_id"}, "custom_args", "only the delivery")


def _address(given: Any, field: str) -> None:
    ok = (
        isinstance(given, dict) and isinstance(given.get("email"), str) and not set(given) - {"email", "name"}
    )
    _need(ok and ADDRESS.fullmatch(given["email"]) is not None, f"{field}.email", "is no address")


def _need(fine: bool, field: str, why: str) -> None:
    if not fine:
        raise Wrong(field, why)


def _errors(status: int, message: str, field: str | None) -> Reply:
    body = {"errors": [{"message": message, "field": field, "help": None}]}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"})
