"""How we connect to Kafka: what every client needs, and nothing left behind by a failed start."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kafka.net.compat import KafkaNetClient

from shared.errors import Unavailable
from shared.log import Fenced, UnknownTopic
from shared.settings import KafkaSettings

T = TypeVar("T")

# A relay waits 10 s for the log before its own lock is freed: every request has to give up earlier.
REQUEST_MS = 5_000


def connect(make: Callable[..., T], settings: KafkaSettings, **options: Any) -> T:
    """A client of kafka-python, connected. Raises what it raises when the brokers do not answer in time."""
    made: list[KafkaNetClient] = []

    def network(**configuration: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**configuration))
        return made[-1]

    try:
        return make(
            bootstrap_servers=settings.bootstrap.split(","),
            kafka_client=network,
            bootstrap_timeout_ms=REQUEST_MS,
            request_timeout_ms=REQUEST_MS,
            reconnect_backoff_max_ms=1_000,
            **_security(settings),
            **options,
        )
    except BaseException:
        # A constructor that raises leaves its network thread running; there would be one more at each try.
        for one in made:
            one.close()
        raise


@contextlib.contextmanager
def answering(settings: KafkaSettings) -> Iterator[None]:
    """Makes every error of the block a transient one: whatever a broker says now may be mended later."""
    try:
        yield
    except (Unavailable, Fenced, UnknownTopic):
        raise
    except Exception as error:
        # Not only KafkaError: a connection that breaks at the wrong moment raises all kinds of things.
        raise unavailable(settings, error) from error


def unavailable(settings: KafkaSettings, error: BaseException) -> Unavailable:
    """The error for people: which brokers, and what they said."""
    said = f": {error}" if str(error) else ""
    return Unavailable(f"Kafka at {settings.bootstrap} does not answer ({type(error).__name__}{said}).")


def _security(settings: KafkaSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"security_protocol": settings.security.upper()}
    if settings.security.endswith("ssl"):
        options["ssl_context"] = _context(settings)
    if settings.security.startswith("sasl"):
        options |= {
            "sasl_mechanism": settings.mechanism,
            "sasl_plain_username": settings.user,
            "sasl_plain_password": settings.password,
        }
    return options


def _context(settings: KafkaSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=settings.ca or None)
    if settings.certificate:
        # OpenSSL reads these from a file only; this one is ours alone, and gone in a moment.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(f"{settings.certificate}\n{settings.key}\n")
            file.flush()
            context.load_cert_chain(file.name)
    return context
