"""The database: what COPY takes comes back, and what may wait arrives in its order or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import psycopg2
import pytest

from shared.clock import SystemClock
from shared.db import Database, Statement
from shared.errors import Unavailable
from shared.ids import SystemIds
from tests.support.postgres import TestPostgres

_TABLE = (
    "CREATE TABLE thing (id bigint PRIMARY KEY, text text, raw bytea, at timestamptz, day date, flag boolean)"
)


@pytest.fixture
def db(postgres: TestPostgres) -> Iterator[Database]:
    url = postgres.empty()
    found = Database(url, SystemClock(), SystemIds(), pool_size=2)
    with found.transaction() as tx:
        tx.execute(_TABLE)
    yield found
    found.close()
    postgres.drop(url)


def test_what_is_added_comes_back_as_it_was(db: Database) -> None:
    texts = [
        "",
        "plain",
        "\t tab",
        "line\nbreak\r",
        "\\N",
        "\\",
        "back\\slash\\n",
        "\\.",
        "äöü 漢字 \x01",
        None,
    ]
    rows: list[tuple[Any, ...]] = [
        (
            n,
            text,
            b"\x00\\\n\xff",
            datetime(2026, 3, 3, 10, 0, 0, 5, tzinfo=UTC),
            date(2026, 3, 3),
            n % 2 == 0,
        )
        for n, text in enumerate(texts)
    ]
    with db.transaction() as tx:
        types = ("integer", "text", "bytea", "timestamptz", "date", "boolean")
        tx.add("thing", dict(zip(("id", "text", "raw", "at", "day", "flag"), types, strict=True)), rows)
        tx.add("thing", {"id": "integer"}, [])
    with db.transaction() as tx:
        found = tx.all("SELECT * FROM thing ORDER BY id")
    assert [(*row.values(),) for row in ({**row, "raw": bytes(row["raw"])} for row in found)] == rows


def test_what_may_wait_is_there_for_the_next_statement_and_after_the_commit(db: Database) -> None:
    insert = Statement("INSERT INTO thing (id, text) VALUES (%(id)s, %(text)s)")
    with db.transaction() as tx:
        for id_ in (1, 2):
            tx.later(insert, {"id": id_, "text": "100 % sure"})
        assert tx.value("SELECT count(*) FROM thing") == 2
        tx.later(insert, {"id": 3, "text": None})
    with db.transaction() as tx:
        assert [row["id"] for row in tx.all("SELECT id FROM thing ORDER BY id")] == [1, 2, 3]


def test_a_statement_that_waited_and_fails_undoes_everything(db: Database) -> None:
    def twice() -> None:
        with db.transaction() as tx:
            tx.execute("INSERT INTO thing (id) VALUES (1)")
            tx.later("INSERT INTO thing (id) VALUES (1)")

    with pytest.raises(psycopg2.errors.UniqueViolation):
        twice()
    with db.transaction() as tx:
        assert tx.value("SELECT count(*) FROM thing") == 0


def test_an_exception_leaves_nothing_of_what_waited(db: Database) -> None:
    def broken() -> None:
        with db.transaction() as tx:
            tx.later("INSERT INTO thing (id) VALUES (1)")
            raise ValueError

    with pytest.raises(ValueError):
        broken()
    with db.transaction() as tx:
        assert tx.value("SELECT count(*) FROM thing") == 0


def test_a_connection_is_used_again_after_any_error(db: Database) -> None:
    for sql in ("SELECT 1/0", "no sql at all"):
        with pytest.raises(psycopg2.Error), db.transaction() as tx:
            tx.execute(sql)
        with db.transaction() as tx:
            assert tx.value("SELECT 1") == 1
            assert tx.value("SELECT txid_current_if_assigned()") is None


def test_connections_that_died_together_cost_one_try(db: Database) -> None:
    with db.transaction() as one, db.transaction() as other:
        pids = [tx.value("SELECT pg_backend_pid()") for tx in (one, other)]
    connection = psycopg2.connect(db.url)
    with connection.cursor() as cur:
        for pid in pids:
            cur.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    connection.close()
    with pytest.raises(Unavailable), db.transaction() as tx:
        tx.execute("SELECT")
    with db.transaction() as one, db.transaction() as other:
        assert [tx.value("SELECT 1") for tx in (one, other)] == [1, 1]


def test_a_full_disk_is_named_and_tried_again_later(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unavailable, match="disk of the database is full") as refused, db.transaction() as tx:
        tx.execute("INSERT INTO thing (id) VALUES (1)")
        tx.execute("DO $$ BEGIN RAISE 'no space left' USING ERRCODE = 'disk_full'; END $$")
    assert refused.value.retry_after
    assert "the database's disk is full" in "".join(capsys.readouterr())
    with db.transaction() as tx:
        assert tx.value("SELECT count(*) FROM thing") == 0


def test_a_transaction_without_a_statement_is_none(db: Database) -> None:
    with db.transaction():
        pass


def test_a_plan_made_while_the_table_was_empty_reads_an_index(db: Database) -> None:
    read = Statement("SELECT text FROM thing WHERE id = %(id)s")
    for _ in range(8):  # until PostgreSQL keeps one plan for all arguments
        with db.transaction() as tx:
            tx.one(read, {"id": 1})
    with db.transaction() as tx:
        plan = tx.all(f"EXPLAIN EXECUTE {read.name} (1)")
    assert "Index Scan" in plan[0]["QUERY PLAN"]


def test_a_commit_whose_answer_is_lost_is_not_said_to_have_changed_nothing(db: Database) -> None:
    with db.transaction() as tx:
        tx.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$"
        )
        tx.execute(
            "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON thing DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION die()"
        )
    with pytest.raises(Unavailable, match="not known whether"), db.transaction() as tx:
        tx.execute("INSERT INTO thing (id) VALUES (1)")
    with pytest.raises(Unavailable, match="Nothing was changed"), db.transaction() as tx:
        tx.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with db.transaction() as tx:
        assert tx.value("SELECT count(*) FROM thing") == 0
