"""A provider in the test's own process that takes messages in its own time, and notes when it took each."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.channels.sender import HANDS
from tests.support.history import Asked, Taken


@dataclass(frozen=True, slots=True)
class Pace:
    """How long (s) the provider thinks before it takes a message, and from then on until it says so."""

    before: float = 0.0
    after: float = 0.0


@dataclass(slots=True)
class Arrival:
    """One hand-over: when it was begun and, from then on, whether and when the provider took the message.

    Times are those of `time.monotonic` in the test's process, which reads the acknowledgements too.
    """

    message: dict[str, Any]
    begun_at: float
    taken_at: float | None = None

    @property
    def delivery_id(self) -> str:
        return str(self.message["delivery_id"])

    @property
    def to(self) -> str:
        return str(self.message["to"])


class SlowProvider:
    """Speaks the mailbox's API. `pace` says how slow it is with a message; `gate` holds all while closed."""

    def __init__(self) -> None:
        self.url = ""
        self.pace: Callable[[dict[str, Any]], Pace] = lambda message: Pace()
        self.begun: Callable[[Arrival], None] = lambda arrival: None
        self.gate = threading.Event()
        self.gate.set()
        self._lock = threading.Lock()
        self._arrivals: list[Arrival] = []

    @property
    def arrivals(self) -> list[Arrival]:
        """Every hand-over so far, in the order in which they began."""
        with self._lock:
            return list(self._arrivals)

    @property
    def taken(self) -> list[Arrival]:
        """The hand-overs whose message the provider has."""
        return [one for one in self.arrivals if one.taken_at is not None]

    def messages(self) -> list[Taken]:
        """What it has taken, for a history."""
        return [Taken(one.delivery_id, one.to, str(one.message["text"])) for one in self.taken]

    @contextmanager
    def holds(self, history: Asked, count: int) -> Iterator[None]:
        """So many more are asked. Within, all hands of survey's sender wait for this; it takes at the end."""
        begun = len(self.arrivals)
        self.gate.clear()
        try:
            history.ask(count)
            history.running.wait(
                lambda: len(self.arrivals) >= begun + HANDS, None, "messages to be on their way"
            )
            yield
        finally:
            self.gate.set()

    def take(self, message: dict[str, Any]) -> str:
        """Takes a message; returns the provider's id for it. Repeated messages are not noticed."""
        arrival = Arrival(message, time.monotonic())
        with self._lock:
            self._arrivals.append(arrival)
            number = len(self._arrivals)
        self.begun(arrival)
        pace = self.pace(message)
        time.sleep(pace.before)
        self.gate.wait()
        arrival.taken_at = time.monotonic()
        time.sleep(pace.after)
        return f"slow-{number}"


@contextmanager
def slow_provider() -> Iterator[SlowProvider]:
    """A provider that listens on a port of its own."""
    provider = SlowProvider()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: no delay but our own

        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            raw = json.dumps({"id": provider.take(message)}).encode()
            with suppress(OSError):  # a sender that gave up has hung up
                self.send_response(202)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
                self.wfile.flush()

        def do_GET(self) -> None:
            self.send_error(404)  # whoever asks whether it is there

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield provider
    finally:
        provider.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
