"""Where a process answers probes by a thread that does nothing else: whether it lives, whether it is ready.

A worker serves no pages. A web does, but its threads may all be waiting for a database that hangs: that is no
reason to restart it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shared.errors import HearbackError


class PortTaken(HearbackError):
    """The port for probes cannot be opened."""

    slug = "port-taken"


@contextlib.contextmanager
def health_port(
    host: str, port: int, alive: Callable[[], bool], report: Callable[[], Mapping[str, Any]]
) -> Iterator[int]:
    """Answers `…/healthz` (200 while `alive()`) and `…/readyz` (200 while the report's `ready` is true).

    Yields the port it listens on; with `port` 0 there is none, and nothing listens. Raises `PortTaken`.
    """
    if not port:
        yield 0
        return
    server = _server(host, port, alive, report)
    thread = _serve(server)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def alive_port(host: str, port: int) -> None:
    """From now on answers `…/healthz` as long as this process goes round; its siblings share the port.

    With `port` 0 there is none. Raises `PortTaken`.
    """
    if port:
        _serve(_server(host, port, lambda: True, None))


def _serve(server: ThreadingHTTPServer) -> threading.Thread:
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="health-port", daemon=True)
    thread.start()
    return thread


def _server(
    host: str, port: int, alive: Callable[[], bool], report: Callable[[], Mapping[str, Any]] | None
) -> ThreadingHTTPServer:
    class Probe(BaseHTTPRequestHandler):
        # A prober that says nothing must not keep a thread for ever.
        timeout = 5

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.endswith("/healthz"):
                lives = alive()
                self._reply(200 if lives else 503, {"status": "alive" if lives else "hangs"})
            elif path.endswith("/readyz") and report is not None:
                said = report()
                self._reply(200 if said["ready"] else 503, said)
            else:
                self._reply(404, {"status": "there is no such thing here"})

        def _reply(self, status: int, body: Mapping[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Probes come every few seconds; they are not worth a line."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_port = report is None
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        return Server((host, port), Probe)
    except OSError as error:
        raise PortTaken(
            f"HEARBACK_HEALTH_PORT: port {port} on {host or 'all addresses'} cannot be opened "
            f"({(error.strerror or 'taken').lower()}). Choose another."
        ) from error
