"""The web process: granian with two forked workers, for the apps it is told to mount."""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import multiprocessing.util
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Sequence

from granian.constants import Interfaces
from granian.server.mp import MPServer

from shared import presence, telemetry
from shared.embedded import processes
from shared.embedded.app import MAILBOX, module, mounted
from shared.health_port import alive_port
from shared.settings import DATABASES, SERVICES, load

# Few of the threads are at work in the database at a time (`shared.web.pressure`): most are there to say so
# to who finds no place when it is slow. They are started when they are needed.
WORKERS, THREADS = 2, 32
_MOUNTED = "HEARBACK_MOUNTED"
_server: MPServer | None = None
_asked_to_end = False


def serve(services: Sequence[str], *, name: str = "web") -> None:
    """Serves the apps of `services` on the configured host and port until SIGTERM or SIGINT."""
    settings = load(databases=databases(services))
    telemetry.set_up(name)
    os.environ[_MOUNTED] = ",".join(services)
    # Imported before the fork: the workers share the memory, and start at once.
    for needed in ("sqlalchemy.pool", "shared.mailbox.app", *map(module, services)):
        importlib.import_module(needed)
    with processes.pid_file(settings.home, name):
        server("shared.embedded.web:create", settings.host, settings.port).serve()


def server(factory: str, host: str, port: int, threads: int = THREADS) -> MPServer:
    """The server for the app that `factory` ("module:function") makes in each forked worker."""
    if multiprocessing.get_start_method(allow_none=True) is None:
        multiprocessing.set_start_method("fork")
    global _server
    _server = MPServer(
        factory,
        factory=True,
        interface=Interfaces.WSGI,
        address=host,
        port=port,
        workers=WORKERS,
        blocking_threads=threads,
        backlog=1024,
        respawn_failed_workers=True,
        respawn_interval=0.5,
        workers_kill_timeout=20,
        log_access=False,
        websockets=False,
        # Its lines go the way of all others.
        log_dictconfig={"loggers": {"_granian": {"handlers": [], "propagate": True}}},
    )
    return _server


def create() -> object:
    """What each forked worker serves."""
    hear_while_starting()
    die_with_parent()
    services = [name for name in os.environ.get(_MOUNTED, "").split(",") if name] or SERVICES
    settings = load(databases=databases(services))
    names = ["log" if name == MAILBOX else name for name in services]
    here = presence.Presence(f"{' '.join(services)} web", presence.places(settings, names)).start()
    # A forked worker ends without running what `atexit` knows.
    multiprocessing.util.Finalize(None, here.stop, exitpriority=1)
    alive_port(settings.host, settings.health_port)
    threading.Thread(target=_notice_gone_clients, args=(settings.port,), name="clients", daemon=True).start()
    return mounted(settings, services)


def _notice_gone_clients(port: int) -> None:
    """Has the connections of clients that went away without a word closed after 25 s.

    A phone that has lost its network amid a form would else keep a thread for ever. The worker listens only
    after its app is made; what is accepted has the options of the socket that listens (socket(7), tcp(7)).
    """
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.2)
        for number in map(int, os.listdir("/dev/fd")):
            with contextlib.suppress(OSError):  # one that was closed meanwhile
                own = os.dup(number)
                if not stat.S_ISSOCK(os.fstat(own).st_mode):
                    os.close(own)
                    continue
                with socket.socket(fileno=own) as one:
                    if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and _is_at(one, port):
                        _keep_alive(one)
                        return


def _is_at(one: socket.socket, port: int) -> bool:
    return one.family in (socket.AF_INET, socket.AF_INET6) and one.getsockname()[1] == port


def _keep_alive(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if option := getattr(socket, name, None):
            one.setsockopt(socket.IPPROTO_TCP, option, value)


def databases(services: Sequence[str]) -> list[str]:
    """The databases that the apps of `services` work in; the mailbox lies beside the embedded log."""
    if set(SERVICES) <= set(services):
        return list(DATABASES)
    return ["log" if name == MAILBOX else name for name in services]


def hear_while_starting() -> None:
    """Notes that this worker is asked to end before it serves; it is asked again until it listens.

    Until granian listens to signals in it, a forked worker has its parent's handler, which notes them for the
    parent's loop: the worker would come up, serve while all else has stopped, and be killed amid requests.
    """
    global _asked_to_end

    def note(*_: object) -> None:
        global _asked_to_end
        _asked_to_end = True  # nothing that could meet itself, and no exception: it may be swallowed

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    _asked_to_end = _server is not None and _server.interrupt_signal


def die_with_parent() -> None:
    """Ends this worker when its parent is gone (killed): the next parent needs the port for itself.

    While the parent is there, hands on what `hear_while_starting` has noted.
    """
    parent = os.getppid()

    def watch() -> None:
        global _asked_to_end
        while os.getppid() == parent:
            if _asked_to_end:
                _asked_to_end = False
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        logging.getLogger("hearback.web").error("the parent process is gone, ending")
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    serve([name for name in sys.argv[1:] if name in SERVICES] or SERVICES)
