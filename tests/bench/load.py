"""The load: prebuilt requests over kept-alive connections, by a process of its own that does little else.

Closed loop: every connection sends its next request when the reply to the last one is there. With a `rate`
it is an open loop: each request is due at its time, however slow the replies are, and what it waited for a
free connection counts.
"""

from __future__ import annotations

import gc
import pickle
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send, and how. `seconds` ends it early; `rate` is in requests per second, None: closed loop."""

    port: int
    requests: Sequence[bytes]
    connections: int
    seconds: float
    rate: float | None = None


@dataclass(slots=True)
class Load:
    """What came of it. `acknowledged` are the places of the requests that got a 200.

    `due` (epoch seconds) and `took` (seconds from then to the whole reply) belong to them one by one.
    """

    sent: int = 0
    seconds: float = 0.0
    acknowledged: list[int] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Acknowledged requests per second."""
        return len(self.acknowledged) / self.seconds


class Running:
    """A load under way."""

    def __init__(self, plan: Plan) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        pickle.dump(plan, self._process.stdin)
        self._process.stdin.close()

    def wait(self) -> Load:
        """What came of it, at its end. Raises `AssertionError` when a request was not answered with 200."""
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        assert self._process.wait() == 0
        found: Load = pickle.loads(said)
        assert not found.failures, f"not all requests were answered with 200: {dict(found.failures)}"
        return found


def run(
    port: int, requests: Sequence[bytes], connections: int, seconds: float, rate: float | None = None
) -> Load:
    """Sends `requests` for at most `seconds`; see `Running.wait`."""
    return Running(Plan(port, requests, connections, seconds, rate)).wait()


def post(path: str, form: str, accept: str = "application/json") -> bytes:
    """A form as a script sends it."""
    body = form.encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/x-www-form-urlencoded;charset=UTF-8\r\n\r\n"
    ).encode() + body


def get(path: str, accept: str = "text/html") -> bytes:
    """A page as a browser asks for it."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n\r\n".encode()


class _Connection:
    """One connection and the request it waits for."""

    __slots__ = ("buffer", "due", "place", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.place = -1
        self.due = 0.0

    def send(self, request: bytes, place: int, due: float) -> None:
        self.place, self.due = place, due
        self.socket.sendall(request)

    def receive(self) -> str | None:
        """The status once the whole reply is there; None before. "closed" when it never will be."""
        data = self.socket.recv(262_144)
        if not data:
            return "closed"
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = _length(self.buffer[:head])
        if len(self.buffer) < head + 4 + length:
            return None
        status = self.buffer[9:12].decode()
        self.buffer = b""
        return status


def _length(head: bytes) -> int:
    place = head.lower().index(b"content-length:") + 15
    end = head.find(b"\r", place)
    return int(head[place : end if end >= 0 else len(head)])


def _drive(plan: Plan) -> Load:
    found = Load()
    selector = selectors.DefaultSelector()
    idle: deque[_Connection] = deque()
    for _ in range(plan.connections):
        connection = _Connection(plan.port)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        idle.append(connection)
    clock = time.perf_counter
    offset = time.time() - clock()
    began = clock()
    until = began + plan.seconds
    busy = 0

    def due(place: int, now: float) -> float:
        return began + place / plan.rate if plan.rate else now

    while True:
        now = clock()
        while idle and found.sent < len(plan.requests) and now < until:
            at = due(found.sent, now)
            if at > now:
                break
            connection = idle.popleft()
            connection.send(plan.requests[found.sent], found.sent, at)
            found.sent += 1
            busy += 1
            now = clock()
        over = found.sent >= len(plan.requests) or now >= until
        if over and not busy:
            break
        wait = 30.0 if over or not idle else max(0.0, min(due(found.sent, now), until) - now)
        for key, _ in selector.select(wait):
            connection = key.data
            status = connection.receive()
            if status is None:
                continue
            busy -= 1
            if status == "200":
                found.acknowledged.append(connection.place)
                found.due.append(connection.due + offset)
                found.took.append(clock() - connection.due)
            else:
                found.failures[status] += 1
            if status == "closed":
                selector.unregister(connection.socket)
                connection.socket.close()
                connection = _Connection(plan.port)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            idle.append(connection)
    found.seconds = clock() - began
    return found


if __name__ == "__main__":
    gc.disable()
    # Under its own name, so that whoever asked can read the reply.
    from tests.bench import load

    plan: Plan = pickle.load(sys.stdin.buffer)
    done = load._drive(plan)
    pickle.dump(done, sys.stdout.buffer)
