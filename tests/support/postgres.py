"""One PostgreSQL for a test session, and databases copied from migrated templates."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import psycopg2.extensions
from psycopg2 import sql

from shared.embedded.owner import Owner, find_owner
from shared.embedded.postgres import Postgres
from shared.logins import create_database
from shared.migrate import migrate
from shared.settings import DATABASES


class Server(Protocol):
    """A running server with a login and a database for each service."""

    def connect(self) -> psycopg2.extensions.connection:
        """As the superuser, committing by itself."""
        ...

    def url(self, role: str, database: str | None = None) -> str:
        """How `role` reaches `database` (its own by default)."""
        ...

    def close(self) -> None:
        """Ends it, and removes what it kept."""
        ...


class EmbeddedServer(Postgres):
    """The product's own, in a temporary folder."""

    def __init__(self, fsync: bool) -> None:
        owner: Owner = find_owner()
        home = Path(tempfile.mkdtemp(prefix="hearback-pg-"))
        owner.own(home)
        super().__init__(home, owner, fsync=fsync)
        self.initialise()
        self.start(die_with_us=True)
        self.create_databases()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)


class TestPostgres:
    """A server for tests, by default the embedded one.

    Without `fsync` that one forgets on a crash, which is what tests want.
    """

    __test__ = False

    def __init__(self, server: Server | None = None, *, fsync: bool = False) -> None:
        self.server: Server = server or EmbeddedServer(fsync)
        self._names = itertools.count(1)
        self._templates: set[str] = set()

    def close(self) -> None:
        """Stops the server and removes what it kept."""
        self.server.close()

    def database(self, service: str) -> str:
        """The URL of a new, migrated database for `service` ("survey", "followup", "reporting", "log")."""
        if service not in self._templates:
            # The service's own database serves as the template; nobody may stay connected to it.
            migrate(service, self.server.url(service))
            self._templates.add(service)
        return self._create(service, f"{service}_{next(self._names)}", template=service)

    def empty(self, role: str = "log") -> str:
        """The URL of a new database without any tables, owned by `role`."""
        return self._create(role, f"empty_{next(self._names)}", template="template0")

    def _create(self, role: str, name: str, template: str) -> str:
        connection = self.server.connect()
        try:
            with connection.cursor() as cur:
                create_database(cur, name, role, template)
        finally:
            connection.close()
        return self.server.url(role, name)

    def drop(self, url: str) -> None:
        """Removes a database, whoever is still connected."""
        connection = self.server.connect()
        try:
            with connection.cursor() as cur:
                name = sql.Identifier(url.rsplit("/", 1)[1])
                cur.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        finally:
            connection.close()


class FreshDatabases(Mapping[str, str]):
    """Database URLs for one test; each database is made when it is first asked for."""

    def __init__(self, postgres: TestPostgres) -> None:
        self._postgres = postgres
        self._urls: dict[str, str] = {}
        self._lock = threading.Lock()
        self._over = False

    def __getitem__(self, service: str) -> str:
        if service not in DATABASES:
            raise KeyError(service)
        # A thread of the app under test may ask as well (for the log's lag), even while the test ends.
        with self._lock:
            if service not in self._urls:
                if self._over:
                    raise KeyError(f"{service}: the test is over")
                self._urls[service] = self._postgres.database(service)
            return self._urls[service]

    def __iter__(self) -> Iterator[str]:
        return iter(DATABASES)

    def __len__(self) -> int:
        return len(DATABASES)

    def drop(self) -> None:
        with self._lock:
            self._over = True
            for url in self._urls.values():
                self._postgres.drop(url)
            self._urls.clear()
