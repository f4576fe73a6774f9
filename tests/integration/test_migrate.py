"""Tables are brought to their version once and under older programs; newer ones are left alone."""

from __future__ import annotations

import contextlib
import queue
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

import shared.migrate
from shared.errors import Unavailable
from shared.migrate import (
    CONTRACT_LOCK,
    NewerDatabase,
    OldVersionRuns,
    connection_to,
    head,
    migrate,
    needed,
    unfit,
    version,
)
from shared.presence import Presence, present
from tests.support.postgres import TestPostgres


@pytest.fixture
def url(postgres: TestPostgres) -> str:
    return postgres.empty("log")


def test_migrates_once(url: str) -> None:
    assert version("log", url) is None
    assert migrate("log", url)
    assert version("log", url) == head("log")
    assert not migrate("log", url)


def test_two_at_once_do_it_once(url: str) -> None:
    done: list[bool] = []
    threads = [threading.Thread(target=lambda: done.append(migrate("log", url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False, False, True]


def test_refuses_tables_of_a_newer_version(url: str) -> None:
    migrate("log", url)
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cur:
        cur.execute("UPDATE alembic_version SET version_num = '9999'")
        cur.execute("INSERT INTO schema_floor (oldest) VALUES ('9998')")
    connection.close()
    with pytest.raises(NewerDatabase, match="9999.*newer"):
        migrate("log", url)


def test_says_that_nobody_answers() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        migrate("log", "postgresql://log@127.0.0.1:1/log")


@pytest.mark.parametrize("service", ["survey", "followup", "reporting", "log"])
def test_every_role_reaches_its_own_database_only(postgres: TestPostgres, service: str) -> None:
    psycopg2.connect(postgres.server.url(service)).close()
    for other in {"survey", "followup", "reporting", "log", "postgres"} - {service}:
        with pytest.raises(psycopg2.OperationalError, match="permission denied"):
            psycopg2.connect(postgres.server.url(service, other))


class Chain:
    """The migrations of `log`, with made-up ones behind them, as several versions know them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        self.present = shared.migrate._folder("log")
        self.base = head("log")

    def version(self, name: str, *steps: tuple[str, str]) -> list[str]:
        """From now on we are the program that knows `steps` (phase, SQL) besides; returns their revisions."""
        folder = self.folder / name
        shutil.copytree(self.present, folder, ignore=shutil.ignore_patterns("__pycache__"))
        before, made = self.base, []
        for phase, sql in steps:
            revision = f"{int(before) + 1:04}"
            (folder / "versions" / f"{revision}_made_up.py").write_text(
                f'"""Made up."""\n\nfrom alembic import op\n\nrevision = "{revision}"\n'
                f'down_revision = "{before}"\nbranch_labels = None\ndepends_on = None\n'
                f'phase = "{phase}"\n\n\n'
                f"def upgrade() -> None:\n    op.execute({sql!r})\n"
            )
            made.append(revision)
            before = revision
        self.become(name)
        return made

    def become(self, name: str) -> None:
        """From now on we are that version again; "" is the present one."""
        folder = self.folder / name if name else self.present
        self.monkeypatch.setattr(shared.migrate, "_folder", lambda _: folder)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    return Chain(tmp_path, monkeypatch)


EXPAND = ("expand", "ALTER TABLE log_topic ADD COLUMN nickname text")
CONTRACT = ("contract", "ALTER TABLE log_topic DROP COLUMN compacted")


@contextlib.contextmanager
def noted(name: str, url: str) -> Iterator[Presence]:
    """A process of the version that we are, running on the tables of `log`."""
    with present(name, {"log": url}) as here:
        until = time.monotonic() + 30
        while here.refusal("log"):
            assert time.monotonic() < until, here.refusal("log")
            time.sleep(0.02)
        yield here


def has(url: str, column: str) -> bool:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cur:
            cur.execute(
                "SELECT count(*) FROM information_schema.columns"
                " WHERE table_name = 'log_topic' AND column_name = %s",
                (column,),
            )
            row = cur.fetchone()
            return bool(row and row[0])
    finally:
        connection.close()


def why(url: str) -> str:
    with connection_to("log", url) as connection, connection.cursor() as cur:
        return unfit("log", cur)


def test_expands_under_a_running_older_version_and_refuses_to_contract(url: str, chain: Chain) -> None:
    migrate("log", url)
    with noted("survey consumer", url):
        expand, contract = chain.version("new", EXPAND, CONTRACT)
        with pytest.raises(OldVersionRuns) as refused:
            migrate("log", url)
        said = refused.value.message
        assert f"Migration {contract} of log" in said and f"tables {chain.base}" in said
        assert f"survey consumer on {socket.gethostname()}" in said and "hearback migrate" in said
        assert version("log", url) == expand and has(url, "nickname") and has(url, "compacted")
        assert why(url) == ""  # the new version works on tables that still have what the old one uses
        chain.become("")
        assert why(url) == "" and not migrate("log", url)  # and so does the old one on the new tables
        chain.become("new")
    assert migrate("log", url)
    assert version("log", url) == contract and not has(url, "compacted")
    assert why(url) == ""
    chain.become("")
    assert "has lost what it uses" in why(url)
    with pytest.raises(NewerDatabase, match="newer"):
        migrate("log", url)


def test_a_process_that_knows_the_contraction_is_in_nobodys_way(url: str, chain: Chain) -> None:
    migrate("log", url)
    _, contract = chain.version("new", EXPAND, CONTRACT)
    migrate("log", url, expand_only=True)
    with noted("survey web", url):
        assert migrate("log", url)
        assert version("log", url) == contract


def test_a_contraction_that_takes_its_time_ends_none_that_runs_and_lets_none_begin(
    url: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.migrate, "BEAT_SECONDS", 0.1)
    # Long enough for some beats: it returns when the process that runs has been heard three times more.
    slow = """
        DO $$ DECLARE heard timestamptz; BEGIN
            FOR number IN 1..3 LOOP
                heard = (SELECT seen_at FROM running_process WHERE name = 'survey relay');
                WHILE heard = (SELECT seen_at FROM running_process WHERE name = 'survey relay')
                    AND clock_timestamp() < now() + interval '30 seconds'
                LOOP PERFORM pg_sleep(0.02); END LOOP;
            END LOOP;
        END $$; ALTER TABLE log_topic DROP COLUMN compacted"""
    migrate("log", url)
    chain.version("new", EXPAND, ("contract", slow))
    migrate("log", url, expand_only=True)
    told: list[str] = []
    with present("survey relay", {"log": url}, told.append) as here, connection_to("log", url) as connection:
        until = time.monotonic() + 60
        while here.refusal("log"):
            assert time.monotonic() < until, here.refusal("log")
            time.sleep(0.02)
        migrating = threading.Thread(target=migrate, args=("log", url))
        migrating.start()
        with connection.cursor() as cur:
            held = (0,)
            while held == (0,):
                cur.execute("SELECT count(*) FROM pg_locks WHERE objid = %s", (CONTRACT_LOCK & 0xFFFF_FFFF,))
                held = cur.fetchone() or held
                assert time.monotonic() < until, "the contraction never began"
        with present("survey clock", {"log": url}) as late:
            while "are being changed" not in late.refusal("log"):
                assert migrating.is_alive() and time.monotonic() < until, late.refusal("log")
                time.sleep(0.02)
            migrating.join(60)
            while late.refusal("log"):
                assert time.monotonic() < until, late.refusal("log")
                time.sleep(0.02)
        assert not told and not here.refusal("log")
    assert not has(url, "compacted")


def test_contracting_waits_for_the_last_old_process_as_long_as_it_is_told(url: str, chain: Chain) -> None:
    migrate("log", url)
    with noted("survey web", url) as old:
        expand, contract = chain.version("new", EXPAND, CONTRACT)
        done: list[bool] = []
        migrating = threading.Thread(target=lambda: done.append(migrate("log", url, wait=60)))
        migrating.start()
        until = time.monotonic() + 30
        while version("log", url) != expand:
            assert time.monotonic() < until and not done
            time.sleep(0.02)
        migrating.join(1.5)  # longer than it takes from one look to the next
        assert migrating.is_alive() and version("log", url) == expand
        old.stop()
        migrating.join(60)
        assert done == [True] and version("log", url) == contract
    assert not has(url, "compacted")


def test_a_killed_process_counts_as_gone_after_a_while(
    url: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate("log", url)
    with noted("survey web", url):
        chain.version("new", CONTRACT)
        with pytest.raises(OldVersionRuns):
            migrate("log", url)
        connection = psycopg2.connect(url)
        with connection, connection.cursor() as cur:
            cur.execute("UPDATE running_process SET seen_at = seen_at - interval '61 seconds'")
        connection.close()
        assert migrate("log", url)


def test_whoever_knows_that_nobody_runs_need_not_wait(url: str, chain: Chain) -> None:
    migrate("log", url)
    with noted("survey web", url):
        chain.version("new", EXPAND, CONTRACT)
        assert migrate("log", url, alone=True)
    assert not has(url, "compacted")


def test_expanding_only_leaves_what_the_running_version_may_need(url: str, chain: Chain) -> None:
    migrate("log", url)
    expand, _ = chain.version("new", EXPAND, CONTRACT)
    assert migrate("log", url, expand_only=True)
    assert version("log", url) == expand and has(url, "compacted")
    assert not migrate("log", url, expand_only=True)


def test_new_tables_are_whole_at_once(url: str, chain: Chain) -> None:
    _, contract = chain.version("new", EXPAND, CONTRACT)
    migrate("log", url, expand_only=True)
    assert version("log", url) == contract


def test_a_new_process_waits_on_old_tables_and_goes_on_when_they_are_there(url: str, chain: Chain) -> None:
    migrate("log", url)
    chain.version("new", EXPAND)
    with present("followup relay", {"log": url}) as here:
        until = time.monotonic() + 30
        while "run `hearback migrate`" not in here.refusal("log"):
            assert time.monotonic() < until, here.refusal("log")
            time.sleep(0.02)
        migrate("log", url)
        while here.refusal("log"):
            assert time.monotonic() < until, here.refusal("log")
            time.sleep(0.02)


def test_an_old_process_whose_tables_went_while_it_was_frozen_is_told_to_end(
    url: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared.migrate, "BEAT_SECONDS", 0.2)
    migrate("log", url)
    chain.version("new", CONTRACT)
    chain.become("")
    said = queue.Queue[str]()
    with present("survey clock", {"log": url}, said.put) as here:
        until = time.monotonic() + 30
        while here.refusal("log"):
            assert time.monotonic() < until
            time.sleep(0.02)
        chain.become("new")
        migrate("log", url, alone=True)
        chain.become("")
        assert "has lost what it uses" in said.get(timeout=30)
        assert here.refusal("log")


def test_a_migration_gives_up_a_lock_that_it_does_not_get_and_tries_again(url: str, chain: Chain) -> None:
    migrate("log", url)
    chain.version("new", EXPAND)
    connection = psycopg2.connect(url)
    with connection.cursor() as cur:
        cur.execute("SELECT count(*) FROM log_topic")  # a long reader
        migrating = threading.Thread(target=migrate, args=("log", url))
        migrating.start()
        other = psycopg2.connect(url)
        other.autocommit = True
        with other.cursor() as second:
            # Behind the waiting migration everybody else waits, too; longer than its patience they do not.
            second.execute("SET statement_timeout = 20000")
            until = time.monotonic() + 30
            while True:
                second.execute(
                    "SELECT count(*) FROM pg_locks WHERE relation = 'log_topic'::regclass AND NOT granted"
                )
                waiting = second.fetchone()
                if waiting and waiting[0]:
                    break
                assert time.monotonic() < until, "the migration never waited for the lock"
                time.sleep(0.01)
            second.execute("SELECT count(*) FROM log_topic")
        other.close()
    connection.close()
    migrating.join(60)
    assert not migrating.is_alive() and has(url, "nickname")


@pytest.mark.parametrize("service", ["survey", "followup", "reporting", "log"])
def test_every_migration_says_its_phase(service: str) -> None:
    assert needed(service) <= head(service)


def test_a_migration_without_a_phase_is_refused(url: str, chain: Chain) -> None:
    chain.version("new", ("", "SELECT 1"))
    with pytest.raises(LookupError, match="does not say its phase"):
        migrate("log", url)
