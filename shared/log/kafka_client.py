"""How we connect to Kafka: what every client needs, and nothing left behind by a failed start."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from shared.errors import Unavailable
from shared.log import Fenced, UnknownTopic
from shared.settings import KafkaSettings

T = TypeVar("T")

# A relay waits 10 s for the log before its own lock is freed: every request has to give up earlier.
REQUEST_MS = 5_000


class _Connections(KafkaConnectionManager):  # type: ignore[misc] # the library carries no types
    """Remembers why the first attempt failed: the library only logs that, and goes on until time is up."""

    failure: Exception | None = None

    async def _connect(self, node: Any, conn: Any, *given: Any, **options: Any) -> None:
        await super()._connect(node, conn, *given, **options)
        if self.failure is None and conn.init_future.is_done and conn.init_future.failed():
            self.failure = conn.init_future.exception

    def why(self) -> Exception | None:
        failure = self.failure
        hung_up = isinstance(failure, KafkaConnectionError) and "socket disconnected" in str(failure)
        if hung_up and self.config["sasl_mechanism"]:
            # The broker says what is wrong and hangs up; of both together the library sees only the end.
            why: Exception = SaslAuthenticationFailedError("It hung up. Does it know this user and password?")
            return why
        return self.failure


def connect(make: Callable[..., T], settings: KafkaSettings, **options: Any) -> T:
    """A client of kafka-python, connected. Raises `Unavailable` when the brokers do not let us in in time."""
    made: list[tuple[KafkaNetClient, _Connections]] = []

    def network(**configuration: Any) -> KafkaNetClient:
        selector = NetworkSelector(**configuration)
        connections = _Connections(selector, **configuration)
        made.append((KafkaNetClient(selector, connections, **configuration), connections))
        return made[-1][0]

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
    except BaseException as error:
        # A constructor that raises leaves its network thread running; there would be one more at each try.
        for client, _ in made:
            client.close()
        why = next((found for _, connections in made if (found := connections.why())), None)
        if why is None or not isinstance(error, Exception):
            raise
        raise unavailable(settings, why) from error


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
