"""`hearback backup` and `restore`, on a real installation under traffic."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.survey.commands import ask, customers, erase, opt_out
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
from shared.channels import ledger
from shared.cli import show
from shared.embedded import backup
from shared.embedded.owner import CannotRunHere, find_owner
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


def ok(machine: Machine, *command: str, **env: str) -> str:
    """Runs a command that succeeds; returns what it said."""
    done = machine.run(*command, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """As by a backup that is being made in there."""
    place = os.open(folder, os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    yield
    os.close(place)


def disconnect(history: Asked) -> None:
    """The test's own connections, which would not survive what follows."""
    for db in history.running.databases.values():
        db.close()


def on_server(machine: Machine, statement: str, database: str = "postgres") -> list[Any]:
    """A statement as the superuser of the installation's PostgreSQL, and its rows."""
    server = Postgres(machine.home, find_owner(machine.home))
    server.load()
    connection = server.connect(database)
    try:
        with connection.cursor() as cur:
            cur.execute(statement)
            return cur.fetchall() if cur.description else []
    finally:
        connection.close()


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
def test_reporting_lost_altogether_is_made_and_filled_again_under_traffic(
    machine: Machine, history: Asked
) -> None:
    disconnect(history)
    with Traffic(history) as traffic:
        for lost in ("DROP DATABASE reporting WITH (FORCE)", "DROP TABLE nps_day"):
            on_server(machine, lost, "postgres" if "DATABASE" in lost else "reporting")
            traffic.wait_for_more()
            for command in (("recount",), ("backup", str(machine.home.parent / "lost"))):
                done = machine.run(*command)
                assert done.returncode == 1 and "hearback rebuild reporting" in done.stderr, done.stderr
            ok(machine, "rebuild", "reporting")
            traffic.wait_for_more()
            assert "all that survey has" in ok(machine, "recount")
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_a_reporting_that_lacks_answers_is_found_by_recount_and_backup(
    machine: Machine, history: Asked
) -> None:
    history.answer(history.people[0])
    history.running.settle()
    on_server(machine, "TRUNCATE response, invitation, nps_day, funnel_day", "reporting")
    done = machine.run("recount")
    assert done.returncode == 1 and "reporting lacks" in done.stderr, done.stdout + done.stderr
    assert json.loads(machine.run("recount", "--json").stdout)["equal"] is False
    done = machine.run("backup", str(machine.home.parent / "lacking"))
    assert done.returncode == 0 and "reporting lacks" in done.stdout, done.stdout + done.stderr
    disconnect(history)
    on_server(machine, "DROP DATABASE reporting WITH (FORCE)")
    assert "hearback rebuild reporting" in machine.up()
    assert machine.run("recount").returncode == 1
    ok(machine, "rebuild", "reporting")
    assert "all that survey has" in ok(machine, "recount")
    history.running.settle()
    check(history)


@pytest.mark.slow_fault
def test_a_service_that_owns_something_is_not_begun_anew_when_its_database_is_lost(
    machine: Machine, history: Asked
) -> None:
    history.answer_all()
    history.running.settle()
    folder = backed_up(machine, "before-the-loss")
    for service in ("followup", "survey"):
        disconnect(history)
        on_server(machine, f"DROP DATABASE {service} WITH (FORCE)")
        if service == "survey":
            machine.run("down")
        done = machine.run("up")
        assert done.returncode == 1, done.stdout
        assert f"restore DIR --only {service}" in done.stderr and "password" not in done.stdout, done.stderr
        if service == "followup":  # the others go on, and say what is wrong
            machine.wait_for(lambda: "restore DIR --only followup" in machine.run("status").stdout, 20)
        ok(machine, "restore", str(folder), "--only", service, "--replace")
        machine.up()
        history.running.settle()
        check(history)


@pytest.mark.slow_fault
def test_a_restore_of_one_service_killed_at_its_last_step_is_ended_by_up_or_by_itself(
    machine: Machine, history: Asked
) -> None:
    history.answer_all()
    history.running.settle()
    folder = backed_up(machine, "to-be-killed")
    for command in (("up",), ("restore", str(folder), "--only", "followup", "--replace")):
        disconnect(history)
        control = [sys.executable, "-m", "supervisor.supervisorctl"]
        settings = str(machine.home / "run" / "supervisord.conf")
        subprocess.run([*control, "-c", settings, "stop", "followup-worker"], check=True)
        on_server(machine, "ALTER DATABASE followup ALLOW_CONNECTIONS false")
        on_server(
            machine,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'followup'",
        )
        on_server(machine, "CREATE DATABASE followup_restored TEMPLATE template0")
        ok(machine, *command)
        assert on_server(machine, "SELECT 1 FROM pg_database WHERE datname LIKE '%_restored'") == []
        history.running.settle()
        check(history)


@pytest.mark.slow_fault
def test_a_command_with_another_secret_than_what_runs_makes_no_backup(
    machine: Machine, history: Asked
) -> None:
    old = (machine.home / "secret").read_text().strip()
    changed = {"HEARBACK_SECRET": "n" * 40, "HEARBACK_PREVIOUS_SECRET": old}
    disconnect(history)
    machine.up(**changed)
    folder = str(machine.home.parent / "while-it-changes")
    for command in (("backup", folder), ("rebuild", "reporting")):
        done = machine.run(*command)
        assert done.returncode == 1 and "another secret" in done.stderr, done.stdout + done.stderr
    ok(machine, "backup", folder, **changed)
    assert (Path(folder) / "secret").read_text().strip() == "n" * 40
    machine.up()
    done = machine.run("restore", folder, "--only", "reporting", "--replace", HEARBACK_SECRET="n" * 40)
    assert done.returncode == 1 and "another secret" in done.stderr, done.stdout + done.stderr


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
    # A killed backup has left something, and the name is a link to a folder that is not there yet.
    left = machine.home.parent / "to-be-refused.unfinished" / "postgres"
    left.mkdir(parents=True)
    (machine.home.parent / "link").symlink_to("to-be-refused")
    folder = backed_up(machine, "link").resolve()
    assert folder.name == "to-be-refused" and folder.stat().st_mode & 0o777 == 0o700
    assert not left.parent.exists()

    def refuses(machine: Machine, *words: str, **env: str) -> str:
        done = machine.run(*words, **env)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    assert "is not empty" in refuses(machine, "backup", str(folder))
    assert "in the data folder" in refuses(machine, "backup", str(machine.home / "kept"))
    assert "in the data folder" in refuses(machine, "backup", f"{folder}/../{machine.home.name}/kept")
    assert "a whole disk" in refuses(machine, "backup", "/dev/shm")
    left = folder.with_name("again.unfinished") / "postgres"
    left.mkdir(parents=True)
    with locked(left.parent):
        assert "another backup" in refuses(machine, "backup", str(folder.with_name("again")))
    (left.parent / "somebody's.txt").touch()
    assert "Then remove it" in refuses(machine, "backup", str(folder.with_name("again")))
    shutil.rmtree(left.parent)
    empty = machine.run("backup", "")
    assert empty.returncode == 2 and "name a folder" in empty.stderr
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
    assert "is damaged: this" in refuses(elsewhere, "restore", str(folder))
    (folder / "postgres.json").unlink()
    assert "1 more of its" in refuses(elsewhere, "restore", str(folder))
    assert not (elsewhere.home / "postgres").exists()


def test_a_file_system_where_files_cannot_be_another_users_is_named_and_nothing_stays(
    machine: Machine, history: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", refused)
    target = machine.home.parent / "on-a-share"
    with pytest.raises(CannotRunHere, match="belong to another user"):
        backup.make(history.running.settings, target, show.Steps(quiet=True))
    assert not list(target.parent.glob("on-a-share*"))


def test_a_backup_of_what_does_not_run_is_refused(elsewhere: Machine) -> None:
    done = elsewhere.run("backup", str(elsewhere.home.parent / "kept"))
    assert done.returncode == 1 and "hearback up" in done.stderr
    assert not (elsewhere.home.parent / "kept").exists()


# From here on answers are taken back for good.


@pytest.mark.slow_fault
def test_who_opted_out_since_stays_opted_out_and_lost_answers_are_told_when_survey_is_put_back(
    machine: Machine, history: Asked
) -> None:
    ask_one(history, "stop@example.com")
    history.running.settle()
    folder = backed_up(machine, "before-the-stop")
    running = history.running
    known = opt_out_fingerprints(running.settings)
    with running.db("survey").transaction() as tx:
        row = customers.upsert(tx, [Row({"email": "new@example.com"}, {})], known)[0]
        for id in (
            tx.value("SELECT id FROM customer WHERE email = 'stop@example.com'"),
            row.customer_id,
        ):
            assert opt_out.opt_out(tx, str(id), "email", "link", known)
    history.answer(history.people[0])
    running.settle()
    disconnect(history)
    said = ok(machine, "restore", str(folder), "--only", "survey", "--replace")
    assert "reporting knew of 1 answers" in said and "0 erasures and 2 opt-outs" in said, said
    running.settle()
    with running.db("survey").transaction() as tx:
        assert tx.value("SELECT email_opt_out_at FROM customer WHERE email = 'stop@example.com'")
        digest = known("email", "new@example.com")[-1]
        assert tx.one("SELECT 1 FROM opt_out WHERE address_hash = %s", (digest,))


@pytest.mark.slow_fault
def test_services_put_back_one_after_another_know_nothing_of_the_life_that_was_taken_back(
    machine: Machine, history: Asked
) -> None:
    history = restored(history, history.running)
    history.answer_all()
    history.running.settle()
    folder = backed_up(machine, "for-one-after-another")
    with history.running.db("followup").transaction() as tx:
        tx.execute("DELETE FROM task")  # so that each unhappy answer since then opens one
    for person in history.people:
        history.answer(person, 2)
    history.running.settle()
    for service in ("followup", "reporting", "survey"):
        disconnect(history)
        done = machine.run("restore", str(folder), "--only", service, "--replace")
        assert done.returncode == 0, done.stdout + done.stderr
        history.running.settle()
        tasks = {}
        for name, table in (("followup", "task"), ("reporting", "task"), ("survey", "task_replica")):
            with history.running.db(name).transaction() as tx:
                tasks[name] = {row["id"] for row in tx.all(f"SELECT id FROM {table}")}
        assert tasks["reporting"] == tasks["survey"] == tasks["followup"], service
    assert "all that survey has" in ok(machine, "recount")
