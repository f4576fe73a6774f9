"""Which processes run, noted in each service's database, so that no migration takes away what one uses."""

from __future__ import annotations

import contextlib
import importlib.metadata
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

import psycopg2
import psycopg2.extensions
import structlog

from shared import migrate
from shared.errors import HearbackError
from shared.settings import Settings

# While a process is not noted yet, it tries again this often (s).
_RETRY_SECONDS = 0.5

_log = structlog.get_logger("hearback.presence")
_here: Presence | None = None


class Presence:
    """One process, noted from before its work begins until it has ended, under the migrations it knows.

    `urls` are the databases it works in, by service. It may work in one while `refusal` says nothing
    against it: the tables are what this program needs, and nobody takes them away unasked. A refusal after
    that (the process was frozen, or cut off, and its tables were taken away meanwhile) calls `refused`.
    """

    def __init__(
        self, name: str, urls: Mapping[str, str], refused: Callable[[str], None] = lambda _: None
    ) -> None:
        self.name = name
        self.urls = dict(urls)
        self._refused = refused
        self._id = str(uuid.uuid4())
        self._over = threading.Event()
        self._noted: set[str] = set()
        self._refusals = {service: f"The database of {service} was not asked yet." for service in urls}
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> Presence:
        """Begins to note this process; what is noted in it goes on until `stop`."""
        global _here
        _here = self
        self._thread.start()
        return self

    def stop(self) -> None:
        """Says that this process has ended; its work must have."""
        self._over.set()
        self._thread.join(timeout=10)

    def refusal(self, service: str) -> str:
        """Why this process must not work in that database now, in a sentence; empty when it may."""
        return self._refusals.get(service, "")

    def _run(self) -> None:
        due = dict.fromkeys(self.urls, 0.0)
        while not self._over.is_set():
            for service, at in due.items():
                if time.monotonic() >= at:
                    self._look(service)
                    waits = _RETRY_SECONDS if self._refusals[service] else migrate.BEAT_SECONDS
                    due[service] = time.monotonic() + waits
            self._over.wait(max(0.0, min(due.values()) - time.monotonic()))
        for service in self._noted:
            with contextlib.suppress(HearbackError, psycopg2.Error):
                with migrate.connection_to(service, self.urls[service]) as connection:
                    with connection.cursor() as cur:
                        cur.execute("DELETE FROM running_process WHERE id = %s", (self._id,))

    def _look(self, service: str) -> None:
        was_noted = service in self._noted
        try:
            with migrate.connection_to(service, self.urls[service]) as connection:
                connection.autocommit = False
                with connection.cursor() as cur:
                    said = self._note(service, cur)
                connection.commit()
        except (HearbackError, psycopg2.Error) as error:
            # A database that is away for a while takes nothing away; its users notice by themselves.
            if was_noted:
                return
            said = error.message if isinstance(error, HearbackError) else f"The database of {service} failed."
        if said and said != self._refusals[service]:
            _log.warning("must not work now", process=self.name, reason=said)
        self._refusals[service] = said
        if said and was_noted:
            self._noted.discard(service)
            self._refused(said)
        elif not said:
            self._noted.add(service)

    def _note(self, service: str, cur: psycopg2.extensions.cursor) -> str:
        """Notes this process when it may work here; else says why not, and nothing is noted."""
        if said := migrate.unfit(service, cur):
            return said
        # Nobody contracts while this process counts as alive, so it need not keep out of anybody's way: what
        # is being changed now, with its beats still heard, is nothing that it uses.
        cur.execute(
            "UPDATE running_process SET seen_at = now()"
            " WHERE id = %s AND seen_at > now() - %s * interval '1 second'",
            (self._id, migrate.GONE_SECONDS / 2),
        )
        if cur.rowcount:
            return ""
        # Who contracts holds this lock alone: then the tables are about to be others.
        cur.execute("SELECT pg_try_advisory_xact_lock_shared(%s)", (migrate.CONTRACT_LOCK,))
        if cur.fetchone() == (False,):
            return f"The tables of {service} are being changed."
        if said := migrate.unfit(service, cur):
            return said
        cur.execute(
            """INSERT INTO running_process (id, name, host, version, knows) VALUES (%s, %s, %s, %s, %s)
            ON CONFLICT (id) DO UPDATE SET seen_at = now()""",
            (self._id, self.name, socket.gethostname(), program_version(), migrate.head(service)),
        )
        cur.execute("DELETE FROM running_process WHERE seen_at < now() - interval '1 day'")
        return ""


@contextlib.contextmanager
def present(
    name: str, urls: Mapping[str, str], refused: Callable[[str], None] = lambda _: None
) -> Iterator[Presence]:
    """This process is noted during the block, as soon as the tables allow."""
    here = Presence(name, urls, refused).start()
    try:
        yield here
    finally:
        here.stop()


def places(settings: Settings, services: Sequence[str]) -> dict[str, str]:
    """The databases in which a process of `services` is to be noted: theirs, and the embedded log's."""
    names = [*services, *(["log"] if settings.log != "kafka" or settings.uses_mailbox else [])]
    return {name: settings.database_urls[name] for name in names if name in settings.database_urls}


def refusal(service: str) -> str:
    """What this process' `Presence` has against working in that database; empty where there is none."""
    return _here.refusal(service) if _here else ""


def program_version() -> str:
    """The version of this program, as installed."""
    """The version of this program, as installed."""
    try:
        return importlib.metadata.version("hearback")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
