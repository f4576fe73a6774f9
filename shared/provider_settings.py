"""What the providers of mail and SMS need to be known by; read by `shared.settings`, for those chosen."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from environs import Env, EnvError
from marshmallow.validate import OneOf, Range

# The providers' own names; whoever looks at the environment's settings looks at these too.
PREFIXES = ("HEARBACK_", "SENDGRID_", "TWILIO_", "SMTP_")
# How a P-256 public key begins in DER (RFC 5480): the algorithm, the curve, an uncompressed point.
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200") + b"\x04"
# An E.164 number, a short code, or an alphanumeric sender (up to 11 characters; nobody can answer it).
_SENDER = re.compile(r"\+[1-9]\d{6,14}|\d{3,8}|(?=.*[A-Za-z])[A-Za-z0-9 ]{1,11}")
SENDGRID_URL, TWILIO_URL = "https://api.sendgrid.com", "https://api.twilio.com"
_SMTP_PORTS = {"starttls": 587, "tls": 465, "none": 25}


@dataclass(frozen=True, slots=True)
class SendGrid:
    """`webhook_key` is the event webhook's public key (DER); `url` has no trailing slash."""

    api_key: str = field(repr=False)
    webhook_key: bytes = field(repr=False)
    url: str = SENDGRID_URL


@dataclass(frozen=True, slots=True)
class Twilio:
    """Exactly one of `sender` and `service_sid` is set; `auth_token` also signs the webhooks.

    With `key_sid` and `key_secret` calls are made with that API key instead of the token.
    """

    account_sid: str
    auth_token: str = field(repr=False)
    sender: str = ""
    service_sid: str = ""
    key_sid: str = ""
    key_secret: str = field(default="", repr=False)
    url: str = TWILIO_URL


@dataclass(frozen=True, slots=True)
class Smtp:
    """A mail server; `tls` is 'starttls', 'tls' (from the first byte) or 'none'."""

    host: str
    port: int
    user: str = ""
    password: str = field(default="", repr=False)
    tls: str = "starttls"


def sendgrid(env: Env) -> SendGrid:
    """Raises `EnvError` naming the variable that is missing or wrong; so do the others."""
    return SendGrid(
        _word(env, "SENDGRID_API_KEY", "HEARBACK_MAIL=sendgrid"),
        _public_key(
            _needed(env, "SENDGRID_WEBHOOK_PUBLIC_KEY", "HEARBACK_MAIL=sendgrid"),
            "SENDGRID_WEBHOOK_PUBLIC_KEY",
        ),
        _url(env, "SENDGRID_API_URL", SENDGRID_URL),
    )


def twilio(env: Env) -> Twilio:
    chosen = "HEARBACK_SMS=twilio"
    sender, service = env.str("TWILIO_FROM", "").strip(), env.str("TWILIO_MESSAGING_SERVICE_SID", "").strip()
    if bool(sender) == bool(service):
        raise EnvError(
            "TWILIO_FROM and TWILIO_MESSAGING_SERVICE_SID are both set: texts leave from one of them."
            if sender
            else f"TWILIO_FROM is not set, nor TWILIO_MESSAGING_SERVICE_SID, and {chosen} needs one of them."
        )
    if sender and not _SENDER.fullmatch(sender):
        raise EnvError("TWILIO_FROM is no sender: write a number like +14155550100.")
    if service and not service.startswith("MG"):
        raise EnvError("TWILIO_MESSAGING_SERVICE_SID is wrong: it begins with MG.")
    account = _word(env, "TWILIO_ACCOUNT_SID", chosen)
    if not account.startswith("AC"):
        raise EnvError("TWILIO_ACCOUNT_SID is wrong: it begins with AC.")
    key, secret = env.str("TWILIO_API_KEY", "").strip(), env.str("TWILIO_API_SECRET", "").strip()
    if bool(key) != bool(secret):
        missing = "TWILIO_API_SECRET" if key else "TWILIO_API_KEY"
        raise EnvError(f"{missing} is not set: an API key is both, its SID and its secret.")
    return Twilio(
        account,
        _word(env, "TWILIO_AUTH_TOKEN", chosen),
        sender,
        service,
        key,
        secret,
        _url(env, "TWILIO_API_URL", TWILIO_URL),
    )


def smtp(env: Env) -> Smtp:
    host = _word(env, "SMTP_HOST", "HEARBACK_MAIL=smtp")
    tls = env.str("SMTP_TLS", "starttls", validate=OneOf(list(_SMTP_PORTS)))
    port = env.int("SMTP_PORT", _SMTP_PORTS[tls], validate=Range(1, 65535))
    user, password = env.str("SMTP_USER", "").strip(), env.str("SMTP_PASSWORD", "")
    if bool(user) != bool(password):
        raise EnvError(f"{'SMTP_PASSWORD' if user else 'SMTP_USER'} is not set: a login is both.")
    if user and tls == "none" and host not in ("localhost", "127.0.0.1", "::1"):
        raise EnvError("SMTP_TLS is none, so SMTP_PASSWORD would be sent in the clear: use starttls or tls.")
    return Smtp(host, port, user, password, tls)


def _needed(env: Env, name: str, chosen: str) -> str:
    value: str = env.str(name, "").strip()
    if not value:
        raise EnvError(f"{name} is not set, and {chosen} needs it.")
    return value


def _word(env: Env, name: str, chosen: str) -> str:
    value = _needed(env, name, chosen)
    if not value.isascii() or not value.isprintable() or " " in value:
        raise EnvError(f"{name} is wrong: it has a space or a character that no such value has.")
    return value


def _url(env: Env, name: str, default: str) -> str:
    value: str = env.str(name, "").strip().rstrip("/") or default
    parts = urlsplit(value)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query:
        raise EnvError(f"{name} is no address: write it like {default}.")
    return value


def _public_key(text: str, name: str) -> bytes:
    """The key's DER, from base64 as SendGrid shows it, or from PEM."""
    lines = [line for line in text.split() if "-----" not in line and line not in ("PUBLIC", "BEGIN", "END")]
    try:
        der = base64.b64decode("".join(lines), validate=True)
    except (binascii.Error, ValueError):
        der = b""
    if len(der) != 91 or not der.startswith(_P256):
        raise EnvError(f"{name} is not the public key that SendGrid shows beside its signed event webhook.")
    return der
