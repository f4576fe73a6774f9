"""PostgreSQL's programs and databases, as an installation uses them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.embedded import postgres
from shared.embedded.owner import CannotRunHere, Owner
from shared.embedded.postgres import Postgres
from shared.migrate import migrate
from tests.support.postgres import EmbeddedServer


@pytest.fixture
def server() -> Iterator[Postgres]:
    """One of its own, whose databases have no tables yet."""
    made = EmbeddedServer(fsync=False)
    try:
        yield made
    finally:
        made.close()


def names(server: Postgres) -> set[str]:
    connection = server.connect()
    try:
        with connection.cursor() as cur:
            cur.execute("SELECT datname FROM pg_database WHERE NOT datistemplate")
            return {row[0] for row in cur.fetchall()} - {"postgres"}
    finally:
        connection.close()


def test_databases_are_made_once_and_again_only_when_others_can_fill_them(server: Postgres) -> None:
    all_of_them = {"survey", "followup", "reporting", "log"}
    assert server.create_databases() == [] and names(server) == all_of_them
    # A first start that was killed before it made a table goes on.
    server.drop_database("followup")
    assert server.create_databases() == [] and names(server) == all_of_them
    migrate("survey", server.url("survey"))
    server.drop_database("reporting")
    assert server.create_databases() == ["reporting"] and names(server) == all_of_them
    server.drop_database("followup")
    with pytest.raises(CannotRunHere, match="restore DIR --only followup"):
        server.create_databases()
    assert names(server) == all_of_them - {"followup"}
    assert server.create_databases(["followup"]) == ["followup"]
    assert names(server) == all_of_them - {"followup"}
    migrate("log", server.url("log"))
    server.drop_database("survey")
    with pytest.raises(CannotRunHere, match="restore DIR --replace"):
        server.create_databases(["followup"])


def test_what_a_killed_restore_of_one_service_left_is_ended(server: Postgres) -> None:
    server.create_databases()
    connection = server.connect()
    with connection.cursor() as cur:
        cur.execute("CREATE DATABASE followup_restored")
        cur.execute("CREATE DATABASE survey_replaced")
        cur.execute("ALTER DATABASE followup ALLOW_CONNECTIONS false")
    connection.close()
    server.create_databases()
    assert names(server) == {"survey", "followup", "reporting", "log"}
    server.connect("followup").close()


def test_a_program_that_fails_says_why_and_not_what_it_tidied_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_basebackup"
    program.write_text(
        "#!/bin/sh\n"
        "echo 'pg_basebackup: error: could not write to file \"1\": No space left on device' >&2\n"
        "echo 'pg_basebackup: removing data directory \"there\"' >&2\n"
        "exit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(postgres, "binaries", lambda: tmp_path)
    here = Postgres(tmp_path, Owner(os.geteuid(), os.getegid()), passwords={"postgres": "x"})
    with pytest.raises(CannotRunHere, match="No space left"):
        here.tool("pg_basebackup")
