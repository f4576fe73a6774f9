"""How Kafka is reached; read by `shared.settings`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from environs import Env, EnvError
from marshmallow.validate import OneOf, Range, Regexp

_SECURITY = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """How the brokers are reached, and what our part of the cluster is called.

    `bootstrap` is `HOST:PORT`, several separated by commas. `ca`, `certificate` and `key` are PEM texts.
    `prefix` stands in front of the names of topics and groups. A consumer that takes longer than
    `poll_seconds` over a batch loses its partitions to the others of its group.
    """

    bootstrap: str
    security: str = "plaintext"
    ca: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)
    mechanism: str = "SCRAM-SHA-512"
    user: str = ""
    password: str = field(default="", repr=False)
    prefix: str = ""
    poll_seconds: int = 60


def kafka_settings(env: Env) -> KafkaSettings | None:
    """The brokers' settings; None when no broker is named. Raises `EnvError` naming the wrong variable."""
    bootstrap = env.str("HEARBACK_KAFKA_BOOTSTRAP", "").replace(" ", "")
    if not bootstrap:
        return None
    for address in bootstrap.split(","):
        if not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[^:/\s]+):\d{1,5}", address):
            raise EnvError(
                f"HEARBACK_KAFKA_BOOTSTRAP names {address!r}, which is no HOST:PORT such as kafka-1:9092."
            )
    found = KafkaSettings(
        bootstrap=bootstrap,
        security=env.str("HEARBACK_KAFKA_SECURITY", "plaintext", validate=OneOf(_SECURITY)),
        ca=env.str("HEARBACK_KAFKA_CA", ""),
        certificate=env.str("HEARBACK_KAFKA_CERTIFICATE", ""),
        key=env.str("HEARBACK_KAFKA_KEY", ""),
        mechanism=env.str("HEARBACK_KAFKA_SASL_MECHANISM", "SCRAM-SHA-512", validate=OneOf(_MECHANISMS)),
        user=env.str("HEARBACK_KAFKA_USER", ""),
        password=env.str("HEARBACK_KAFKA_PASSWORD", ""),
        prefix=env.str("HEARBACK_KAFKA_PREFIX", "", validate=Regexp(r"[A-Za-z0-9._-]{0,100}\Z")),
        poll_seconds=env.int("HEARBACK_KAFKA_POLL_SECONDS", 60, validate=Range(5, 3600)),
    )
    if found.security.startswith("sasl") and not (found.user and found.password):
        raise EnvError(
            f"HEARBACK_KAFKA_SECURITY is {found.security}, which needs HEARBACK_KAFKA_USER and "
            "HEARBACK_KAFKA_PASSWORD."
        )
    if bool(found.certificate) != bool(found.key):
        raise EnvError(
            "HEARBACK_KAFKA_CERTIFICATE and HEARBACK_KAFKA_KEY belong together, and only one of them is set."
        )
    return found
