"""One embedded PostgreSQL for a test session, and databases copied from migrated templates."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from psycopg2 import sql

from shared.embedded.owner import Owner, find_owner
from shared.embedded.postgres import Postgres
from shared.logins import create_database
from shared.migrate import migrate
from shared.settings import DATABASES


class TestPostgres:
    """A server in a temporary folder. Without `fsync` it forgets on a crash, which is what tests want."""

    __test__ = False

    def __init__(self, *, fsync: bool = False) -> None:
        self.owner: Owner = find_owner()
        self.home = Path(tempfile.mkdtemp(prefix="hearback-pg-"))
        self.owner.own(self.home)
        self.server = Postgres(self.home, self.owner, fsync=fsync)
        self.server.initialise()
        self.server.start(die_with_us=True)
        self.server.create_databases()
        self._names = itertools.count(1)
        self._templates: set[str] = set()

    def close(self) -> None:
        """Stops the server and removes its folder."""
        self.server.stop()
        shutil.rmtree(self.home, ignore_errors=True)

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
