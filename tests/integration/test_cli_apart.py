"""Commands where a process knows its own service's database only, as single pods and containers do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg2.extensions
import pytest

from shared.channels import ledger
from shared.channels.ledger import NewDelivery
from shared.clock import SystemClock
from shared.db import Database
from shared.ids import SystemIds
from shared.migrate import migrate, version
from shared.settings import Settings
from tests.support.postgres import TestPostgres


def _run(settings: Settings, services: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    known = {f"HEARBACK_{name.upper()}_DATABASE_URL": settings.database_urls[name] for name in services}
    return subprocess.run(
        [sys.executable, "-m", "shared.cli", *words],
        env={
            "PATH": os.environ["PATH"],
            "HEARBACK_HOME": str(settings.home),
            "HEARBACK_SECRET": settings.secret,
        }
        | known,
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("words", [("log", "replay", "followup"), ("log", "resume", "followup")])
def test_what_a_consumer_has_parked_is_seen_to_with_its_own_database(
    settings: Settings, words: tuple[str, ...]
) -> None:
    done = _run(settings, ["followup"], *words)
    assert done.returncode == 0, done.stderr


def test_what_may_have_left_since_a_backup_is_not_sent_again(settings: Settings) -> None:
    db = Database(settings.database_urls["survey"], SystemClock(), SystemIds(), name="test")
    with db.transaction() as tx:
        ledger.queue(tx, NewDelivery("invitation", SystemIds().new(), "email", address="ann@example.org"))
    done = _run(settings, ["survey", "followup"], "restored")
    assert done.returncode == 0 and "survey: 1 " in done.stdout and "followup: 0 " in done.stdout, done.stderr
    with db.transaction() as tx:
        assert ledger.claim(tx, 1, ["invitation"]) == []
        _, [lost] = ledger.after_crash(tx, ["invitation"])
        assert lost.reason == ledger.RESTORED
    db.close()


def test_a_database_of_several_hosts_is_migrated_as_well(postgres: TestPostgres) -> None:
    """A cluster's address names all its servers, and which of them is wanted."""
    parts = psycopg2.extensions.parse_dsn(postgres.empty("reporting"))
    host, port = parts["host"], parts["port"]
    url = (
        f"postgresql://{parts['user']}:{parts.get('password', '')}@{host}:1,{host}:{port}/{parts['dbname']}"
        "?target_session_attrs=read-write"
    )
    assert migrate("reporting", url) and version("reporting", url)
