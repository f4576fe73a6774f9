"""The only reader of the environment: every setting, from a variable, a `…_FILE`, or the data folder."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from environs import Env, EnvError
from marshmallow.validate import OneOf, Range

from shared import provider_settings
from shared.errors import HearbackError
from shared.kafka_settings import KafkaSettings as KafkaSettings
from shared.kafka_settings import kafka_settings
from shared.provider_settings import PREFIXES, SendGrid, Smtp, Twilio

SERVICES = ("survey", "followup", "reporting")
DATABASES = (*SERVICES, "log")
LOGS = ("embedded", "kafka")

# What the launcher notes in the data folder for the processes it starts.
SECRET_FILE = "secret"
POSTGRES_FILE = "postgres.json"


class BadSettings(HearbackError):
    """A setting is missing or wrong; the message names it and says what it should be."""

    slug = "bad-settings"


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator can choose. Made by `load`; tests make their own.

    `public_url` has no trailing slash. `database_urls` has the keys `survey`, `followup`,
    `reporting`, `log`, those that are known; `admin_database_url` is for making these databases. `secret`
    is at least 32 characters. `trusted_proxies` is how many reverse proxies stand in front of us and set
    X-Forwarded-…; with 0 those headers are not believed. `log` is None when nobody chose one: then it is
    the one in use (`shared.log.in_use`), at the beginning the embedded one. What a provider needs is None
    unless it is chosen. `extra_ca` are certificates (PEM) trusted besides the system's. `health_port` is
    where probes are answered; 0: nowhere.
    """

    home: Path
    secret: str = field(repr=False)
    previous_secret: str | None = field(default=None, repr=False)
    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = "http://127.0.0.1:8080"
    survey_url: str = "http://127.0.0.1:8080"
    followup_url: str = "http://127.0.0.1:8080"
    health_port: int = 0
    log: Literal["embedded", "kafka"] | None = None
    kafka: KafkaSettings | None = None
    mail: Literal["mailbox", "sendgrid", "smtp"] = "mailbox"
    sms: Literal["mailbox", "twilio"] = "mailbox"
    sendgrid: SendGrid | None = None
    twilio: Twilio | None = None
    smtp: Smtp | None = None
    extra_ca: str = field(default="", repr=False)
    mailbox_url: str = "http://127.0.0.1:8080"
    trusted_proxies: int = 0
    admin_database_url: str = field(default="", repr=False)
    database_urls: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def uses_mailbox(self) -> bool:
        """Whether the local stand-in is the provider of any channel.

        A process that hands nothing over need not know the providers, but whether there is a mailbox.
        """
        return bool(self.mailbox_url) and "mailbox" in (self.mail, self.sms)

    @property
    def local_url(self) -> str:
        """Where this machine reaches its own web process; no trailing slash."""
        return f"http://{reachable(self.host)}:{self.port}"

    def key(self, purpose: str) -> bytes:
        """The key for one purpose ("session", "csrf", "permits", …): 32 bytes from the secret."""
        return _derive(self.secret, purpose)

    def keys(self, purpose: str) -> list[bytes]:
        """All keys to accept for a purpose, oldest first: the previous secret's (in a rotation), `key`."""
        secrets = [self.previous_secret] if self.previous_secret else []
        return [_derive(secret, purpose) for secret in (*secrets, self.secret)]


def _mailbox(said: str, here: str) -> str:
    """Where the mailbox is: here, unless it is said; "" when it is said that there is none."""
    return "" if said == "none" else (said or here).rstrip("/")


def _derive(secret: str, purpose: str) -> bytes:
    return hmac.new(secret.encode(), b"hearback:" + purpose.encode(), hashlib.sha256).digest()


def home_folder(environ: Mapping[str, str] | None = None) -> Path:
    """The data folder, absolute: `HEARBACK_HOME`, else `var` in the folder we are in."""
    environ = os.environ if environ is None else environ
    return Path(environ.get("HEARBACK_HOME") or "var").expanduser().resolve()


class _Urls(dict[str, str]):
    """The known databases' addresses; asked for another one, it names the setting that is missing."""

    def __init__(self, home: Path, known: Mapping[str, str]) -> None:
        super().__init__(known)
        self.home = home

    def __missing__(self, name: str) -> str:
        if name not in DATABASES:
            raise KeyError(name)
        raise BadSettings(
            f"HEARBACK_{name.upper()}_DATABASE_URL is not set and there is no embedded "
            f"database in {self.home} yet: run `hearback up` once, or set it."
        )


def load(
    environ: Mapping[str, str] | None = None,
    *,
    first_start: bool = False,
    databases: Sequence[str] = DATABASES,
) -> Settings:
    """Reads all settings.

    Raises `BadSettings` naming the variable that is wrong, or that is missing while the data folder
    does not know it either; before the `first_start`, which fills the folder, nothing counts as missing.
    Of the databases only the named ones have to be known: a service's process has a login to its own.
    """
    environ = os.environ if environ is None else environ
    env = Env(eager=True)
    home = home_folder(environ)
    values = _with_files(environ)
    try:
        with _only(values):
            port = env.int("HEARBACK_PORT", 8080, validate=Range(1, 65535))
            host = env.str("HEARBACK_HOST", "127.0.0.1")
            here = f"http://{reachable(host)}:{port}"
            secret = env.str("HEARBACK_SECRET", "") or _read(home / SECRET_FILE)
            if not secret and not first_start:
                raise BadSettings(
                    f"HEARBACK_SECRET is not set and {home / SECRET_FILE} is not there yet: "
                    "run `hearback up` once."
                )
            if secret and len(secret) < 32:
                raise BadSettings("HEARBACK_SECRET is too short: give it at least 32 characters.")
            embedded = _embedded_urls(home)
            found = {
                name: env.str(f"HEARBACK_{name.upper()}_DATABASE_URL", "") or embedded.get(name, "")
                for name in DATABASES
            }
            urls = _Urls(home, {name: url for name, url in found.items() if url})
            if not first_start:
                for name in databases:
                    urls[name]
            log = env.str("HEARBACK_LOG", "", validate=OneOf(["", *LOGS])) or None
            kafka = kafka_settings(env)
            if log == "kafka" and kafka is None:
                raise BadSettings(
                    "HEARBACK_LOG is kafka, and HEARBACK_KAFKA_BOOTSTRAP is not set: give it the brokers' "
                    "addresses, such as kafka-1:9092,kafka-2:9092."
                )
            mail = env.str("HEARBACK_MAIL", "mailbox", validate=OneOf(["mailbox", "sendgrid", "smtp"]))
            sms = env.str("HEARBACK_SMS", "mailbox", validate=OneOf(["mailbox", "twilio"]))
            return Settings(
                home=home,
                secret=secret,
                previous_secret=env.str("HEARBACK_PREVIOUS_SECRET", "") or None,
                host=host,
                port=port,
                public_url=(env.str("HEARBACK_PUBLIC_URL", "") or here).rstrip("/"),
                survey_url=(env.str("HEARBACK_SURVEY_URL", "") or here).rstrip("/"),
                followup_url=(env.str("HEARBACK_FOLLOWUP_URL", "") or here).rstrip("/"),
                health_port=env.int("HEARBACK_HEALTH_PORT", 0, validate=Range(0, 65535)),
                log=log,  # type: ignore[arg-type] # OneOf has checked it
                kafka=kafka,
                mailbox_url=_mailbox(env.str("HEARBACK_MAILBOX_URL", ""), here),
                mail=mail,  # type: ignore[arg-type] # as above
                sms=sms,  # type: ignore[arg-type]
                sendgrid=provider_settings.sendgrid(env) if mail == "sendgrid" else None,
                twilio=provider_settings.twilio(env) if sms == "twilio" else None,
                smtp=provider_settings.smtp(env) if mail == "smtp" else None,
                extra_ca=_certificates(env.str("HEARBACK_EXTRA_CA", "")),
                trusted_proxies=env.int("HEARBACK_TRUSTED_PROXIES", 0, validate=Range(0, 5)),
                admin_database_url=env.str("HEARBACK_ADMIN_DATABASE_URL", ""),
                database_urls=urls,
            )
    except EnvError as error:
        raise BadSettings(f"A setting is wrong. {error}") from error


def reachable(host: str) -> str:
    """How we reach ourselves when we listen on `host`, as it stands in a URL."""
    if host in ("0.0.0.0", "", "::"):  # noqa: S104 (every address, so the loopback too)
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


class _only:
    """Lets environs, which reads `os.environ`, see exactly the given variables for a moment."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values

    def __enter__(self) -> None:
        self.before = dict(os.environ)
        os.environ.clear()
        os.environ.update(self.values)

    def __exit__(self, *_: object) -> None:
        os.environ.clear()
        os.environ.update(self.before)


def _with_files(environ: Mapping[str, str]) -> dict[str, str]:
    values = dict(environ)
    for name, path in environ.items():
        if name.startswith(PREFIXES) and name.endswith("_FILE") and path:
            text = _read(Path(path))
            if not text:
                raise BadSettings(f"{name} names {path}, which is empty or cannot be read.")
            values.setdefault(name.removesuffix("_FILE"), text)
    return values


def _certificates(pem: str) -> str:
    if pem:
        try:
            ssl.create_default_context(cadata=pem)
        except (ssl.SSLError, ValueError) as error:
            raise EnvError(
                "HEARBACK_EXTRA_CA is no certificate in PEM; HEARBACK_EXTRA_CA_FILE names a file."
            ) from error
    return pem


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _embedded_urls(home: Path) -> dict[str, str]:
    text = _read(home / POSTGRES_FILE)
    if not text:
        return {}
    known = json.loads(text)
    passwords = {name: quote(known["passwords"][name], safe="") for name in DATABASES}
    return {
        name: f"postgresql://{name}:{password}@127.0.0.1:{known['port']}/{name}"
        for name, password in passwords.items()
    }
