"""HTTP to providers: kept connections, one deadline for a whole call, and whether a request had begun."""

from __future__ import annotations

import email.utils
import http.client
import io
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from shared.channels import TIMEOUT_SECONDS, TransportError, UncertainError

CONNECT_SECONDS = 4.0
# Servers and what stands before them close what was idle for about a minute. A kept connection is older than
# that only for them: a request into one that is just being closed would be uncertain for nothing.
IDLE_SECONDS = 25.0
MAX_ANSWER = 65_536
UNREACHABLE_SECONDS = 5
_LONGEST_WAIT = 3600


# The most telling first: urllib3 wraps one error in another.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "its certificate is not trusted"),
    (ssl.SSLError, "no secure connection came about"),
    (socket.gaierror, "its name is not known"),
    (ConnectionRefusedError, "the connection was refused"),
    (TimeoutError, "no connection within seconds"),
)


Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider answered; `body` is empty when it broke off after the headers."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """What the body says; None when it is no JSON, however wrong it is."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class _Call(threading.local):
    """The call this thread is at: until when it has to be over, and whether its request began to leave."""

    deadline = float("inf")
    begun = False


class OfThread(threading.local):
    """What each thread keeps to itself, for one key. What came over a fork belongs to the other process."""

    key: object = None
    kept: Any = None

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What this thread has for `key`, made when it has nothing or something for another key."""
        if self.key != (os.getpid(), key):
            self.kept, self.key = make(), (os.getpid(), key)
        kept: Kept = self.kept
        return kept


_call = _Call()
_making = threading.Lock()


def call(
    provider: str,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    extra_ca: str = "",
) -> Answer:
    """One request, never repeated, within `TIMEOUT_SECONDS` whatever the provider does.

    Raises `TransportError` when it certainly did not leave (no connection, no trust), and
    `UncertainError` when it began to leave and no answer came.
    """
    _call.deadline, _call.begun = time.monotonic() + TIMEOUT_SECONDS, False
    try:
        answer = _pool(os.getpid(), extra_ca).request(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=TIMEOUT_SECONDS),
            retries=False,
            redirect=False,
            preload_content=False,
        )
    except Exception as error:
        if _call.begun:
            raise UncertainError(f"{provider} did not answer ({type(error).__name__}).") from error
        raise TransportError(
            f"{provider} cannot be reached: {reason(error)}.",
            permanent=False,
            retry_after=UNREACHABLE_SECONDS,
        ) from error
    return Answer(answer.status, answer.headers, _body(answer))


def _body(answer: urllib3.BaseHTTPResponse) -> bytes:
    """The answer's body; the connection is kept when there is no more of it."""
    try:
        body: bytes = answer.read(MAX_ANSWER)
        if not answer.read(1):
            answer.release_conn()
            return body
    except (urllib3.exceptions.HTTPError, OSError):
        body = b""
    answer.close()
    return body


def reason(error: BaseException | None) -> str:
    """Why there was no connection, in a few words without names of people or hosts."""
    chain: list[object] = []
    while error is not None:
        chain += [error, *error.args]
        error = error.__cause__ or error.__context__
    for kind, said in _REASONS:
        found = next((one for one in chain if isinstance(one, kind)), None)
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"{said} ({found.verify_message}; see HEARBACK_EXTRA_CA)"
        if found is not None:
            return said
    return "no connection"


def retry_after(headers: Mapping[str, str], now: float) -> int | None:
    """After how many seconds (1 to 3600) a refused call may be made again, or None when nobody says.

    `Retry-After` has seconds or a date (RFC 9110), `X-RateLimit-Reset` an instant in epoch seconds
    (SendGrid). `now` is epoch seconds.
    """
    said, reset = headers.get("Retry-After", "").strip(), headers.get("X-RateLimit-Reset", "").strip()
    seconds: float | None = None
    if _is_number(said):
        seconds = int(said)
    elif said:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - now
        except ValueError:
            seconds = None
    if seconds is None and _is_number(reset):
        seconds = int(reset) - now
    return None if seconds is None else int(min(max(1, -(-seconds // 1)), _LONGEST_WAIT))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 12


def tls_context(extra_ca: str) -> ssl.SSLContext:
    """How providers are checked: the system's certificates, and `extra_ca` (PEM) besides."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if extra_ca:
        context.load_verify_locations(cadata=extra_ca)
    return context


def _pool(process: int, extra_ca: str) -> urllib3.PoolManager:
    with _making:  # threads that begin together shall not make one each
        return _make_pool(process, extra_ca)


@lru_cache(maxsize=4)
def _make_pool(process: int, extra_ca: str) -> urllib3.PoolManager:
    # By process: connections made before a fork must not be used by two. Loading certificates takes 20 ms.
    pool = urllib3.PoolManager(num_pools=8, maxsize=64, ssl_context=tls_context(extra_ca))
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool


class _InTime(io.RawIOBase):
    """Reads from a socket until the call's deadline, however slowly the bytes come."""

    def __init__(self, raw: Any, sock: socket.socket) -> None:
        self._raw, self._sock, self._deadline = raw, sock, _call.deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the call took too long")
        self._sock.settimeout(left)
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_InTime(self.fp.detach(), sock))


class _Counted:
    """What both kinds of connection have on top: see `_Call`."""

    used_at = float("-inf")
    _written: list[bytes] | None = None

    @property
    def is_connected(self) -> bool:
        # urllib3 asks this before it uses a kept connection, and its own answer sees one that was closed:
        # a socket that can be read although nothing was asked.
        idle = time.monotonic() - self.used_at > IDLE_SECONDS
        return not idle and bool(super().is_connected)  # type: ignore[misc]

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.is_closed:  # type: ignore[attr-defined]
            self.connect()  # type: ignore[attr-defined]
        if time.monotonic() >= _call.deadline:
            raise TimeoutError("no time left to write the request")
        self._written = []
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
            whole = b"".join(self._written)
        finally:
            self._written = None
        _call.begun = True
        self.send(whole)

    def send(self, data: Any) -> None:
        # Head and body leave together: two writes, and two reads there, would take longer.
        if self._written is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._written.append(bytes(data))

    def getresponse(self) -> Any:
        found = super().getresponse()  # type: ignore[misc]
        self.used_at = time.monotonic()
        return found


class _HttpConnection(_Counted, HTTPConnection):
    response_class = _Response


class _HttpsConnection(_Counted, HTTPSConnection):
    response_class = _Response


class _HttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection
