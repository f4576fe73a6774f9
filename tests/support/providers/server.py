"""A small HTTP/1.1 server over TLS that can do everything a provider does wrong."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import trustme

Kind = Literal[
    "answer", "hang", "drip", "close", "reset", "accept-close", "accept-hang", "accept-answer", "garble"
]


@dataclass(frozen=True)
class Request:
    """One request; the names of headers are lower-case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What is answered."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with one hand-over.

    `answer` refuses with `reply`; `hang` and `drip` take nothing and say nothing, or a byte now and then;
    `close` and `reset` end the connection with nothing taken; the `accept-…` do so after having taken it;
    `garble` takes it and breaks off amid the status.
    """

    kind: Kind
    reply: Reply = Reply(503)


def refusal(status: int, **headers: str) -> Trouble:
    """Answers `status` and takes nothing; `retry_after="7"` is the header Retry-After."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return Trouble("answer", Reply(status, b'{"errors": [{"message": "made up"}]}', named))


class Server:
    """Serves `handle` on a loopback port with a certificate of an authority of its own (`ca`, PEM).

    One thread a connection; what `is_hand_over` goes wrong as it was told to.
    """

    def __init__(
        self, handle: Callable[[Request], Reply], is_hand_over: Callable[[Request], bool], port: int = 0
    ) -> None:
        self.handle, self.is_hand_over = handle, is_hand_over
        authority = trustme.CA()
        self.ca = authority.cert_pem.bytes().decode()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self._tls)
        self._socket = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self.connections = 0
        self.requests: deque[Request] = deque(maxlen=1000)
        self._troubles: deque[Trouble] = deque()
        self._always: Trouble | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def misbehave(self, *troubles: Trouble) -> None:
        """The next hand-overs go wrong like this, one each."""
        self._troubles.extend(troubles)

    @property
    def waiting(self) -> int:
        """How many of these have not happened yet."""
        return len(self._troubles)

    def always(self, trouble: Trouble | None) -> None:
        """Every hand-over goes wrong like this, or (None) none any more."""
        self._always = trouble

    def drop_connections(self) -> None:
        """Closes what is open, as a server does with connections that were idle for long."""
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.drop_connections()
        self._accepting.join(5)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                thread = threading.Thread(target=self._serve, args=(plain,), daemon=True)
                self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            plain.settimeout(30)
            tls = self._tls.wrap_socket(plain, server_side=True)
        except OSError:
            plain.close()
            return
        with self._lock:
            self._open.add(tls)
        try:
            with tls.makefile("rb") as file:
                while not self._over.is_set() and self._one(tls, file):
                    pass
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(tls)
            tls.close()

    def _one(self, tls: ssl.SSLSocket, file: Any) -> bool:
        request = _read(file)
        if request is None:
            return False
        self.requests.append(request)
        trouble = None
        if self.is_hand_over(request):
            trouble = self._always or (self._troubles.popleft() if self._troubles else None)
        if trouble is None:
            return _answer(tls, self.handle(request))
        if trouble.kind == "answer":
            return _answer(tls, trouble.reply)
        reply = (
            self.handle(request) if trouble.kind.startswith("accept") or trouble.kind == "garble" else None
        )
        if trouble.kind == "accept-answer":
            return _answer(tls, trouble.reply)
        if trouble.kind == "garble" and reply is not None:
            tls.sendall(_written(reply)[: len("HTTP/1.1 2")])
        if trouble.kind in ("hang", "accept-hang"):
            self._over.wait(30)
        if trouble.kind == "drip":
            for byte in b"HTTP/1.1 202 Accepted\r\nX-Slow: " + b"x" * 500:
                tls.sendall(bytes([byte]))
                if self._over.wait(0.05):
                    break
        if trouble.kind == "reset":
            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


def _read(file: Any) -> Request | None:
    first = file.readline(65_536)
    if not first.endswith(b"\r\n"):
        return None
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while (line := file.readline(65_536)) not in (b"\r\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    size = int(headers.get("content-length", "0"))
    body = file.read(size)
    if len(body) != size:
        return None
    parts = urlsplit(target)
    return Request(method, parts.path, dict(parse_qsl(parts.query)), headers, body)


def _written(reply: Reply) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} Said", f"Content-Length: {len(reply.body)}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + reply.body


def _answer(tls: ssl.SSLSocket, reply: Reply) -> bool:
    tls.sendall(_written(reply))
    return True
