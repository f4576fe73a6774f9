"""`hearback backup` and `restore`, on a real installation under traffic."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.survey.commands import ask, customers, erase
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
from shared.channels import ledger
from shared.embedded.owner import find_owner
from shared.embedded.postgres import Postgres
from shared.settings import SERVICES, load
from tests.support.checker import check
from tests.support.history import Ack, Asked, Traffic
from tests.support.machine import Machine
from tests.support.running import Running


def on(machine: Machine) -> Running:
    """The databases and the web of an installation that `hearback up` started."""
    known = {"HEARBACK_HOME": str(machine.home), "HEARBACK_PORT": str(machine.port)}
    return Running(load(known))


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    machine = Machine()
    try:
        machine.up()
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="module")
def history(machine: Machine) -> Iterator[Asked]:
    """Twelve customers of the installation, all of them asked."""
    running = on(machine)
    asked = Asked(running)
    asked.invite(12)
    yield asked
    running.close()


@pytest.fixture
def elsewhere() -> Iterator[Machine]:
    """Another data folder, with nothing in it."""
    machine = Machine()
    yield machine
    machine.close()


def backed_up(machine: Machine, name: str) -> Path:
    folder = machine.home.parent / name
    done = machine.run("backup", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def ask_one(history: Asked, email: str) -> str:
    """Asks one more customer; returns the message's delivery, which waits for the sender."""
    db = history.running.db("survey")
    with db.transaction() as tx:
        row = Row({"email": email}, {})
        found = customers.upsert(tx, [row], opt_out_fingerprints(history.running.settings))[0]
        program = tx.value("SELECT id FROM program WHERE name = 'Recommend'")
        run = ask.start(tx, program, {"customers": [found.customer_id]}, "test")
    with db.transaction() as tx:
        ask.step(tx, str(run["id"]))
        return str(tx.value("SELECT id FROM delivery WHERE customer_id = %s", (found.customer_id,)))


def arrived(running: Running, delivery: str) -> bool:
    with running.db("log").transaction() as tx:
        return bool(tx.value("SELECT 1 FROM mailbox.message WHERE delivery_id = %s", (delivery,)))


def restored(history: Asked, running: Running) -> Asked:
    """The same customers where a backup was restored, with what of theirs was acknowledged by then."""
    with running.db("survey").transaction() as tx:
        rows = tx.all(
            "SELECT r.customer_id, v.version FROM response_version v JOIN response r ON r.id = response_id"
        )
    kept = {(row["customer_id"], row["version"]) for row in rows}
    acks = [ack for ack in history.acks if (ack.person.id, ack.version) in kept]
    assert {(ack.person.id, ack.version) for ack in acks} == kept, "there is an answer that nobody gave"
    people = {one.id: replace(one, version=0) for one in history.people}
    for ack in acks:
        people[ack.person.id].version = ack.version
    again = Asked(running, people=list(people.values()))
    again.nonces = history.nonces
    again.acks = [Ack(people[ack.person.id], ack.score, ack.comment, ack.version) for ack in acks]
    return again


def test_all_that_was_acknowledged_is_in_the_backup_and_the_loop_goes_on(
    machine: Machine, history: Asked, elsewhere: Machine
) -> None:
    worker = machine.pid("survey-worker")
    with Traffic(history) as traffic:
        traffic.wait_for_more()
        os.kill(worker, signal.SIGSTOP)  # so that events and a message wait
        try:
            waiting = ask_one(history, "waiting@example.com")
            traffic.wait_for_more()
            before = list(history.acks)
            folder = backed_up(machine, "under-traffic")
        finally:
            os.kill(worker, signal.SIGCONT)
        traffic.wait_for_more()
    history.running.wait(lambda: arrived(history.running, waiting), None, "the message to leave after all")

    done = elsewhere.run("restore", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    elsewhere.up()
    running = on(elsewhere)
    again = restored(history, running)
    there = {(ack.person.id, ack.version) for ack in again.acks}
    assert {(ack.person.id, ack.version) for ack in before} <= there
    running.settle()
    check(again)
    again.answer_all()
    running.settle()
    check(again)
    # It has left since the backup, and must not leave once more; a person may decide that it does.
    with running.db("survey").transaction() as tx:
        [uncertain] = ledger.uncertain_ones(tx)
    assert uncertain.id == waiting and uncertain.reason == ledger.RESTORED
    assert not arrived(running, waiting)
    running.close()


@pytest.mark.slow_fault
def test_one_service_put_back_hears_again_what_came_since(machine: Machine, history: Asked) -> None:
    folder = backed_up(machine, "older")
    with Traffic(history) as traffic:
        traffic.wait_for_more()
        refused = machine.run("restore", str(folder), "--only", "followup")
        assert refused.returncode == 1 and "--replace" in refused.stderr
        done = machine.run("restore", str(folder), "--only", "followup", "--replace")
        assert done.returncode == 0, done.stdout + done.stderr
        traffic.wait_for_more()
    history.running.settle()
    check(history)
    history.answer_all()
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_reporting_lost_altogether_is_filled_again_under_traffic(machine: Machine, history: Asked) -> None:
    server = Postgres(machine.home, find_owner(machine.home))
    server.load()
    history.running.db("reporting").close()
    with Traffic(history) as traffic:
        connection = server.connect()
        with connection.cursor() as cur:
            cur.execute("DROP DATABASE reporting WITH (FORCE)")
        connection.close()
        traffic.wait_for_more()
        server.create_databases()
        for command in (("migrate",), ("rebuild", "reporting")):
            done = machine.run(*command)
            assert done.returncode == 0, done.stdout + done.stderr
        traffic.wait_for_more()
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_who_was_erased_since_stays_erased_when_survey_is_put_back(
    machine: Machine, history: Asked, elsewhere: Machine
) -> None:
    ask_one(history, "gone@example.com")
    history.running.settle()
    folder = backed_up(machine, "with-somebody-who-is-erased")
    running = history.running
    with running.db("survey").transaction() as tx:
        id = str(tx.value("SELECT id FROM customer WHERE email = 'gone@example.com'"))
        assert erase.erase(tx, id, opt_out_fingerprints(running.settings))
    running.settle()
    running.db("survey").close()
    done = machine.run("restore", str(folder), "--only", "survey", "--replace")
    assert done.returncode == 0, done.stdout + done.stderr
    running.settle()
    for service in SERVICES:
        with running.db(service).transaction() as tx:
            assert not tx.one("SELECT 1 FROM customer WHERE id = %s", (id,)), service
            assert tx.one("SELECT 1 FROM erased WHERE customer_id = %s", (id,)), service
    check(history)


def test_a_backup_that_was_kept_where_neither_modes_nor_empty_folders_are_is_restored(
    machine: Machine, history: Asked, elsewhere: Machine
) -> None:
    folder = backed_up(machine, "kept-in-a-bucket")
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            (Path(place) / name).chmod(0o644)
        Path(place).chmod(0o755)
        if not os.listdir(place):
            Path(place).rmdir()
    (folder / "postgres" / "standby.signal").touch()  # whatever is put beside
    done = elsewhere.run("restore", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    elsewhere.up()
    running = on(elsewhere)
    check(restored(history, running))
    running.close()


def test_restore_refuses_what_would_do_harm(machine: Machine, history: Asked, elsewhere: Machine) -> None:
    folder = backed_up(machine, "to-be-refused")
    assert folder.stat().st_mode & 0o777 == 0o700

    def refuses(machine: Machine, *words: str, **env: str) -> str:
        done = machine.run(*words, **env)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    assert "is not empty" in refuses(machine, "backup", str(folder))
    assert "in the data folder" in refuses(machine, "backup", str(machine.home / "kept"))
    assert "in the data folder" in refuses(machine, "backup", f"{folder}/../{machine.home.name}/kept")
    assert "a whole disk" in refuses(machine, "backup", "/dev/shm")
    assert "stop it first" in refuses(machine, "restore", str(folder), "--replace")
    assert "holds no backup" in refuses(elsewhere, "restore", str(folder.parent))
    assert "another secret" in refuses(elsewhere, "restore", str(folder), HEARBACK_SECRET="x" * 40)
    url = {"HEARBACK_SURVEY_DATABASE_URL": "postgresql://elsewhere/survey"}
    assert "DATABASE_URL" in refuses(elsewhere, "restore", str(folder), **url)
    assert "not all databases" in refuses(machine, "backup", str(folder.with_name("x")), **url).lower()
    text = (folder / "backup.json").read_text()
    for changed, said in (
        ({"format": 2}, "newer version"),
        ({"postgres": "19"}, "of PostgreSQL 19"),
        ({"tables": {**json.loads(text)["tables"], "survey": "9999"}}, "at 9999"),
        ({"tables": {"surveys": "0001"}}, "is damaged"),
        ({"files": []}, "is damaged"),
        ({"files": {}}, "is damaged"),
        ({"folders": ["../elsewhere"]}, "is damaged"),
    ):
        (folder / "backup.json").write_text(json.dumps({**json.loads(text), **changed}))
        assert said in refuses(elsewhere, "restore", str(folder))
    (folder / "backup.json").write_text(text)
    (folder / "secret").write_text("a secret of the same length, but not it" + "x" * 26)
    assert "is damaged" in refuses(elsewhere, "restore", str(folder))
    assert not (elsewhere.home / "postgres").exists()


def test_a_backup_of_what_does_not_run_is_refused(elsewhere: Machine) -> None:
    done = elsewhere.run("backup", str(elsewhere.home.parent / "kept"))
    assert done.returncode == 1 and "hearback up" in done.stderr
    assert not (elsewhere.home.parent / "kept").exists()
