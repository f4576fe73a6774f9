"""PgBouncer in transaction mode, in front of databases of the tests' server."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from shared.embedded.owner import find_owner
from tests.support.running import PATIENCE, free_port

_PROGRAM = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


class PgBouncer:
    """Gives each transaction one of `size` connections per database."""

    def __init__(self, urls: Mapping[str, str], size: int) -> None:
        if _PROGRAM is None:
            pytest.skip("needs PgBouncer: apt-get install pgbouncer")
        self.port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix="hearback-pooler-"))
        self.direct, self.urls = dict(urls), dict[str, str]()
        lines = ["[databases]"]
        for name, url in urls.items():
            at = urlsplit(url)
            database = at.path[1:]
            lines.append(
                f"{database} = host={at.hostname} port={at.port} user={at.username} password={at.password}"
            )
            self.urls[name] = f"postgresql://{at.username}@127.0.0.1:{self.port}/{database}"
        lines += [
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            f"default_pool_size = {size}",
            "max_client_conn = 500",
            "ignore_startup_parameters = options",
        ]
        (self.home / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        find_owner().own(self.home, deep=True)
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> PgBouncer:
        """Returns when it listens."""
        command = [str(_PROGRAM), str(self.home / "pgbouncer.ini")]
        with (self.home / "log").open("ab") as file:
            self._popen = subprocess.Popen(find_owner().command(command), stdout=file, stderr=file)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError as error:
                said = (self.home / "log").read_text()
                if self._popen.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"PgBouncer does not start:\n{said}") from error
                time.sleep(0.05)
            else:
                return self

    def pool(self, service: str) -> int:
        """How many of the connections to a service's database are in somebody's hands."""
        # Of its own console, which speaks no transactions.
        console = psycopg2.connect(host="127.0.0.1", port=self.port, dbname="pgbouncer", user="tests")
        console.autocommit = True
        with console.cursor() as cur:
            cur.execute("SHOW POOLS")
            names = [column.name for column in cur.description or ()]
            pools = [dict(zip(names, row, strict=True)) for row in cur.fetchall()]
        console.close()
        database = urlsplit(self.urls[service]).path[1:]
        return sum(int(one["sv_active"]) for one in pools if one["database"] == database)

    def kill(self) -> None:
        """As kill -9 does."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)
