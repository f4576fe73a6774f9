"""`hearback up` and its companions, on a real installation: started, killed, started again, refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from services.survey.commands import customers
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
from shared.clock import SystemClock
from shared.db import Database
from shared.ids import SystemIds
from shared.log.kafka import KafkaLog
from shared.settings import load
from tests.support.kafka import Broker
from tests.support.machine import Machine

PROGRAMS = {"postgres", "survey-worker", "followup-worker", "reporting-worker", "web"}


def seconds(quiet: float) -> float:
    """How long something may take that takes `quiet` seconds while nothing else wants the processors."""
    return quiet * max(1.0, 3 * os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def first_words() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def machine(first_words: dict[str, str]) -> Iterator[Machine]:
    """One installation for all tests of this file, brought up once."""
    machine = Machine()
    try:
        first_words["up"] = machine.up()
        yield machine
    finally:
        machine.close()


@pytest.fixture
def up(machine: Machine) -> Machine:
    """The installation, running (an earlier test may have stopped it)."""
    if not machine.status()["ready"]:
        machine.up()
    return machine


@pytest.fixture
def nowhere() -> Iterator[Machine]:
    """A folder in which nothing was ever started."""
    machine = Machine()
    yield machine
    machine.close()


def test_first_start_tells_address_password_and_mailbox(up: Machine, first_words: dict[str, str]) -> None:
    said = first_words["up"]
    assert up.url in said and f"{up.url}/mailbox/" in said
    assert "admin" in said and "one-time password" in said


def test_every_part_is_ready_when_up_returns(up: Machine) -> None:
    status = up.status()
    assert status["ready"], status
    assert {part["name"] for part in status["parts"]} >= PROGRAMS
    for service in ("survey", "followup", "reporting"):
        assert up.get(f"/{service}/readyz") == 200
    assert up.get("/mailbox/") == 200


def test_the_root_leads_a_stranger_to_the_login(up: Machine) -> None:
    assert up.get("/") == 303
    assert up.get("/followup/login") == 200
    assert up.get("/no-such-page") == 404


def test_doctor_finds_nothing_wrong_and_status_agrees(up: Machine) -> None:
    done = up.run("doctor")
    assert done.returncode == 0, done.stdout
    assert "✗" not in done.stdout
    assert all(part["ok"] for part in json.loads(up.run("doctor", "--json").stdout)["parts"])


def test_a_second_start_is_quick_and_tells_no_password(up: Machine) -> None:
    began = time.monotonic()
    said = up.up()
    assert time.monotonic() - began < seconds(5)
    assert "password" not in said and up.url in said


def test_down_leaves_nothing_behind_and_a_start_after_it_is_quick(up: Machine) -> None:
    assert up.run("down").returncode == 0
    assert up.processes() == []
    again = up.run("down")
    assert again.returncode == 0 and "Nothing was running" in again.stdout
    assert up.run("status").returncode == 1 and up.run("doctor").returncode == 1
    began = time.monotonic()
    said = up.up()
    assert time.monotonic() - began < seconds(5)
    assert "password" not in said


def test_everything_listens_on_loopback_only(up: Machine) -> None:
    pids = {process.pid for process in up.processes()}
    listening = [
        tuple(found.laddr)[:1]
        for found in psutil.net_connections("inet")
        if found.status == "LISTEN" and found.pid in pids
    ]
    assert len(listening) >= 2 and set(listening) == {("127.0.0.1",)}


def test_secrets_are_readable_by_their_owner_only(up: Machine) -> None:
    assert up.home.stat().st_mode & 0o077 == 0
    for name in ("secret", "postgres.json"):
        assert (up.home / name).stat().st_mode & 0o077 == 0
    if os.geteuid() == 0:
        assert up.home.stat().st_uid != 0
        assert all(process.uids().real != 0 for process in up.processes())


def test_two_starts_at_once_both_succeed(up: Machine) -> None:
    up.run("down")
    both = [up.start("up"), up.start("up")]
    said = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert up.status()["ready"]
    assert len([process for process in up.processes() if "supervisord" in " ".join(process.cmdline())]) == 1


def test_killed_all_at_once_it_comes_up_again(up: Machine) -> None:
    assert up.kill_everything() > len(PROGRAMS)
    up.up()
    assert up.status()["ready"]


def test_a_killed_process_manager_leaves_no_second_set_of_processes(up: Machine) -> None:
    before = {process.pid for process in up.processes()}
    manager = int((up.home / "run" / "supervisord.pid").read_text())
    os.kill(manager, signal.SIGKILL)
    up.wait_for(lambda: not psutil.pid_exists(manager))
    assert up.get("/survey/readyz") == 200  # what it kept goes on without it, and nobody takes its log lines
    assert [up.get("/no-such-page") for _ in range(3)] == [404] * 3
    problems = {part["name"]: part["problem"] for part in up.status()["parts"] if not part["ok"]}
    assert problems.keys() == {"process manager"} and "hearback up" in problems["process manager"]
    up.up()
    assert before.isdisjoint(process.pid for process in up.processes())
    assert len([process for process in up.processes() if "supervisord" in " ".join(process.cmdline())]) == 1


def test_a_killed_postmaster_is_back_unaided_and_the_services_find_it(up: Machine) -> None:
    os.kill(up.pid("postgres"), signal.SIGKILL)
    up.wait_for(lambda: up.get("/survey/readyz") != 200)
    up.wait_for(lambda: all(up.get(f"/{name}/readyz") == 200 for name in ("survey", "followup", "reporting")))
    up.wait_for(lambda: up.status()["ready"])


@pytest.mark.parametrize("program", ["web", "survey-worker"])
def test_a_killed_process_is_back_unaided(up: Machine, program: str) -> None:
    before = up.pid(program)
    os.kill(before, signal.SIGKILL)
    up.wait_for(lambda: up.status()["ready"] and up.pid(program) != before)


def test_stale_files_of_a_crash_stop_nobody(up: Machine) -> None:
    """After a reboot the numbers in pid files belong to others: to this very test, here."""
    up.kill_everything()
    for name in ("supervisord.pid", "web.pid", "worker-survey.pid"):
        (up.home / "run" / name).write_text(f"{os.getpid()}\n")
    postmaster = up.home / "postgres" / "postmaster.pid"
    lines = postmaster.read_text().splitlines()
    postmaster.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    (up.home / "run" / "supervisor.sock").unlink(missing_ok=True)
    (up.home / "run" / "supervisor.sock").write_text("")
    up.up()
    assert up.status()["ready"]


def test_postgres_takes_another_port_when_its_own_is_taken(up: Machine) -> None:
    up.run("down")
    port = json.loads((up.home / "postgres.json").read_text())["port"]
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        up.up()
    assert json.loads((up.home / "postgres.json").read_text())["port"] != port


def test_changed_settings_start_it_anew(up: Machine) -> None:
    up.up(HEARBACK_PUBLIC_URL="https://feedback.example.org")
    assert "https://feedback.example.org" in up.up(HEARBACK_PUBLIC_URL="https://feedback.example.org")
    assert up.url in up.up()


def test_the_logs_can_be_read_and_followed(up: Machine) -> None:
    assert "database system is ready" in up.run("logs", "-n", "50", "postgres").stdout
    unknown = up.run("logs", "nobody")
    assert unknown.returncode == 1 and "There is no log of nobody" in unknown.stderr
    following = up.start("logs", "-f", "-n", "0", "postgres")
    heard = threading.Event()

    def listen() -> None:
        assert following.stdout is not None
        for line in following.stdout:
            if "permission denied" in line:
                heard.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        known = json.loads((up.home / "postgres.json").read_text())
        until = time.monotonic() + seconds(20)
        while not heard.wait(0.5) and time.monotonic() < until:
            with pytest.raises(psycopg2.OperationalError):
                psycopg2.connect(
                    f"postgresql://survey:{known['passwords']['survey']}@127.0.0.1:{known['port']}/followup"
                )
        assert heard.is_set()
    finally:
        following.kill()
        listener.join()
        following.communicate()


def test_says_which_port_is_taken_by_whom_and_how_to_choose_another(nowhere: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", nowhere.port))
        taken.listen()
        done = nowhere.run("up")
    assert done.returncode == 1
    assert f"Port {nowhere.port}" in done.stderr and "HEARBACK_PORT=" in done.stderr
    assert f"(process {os.getpid()})" in done.stderr or os.geteuid() == 0
    assert "Traceback" not in done.stderr
    assert nowhere.processes() == []


def test_says_that_the_data_folder_cannot_be_written(nowhere: Machine) -> None:
    in_the_way = nowhere.home.parent / "file"
    in_the_way.write_text("")
    done = nowhere.run("up", HEARBACK_HOME=str(in_the_way / "var"))
    assert done.returncode == 1
    assert "cannot be written" in done.stderr and "HEARBACK_HOME" in done.stderr


@pytest.mark.parametrize("command", ["up", "doctor"])
def test_refuses_a_data_folder_of_a_newer_version(nowhere: Machine, command: str) -> None:
    nowhere.home.mkdir()
    (nowhere.home / "format.json").write_text('{"format": 99}')
    done = nowhere.run(command)
    assert done.returncode == 1
    assert "newer version" in done.stdout + done.stderr
    assert sorted(path.name for path in nowhere.home.iterdir()) == ["format.json"]


def test_a_path_too_long_for_a_socket_is_no_hindrance(tmp_path: Path) -> None:
    from shared.embedded.supervisor import socket_path

    deep = tmp_path / ("deep" * 20) / ("deeper" * 10)
    assert len(os.fsencode(socket_path(deep))) < 104
    assert socket_path(deep) != socket_path(deep / "other")
    assert socket_path(Path("/srv/hearback")) == Path("/srv/hearback/run/supervisor.sock")


def test_a_wrong_setting_is_named(nowhere: Machine) -> None:
    done = nowhere.run("up", HEARBACK_PORT="eighty")
    assert done.returncode == 1 and "HEARBACK_PORT" in done.stderr
    assert "Traceback" not in done.stderr
    assert nowhere.processes() == []


def test_commands_that_need_an_installation_say_so(nowhere: Machine) -> None:
    for command in (["status"], ["doctor"], ["migrate"], ["rebuild", "reporting"], ["logs"]):
        done = nowhere.run(*command)
        assert done.returncode == 1, command
        assert "hearback up" in done.stdout + done.stderr, command
        assert "Traceback" not in done.stderr
    assert not nowhere.home.exists()


def test_another_log_is_refused_while_events_are_unread_and_taken_once_they_are_read(
    nowhere: Machine, broker: Broker
) -> None:
    brokers = {"HEARBACK_KAFKA_BOOTSTRAP": broker.bootstrap, "HEARBACK_KAFKA_PREFIX": "up."}
    nowhere.up(**brokers)
    settings = load({"HEARBACK_HOME": str(nowhere.home)})
    urls = settings.database_urls
    before = {name: nowhere.pid(name) for name in PROGRAMS}
    reader = psycopg2.connect(urls["followup"])
    try:
        with reader.cursor() as cur:
            cur.execute("LOCK TABLE inbox IN ACCESS EXCLUSIVE MODE")  # followup cannot read now
        db = Database(urls["survey"], SystemClock(), SystemIds(), name="test")
        with db.transaction() as tx:
            customers.upsert(tx, [Row({"email": "ada@example.com"})], opt_out_fingerprints(settings))
        db.close()
        refused = nowhere.run("up", HEARBACK_LOG="kafka", **brokers)
    finally:
        reader.close()
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "HEARBACK_LOG is kafka, but events are on the embedded log" in refused.stderr
    assert "followup has 1 to read" in refused.stderr
    assert "hearback log move --to kafka" in refused.stderr
    assert {name: nowhere.pid(name) for name in PROGRAMS} == before
    nowhere.wait_for(lambda: nowhere.status()["ready"])

    nowhere.up(HEARBACK_LOG="kafka", **brokers)
    assert nowhere.run("log", "topics", **brokers).returncode == 0
    lags = json.loads(nowhere.run("log", "lag", "--json", **brokers).stdout)
    assert {lag["consumer"] for lag in lags} == {"survey", "followup", "reporting"}
    log = KafkaLog(broker.settings("up."))
    assert {lag.consumer for lag in log.lag()} == {"survey", "followup", "reporting"}
    log.close()
