"""One HTTP exchange with a provider: pooled, in time, and clear about what may have been taken."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from functools import lru_cache

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError
from urllib3.exceptions import SSLError as HandshakeError

from shared.channels import TIMEOUT_SECONDS, TransportError, UncertainError

# No wait that a provider asks for is believed beyond an hour.
_LONGEST_WAIT = 3600
# While the connection is being made nothing has been sent.
_NOT_SENT = (NewConnectionError, ConnectTimeoutError, HandshakeError)


def exchange(
    provider: str,
    method: str,
    url: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str],
    ca: str = "",
) -> urllib3.BaseHTTPResponse:
    """The provider's answer, whatever its status. `ca` is PEM, trusted besides the system's certificates.

    Raises `TransportError` when nothing was sent, `UncertainError` when nobody knows what became of it.
    """
    try:
        # A kept connection that the other side has closed is noticed before it is used again.
        return _pool(os.getpid(), ca).request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(total=TIMEOUT_SECONDS),
            retries=False,
            redirect=False,
        )
    except _NOT_SENT as error:
        raise unreachable(provider, error) from error
    except HTTPError as error:
        raise UncertainError(f"{provider} did not answer in time.") from error


def unreachable(provider: str, error: BaseException) -> TransportError:
    """Nobody was there to take it."""
    return TransportError(
        f"{provider} cannot be reached ({type(error).__name__}).", permanent=False, retry_after=5
    )


def retry_after(headers: Mapping[str, str]) -> int | None:
    """How many seconds the provider asks to wait: `Retry-After` (RFC 9110) or `X-RateLimit-Reset` (epoch)."""
    given = _number(headers.get("Retry-After"))
    if given is None and (reset := _number(headers.get("X-RateLimit-Reset"))) is not None:
        given = max(1, reset - int(time.time()))
    return None if given is None else min(given, _LONGEST_WAIT)


def context(ca: str) -> ssl.SSLContext:
    """The system's certificates and those of `ca` (PEM)."""
    made = ssl.create_default_context()
    if ca:
        made.load_verify_locations(cadata=ca)
    return made


@lru_cache(maxsize=4)
def _pool(process: int, ca: str) -> urllib3.PoolManager:
    # By process: connections made before a fork must not be used by two. The certificates are read once.
    return urllib3.PoolManager(num_pools=4, maxsize=8, ssl_context=context(ca))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else None
