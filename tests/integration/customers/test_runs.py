"""An import's life: claimed once, survives crashes, stops, and keeps constant memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from services.survey import importer, roles
from services.survey.commands import imports
from shared.db import Tx
from shared.errors import Conflict
from shared.roles import RoleContext
from tests.support.customers import Survey


def upload(survey: Survey, data: bytes) -> str:
    with survey.db.transaction() as tx:
        run_id = imports.begin(tx, "x.csv", "test", None)
        imports.add_piece(tx, run_id, 0, data[:10])
        imports.add_piece(tx, run_id, 1, data[10:])
        imports.uploaded(tx, run_id, len(data))
    return run_id


def rows(n: int) -> bytes:
    return ("id,name\n" + "".join(f"{i},Name {i}\n" for i in range(n))).encode()


def test_a_run_goes_on_after_the_last_committed_batch_when_its_worker_died(survey: Survey) -> None:
    run_id = upload(survey, rows(2_500))

    class Died(BaseException):
        pass

    with survey.db.transaction() as tx:
        run = imports.claim(tx)
    assert run

    def pieces() -> Iterator[bytes]:
        return imports.pieces(survey.db, run_id)

    def die(progress: object) -> None:
        raise Died

    with pytest.raises(Died):
        importer.Importer(survey.db, run, pieces, survey.fingerprints, die).run()
    half = survey.run(run_id)
    assert (half["state"], half["rows"], half["created"]) == ("running", 1_000, 1_000)
    assert not importer.work(survey.db, survey.fingerprints), "its claim still counts"
    survey.clock.advance(timedelta(minutes=2))
    assert importer.work(survey.db, survey.fingerprints)
    done = survey.run(run_id)
    assert (done["state"], done["rows"], done["created"], done["unchanged"]) == ("done", 2_500, 2_500, 0)


def test_a_worker_that_wakes_up_after_its_run_was_taken_over_does_nothing(survey: Survey) -> None:
    run_id = upload(survey, rows(10))
    with survey.db.transaction() as tx:
        frozen = imports.claim(tx)
    assert frozen
    survey.clock.advance(timedelta(minutes=2))
    assert importer.work(survey.db, survey.fingerprints)
    before = survey.all("SELECT * FROM customer")
    late = importer.Importer(survey.db, frozen, lambda: iter([rows(20)]), survey.fingerprints)
    assert late.run() == "lost"
    assert survey.all("SELECT * FROM customer") == before
    assert survey.run(run_id)["state"] == "done"


def test_two_workers_do_not_take_the_same_run(survey: Survey) -> None:
    upload(survey, rows(10))
    with survey.db.transaction() as tx:
        assert imports.claim(tx)
        assert imports.claim(tx) is None


def test_a_run_stops_after_its_batch_and_keeps_what_is_in(survey: Survey) -> None:
    run_id = upload(survey, rows(3_000))
    with survey.db.transaction() as tx:
        run = imports.claim(tx)
    assert run

    def stop(progress: object) -> None:
        with survey.db.transaction() as tx:
            imports.stop(tx, run_id)

    state = importer.Importer(
        survey.db, run, lambda: imports.pieces(survey.db, run_id), survey.fingerprints, stop
    ).run()
    assert state == "stopped"
    assert survey.run(run_id)["rows"] == 2_000
    assert survey.all("SELECT 1 FROM import_chunk") == []
    with survey.db.transaction() as tx, pytest.raises(Conflict):
        imports.stop(tx, run_id)


def test_a_worker_that_is_told_to_end_gives_its_run_back(survey: Survey) -> None:
    run_id = upload(survey, rows(2_500))
    stop = threading.Event()
    stop.set()
    assert importer.work(survey.db, survey.fingerprints, stop)
    assert survey.run(run_id)["state"] == "waiting"
    importer.work(survey.db, survey.fingerprints)
    assert survey.run(run_id)["created"] == 2_500


def test_the_clock_role_imports_what_was_uploaded(survey: Survey) -> None:
    run_id = upload(survey, rows(10))
    context = RoleContext(survey.settings, "survey", survey.clock, survey.db.ids, survey.db)
    stop = threading.Event()
    worker = threading.Thread(target=roles.clock(context), args=(stop,))
    worker.start()
    for _ in range(300):
        if survey.run(run_id)["state"] == "done":
            break
        time.sleep(0.1)
    stop.set()
    worker.join(20)
    assert not worker.is_alive()
    assert survey.run(run_id)["created"] == 10


def test_an_upload_that_broke_off_is_given_up(survey: Survey) -> None:
    with survey.db.transaction() as tx:
        run_id = imports.begin(tx, "x.csv", "test", None)
        imports.add_piece(tx, run_id, 0, b"id\n")
    survey.clock.advance(timedelta(hours=1))
    assert not importer.work(survey.db, survey.fingerprints)
    run = survey.run(run_id)
    assert run["state"] == "failed"
    assert "upload broke off" in run["message"]


def test_a_terminal_that_went_away_is_said_so(survey: Survey) -> None:
    with survey.db.transaction() as tx:
        run_id = imports.begin(tx, "x.csv", "test", None)
        imports.claim_new(tx, run_id, 100)
    survey.clock.advance(timedelta(minutes=2))
    importer.work(survey.db, survey.fingerprints)
    run = survey.run(run_id)
    assert run["state"] == "failed"
    assert "went away" in run["message"]


def test_a_mistake_of_ours_fails_the_run_and_says_what_is_in(
    survey: Survey, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = upload(survey, rows(10))

    def broken(tx: Tx, *_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(imports, "advance", broken)
    importer.work(survey.db, survey.fingerprints)
    run = survey.run(run_id)
    assert (run["state"], run["rows"]) == ("failed", 0)
    assert "Something broke on our side" in run["message"]
    assert survey.all("SELECT 1 FROM customer") == []
