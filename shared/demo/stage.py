"""A whole installation in one process, whose clock travels: web app and roles over the real databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from werkzeug.serving import make_server

from shared.clock import ManualClock
from shared.db import Database
from shared.embedded.app import mounted
from shared.errors import Unavailable
from shared.ids import SystemIds
from shared.log.in_use import open_in_use
from shared.roles import RoleContext, load_roles
from shared.settings import SERVICES, Settings

# How long the history waits for its own messages and events before it says that something is stuck.
_PATIENCE = 60.0
_HASTEN = 3.0


class TravellingClock(ManualClock):
    """A calendar that is set, and seconds that pass by themselves: a permit lives 15 real seconds."""

    def monotonic(self) -> float:
        return time.monotonic()


@dataclass
class Stage:
    """What plays: its address, its clock, and the databases it plays in."""

    url: str
    clock: TravellingClock
    databases: dict[str, Database]
    settings: Settings

    def settle(self) -> None:
        """Returns when nothing is under way: no event unread, no message to hand over, no webhook to post.

        Raises `Unavailable` when that takes more than a minute.
        """
        log = open_in_use(self.settings, self.clock)
        until = time.monotonic() + _PATIENCE
        hasten = time.monotonic() + _HASTEN
        quiet = 0
        try:
            while quiet < 2:  # twice: between two looks nothing may have moved from one part to another
                under_way = self._under_way() or any(lag.unread for lag in log.lag())
                quiet = 0 if under_way else quiet + 1
                if time.monotonic() > hasten:
                    self._hasten()
                    hasten = time.monotonic() + _HASTEN
                if time.monotonic() > until:
                    raise Unavailable("The history waits for events or messages that do not move on.")
                time.sleep(0.01)
        finally:
            log.close()

    def _hasten(self) -> None:
        """Moves the clock to when a failed webhook is tried again: here no time passes by itself."""
        with self.databases["log"].transaction() as tx:
            due: datetime | None = tx.value("SELECT min(due_at) FROM mailbox.webhook")
        if due is not None and due > self.clock.now():
            self.clock.set(due)

    def _under_way(self) -> bool:
        for name, database in self.databases.items():
            with database.transaction() as tx:
                if name == "log":
                    if tx.one("SELECT 1 FROM mailbox.webhook LIMIT 1"):
                        return True
                    continue
                if tx.one("SELECT 1 FROM outbox LIMIT 1"):
                    return True
                if name != "reporting" and tx.one(
                    "SELECT 1 FROM delivery WHERE state = 'claimed'"
                    " OR (state = 'queued' AND not_before <= %s) LIMIT 1",
                    (tx.now,),
                ):
                    return True
        return False


@contextmanager
def set_up(settings: Settings, at: datetime) -> Iterator[Stage]:
    """Builds the stage at the instant `at`; takes it down at the end.

    Nothing else may move events meanwhile.
    """
    clock = TravellingClock(at)
    ids = SystemIds()
    server = make_server("127.0.0.1", 0, lambda *_: [], threaded=True)
    url = f"http://127.0.0.1:{server.server_port}"
    inner = replace(settings, survey_url=url, mailbox_url=url)
    server.app = mounted(inner, SERVICES, clock=clock, ids=ids)
    names = (*SERVICES, "log")
    databases = {
        name: Database(inner.database_urls[name], clock, ids, name="hearback-demo") for name in names
    }
    stop = threading.Event()
    threads = [threading.Thread(target=server.serve_forever, daemon=True)]
    for service in SERVICES:
        context = RoleContext(inner, service, clock, ids, databases[service])
        for name, make in load_roles(service).items():
            threads.append(
                threading.Thread(target=_keep, args=(make(context), stop), name=f"{service}-{name}")
            )
    for thread in threads:
        thread.start()
    try:
        yield Stage(url, clock, databases, inner)
    finally:
        stop.set()
        server.shutdown()
        for thread in threads:
            thread.join(timeout=20)
        for database in databases.values():
            database.close()


def _keep(loop: object, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            loop(stop)  # type: ignore[operator]
        except Unavailable:
            stop.wait(0.2)
