"""Faults 13 and 14 on a whole `hearback up`: PostgreSQL or the process manager killed, the disk full."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import psycopg2
import pytest
import urllib3

from shared.channels.sender import HANDS
from shared.embedded.owner import Owner
from shared.embedded.postgres import Postgres
from shared.settings import LOGS, SERVICES, load
from tests.faults.conftest import PEOPLE, settings_for
from tests.support import trial
from tests.support.checker import check
from tests.support.disk import NoDisk, SmallDisk
from tests.support.history import Asked, Person, Traffic
from tests.support.machine import Machine
from tests.support.running import Running, brokers
from tests.support.slow_provider import SlowProvider, slow_provider

pytestmark = pytest.mark.slow_fault


@contextlib.contextmanager
def asked(machine: Machine, home: Path, provider: SlowProvider) -> Iterator[Asked]:
    """Everybody of an installation that runs is asked; `home` is where this process sees its data folder."""
    environ = {"HEARBACK_HOME": str(home), "HEARBACK_PORT": str(machine.port), **machine.env}
    installation = Running(load(environ))
    try:
        made = Asked(installation, taken=provider.messages)
        made.invite(PEOPLE)
        installation.settle()
        yield made
    finally:
        installation.close()


@pytest.fixture(scope="module", params=LOGS)
def log(request: pytest.FixtureRequest) -> Callable[[], dict[str, str]]:
    """What tells an installation its log: nothing, or a broker's topics that no other one has."""
    if request.param == "embedded":
        return dict
    broker = request.getfixturevalue("broker")
    return lambda: {"HEARBACK_LOG": "kafka", **brokers(settings_for(broker))}


@pytest.fixture(scope="module")
def provider(log: object) -> Iterator[SlowProvider]:
    """Takes the messages, whatever becomes of PostgreSQL, where the mailbox is as well."""
    with slow_provider() as made:
        yield made


@pytest.fixture(scope="module")
def machine(log: Callable[[], dict[str, str]], provider: SlowProvider) -> Iterator[Machine]:
    machine = Machine(env={"HEARBACK_MAILBOX_URL": provider.url, **log()})
    try:
        machine.up()
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="module")
def history(machine: Machine, provider: SlowProvider) -> Iterator[Asked]:
    with asked(machine, machine.home, provider) as made:
        yield made


@contextlib.contextmanager
def _crowd(history: Asked, people: Sequence[Person] = (), parts: int = 2) -> Iterator[list[Traffic]]:
    """They answer all the time, some at once; whoever is not heard tries again."""
    people = people or history.people
    with ExitStack() as crowd:
        yield [
            crowd.enter_context(Traffic(history, people[part::parts], patient=True)) for part in range(parts)
        ]


def _connect_again(history: Asked) -> None:
    for db in history.running.databases.values():
        db.close()  # ours, which broke as well


def _settled(history: Asked) -> None:
    _connect_again(history)
    history.running.settle()
    check(history)


def test_fault_13_a_postmaster_killed_under_load_is_back_unaided(
    machine: Machine, history: Asked, provider: SlowProvider
) -> None:
    with _crowd(history) as crowd:
        for _ in range(3):
            crowd[0].wait_for_more()
            before = machine.pid("postgres")
            with provider.holds(history, 20):
                refused = history.refused
                os.kill(before, signal.SIGKILL)
                trial.over()
                machine.wait_for(lambda: history.refused > refused)  # noqa: B023 - waited for at once
            crowd[0].wait_for_more()
            assert machine.pid("postgres") != before
            _connect_again(history)
    machine.wait_for(lambda: machine.status()["ready"])
    _settled(history)
    history.told(3 * HANDS)
    history.collect()


def problems(machine: Machine) -> dict[str, str]:
    """The parts that `hearback status` does not find well, and what it says of them."""
    return {part["name"]: part["problem"] for part in machine.status()["parts"] if not part["ok"]}


def test_fault_13_the_process_manager_is_killed_and_a_new_start_goes_on(
    machine: Machine, history: Asked
) -> None:
    before = {process.pid for process in machine.processes()}
    with _crowd(history) as crowd:
        crowd[0].wait_for_more()
        manager = int((machine.home / "run" / "supervisord.pid").read_text())
        os.kill(manager, signal.SIGKILL)
        machine.wait_for(lambda: not psutil.pid_exists(manager))
        crowd[0].wait_for_more()  # what it kept goes on without it
        # All of it is well but what was killed, as soon as each has answered.
        machine.wait_for(lambda: problems(machine).keys() == {"process manager"})
        assert "hearback up" in problems(machine)["process manager"]
        status = machine.status()
        assert not status["ready"]
        assert {f"{name} web" for name in SERVICES} <= {part["name"] for part in status["parts"]}
        machine.up()
        crowd[0].wait_for_more()
    assert before.isdisjoint(process.pid for process in machine.processes())
    _settled(history)
    assert machine.status()["ready"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    home = tmp_path / "disk"
    home.mkdir()
    try:
        made = SmallDisk(home, 400)
    except NoDisk as error:
        pytest.skip(f"nobody may mount a small file system here: {error}")
    yield made
    made.close()


def test_fault_14_a_full_disk_is_said_and_all_goes_on_when_there_is_room(
    disk: SmallDisk, log: Callable[[], dict[str, str]]
) -> None:
    with slow_provider() as provider:
        env = {"HEARBACK_MAILBOX_URL": provider.url, **log()}
        machine = Machine(home=disk.at / "here" / "var", env=env, prefix=disk.prefix)
        try:
            machine.up()
            with asked(machine, disk.path / "here" / "var", provider) as history:
                _fill_up(machine, history, disk, provider)
        finally:
            machine.close()


def _fill_up(machine: Machine, history: Asked, disk: SmallDisk, provider: SlowProvider) -> None:
    *others, author = history.people
    http = urllib3.PoolManager(timeout=20, retries=False)
    said: list[tuple[int, str, str]] = []

    def refused() -> bool:
        """Whether a long answer is refused now; one that is not counts as all others do."""
        form = history.form(author, comment=" ".join(["the same again"] * 120))
        reply = http.request(
            "POST",
            f"{machine.url}/a/{author.token}",
            fields=form,
            encode_multipart=False,
            headers={"Accept": "application/json"},
        )
        if reply.status == 200:
            history.acknowledged(author, form, reply.json())
            return False
        said.append((reply.status, reply.headers.get("Retry-After", ""), reply.json().get("detail", "")))
        return True

    with _crowd(history, others) as crowd:
        crowd[0].wait_for_more()
        with provider.holds(history, 20):
            ballast = disk.fill()
            machine.wait_for(refused)
        status = {part["name"]: part["problem"] for part in machine.status()["parts"]}
        assert "is full" in status["disk"] and "make room" in status["disk"], status
        # The logs are on that disk as well: what still has room in one of them is all there can be.
        logs = "".join(path.read_text() for path in (disk.path / "here/var/log").glob("*.log"))
        assert "disk is full: make room" in logs or "No space left on device" in logs
        assert any("disk" in words and "full" in words for _, _, words in said), said
        # There is no room for its next segment of the WAL, either: PostgreSQL dies, and again at each start.
        with contextlib.suppress(psycopg2.Error):
            while True:
                _superuser(history, "SELECT pg_switch_wal(), pg_logical_emit_message(false, 'test', 'more')")
        machine.wait_for(lambda: refused() and "does not answer" in said[-1][2])
        ballast.unlink()
        trial.over()
        for one in crowd:
            one.wait_for_more()
    machine.wait_for(lambda: machine.status()["ready"])
    assert {status for status, _, _ in said} == {503} and all(again and words for _, again, words in said), (
        said
    )
    _connect_again(history)
    history.running.settle()
    history.told(HANDS)
    history.collect()
    with history.running.db("survey").transaction() as tx:
        kept = tx.all(
            "SELECT v.version FROM response_version v JOIN response r ON r.id = v.response_id"
            " WHERE r.customer_id = %s",
            (author.id,),
        )
    saved = {row["version"] for row in kept} - {ack.version for ack in history.acks if ack.person is author}
    unknown = sum("Nothing was changed" not in words for _, _, words in said)
    assert len(saved) <= unknown, (saved, said)
    author.version = max((row["version"] for row in kept), default=0)
    history.answer(author)
    _settled(history)


def _superuser(history: Asked, sql: str) -> None:
    server = Postgres(history.running.settings.home, Owner(os.geteuid(), os.getegid()))
    server.load()
    connection = server.connect()
    try:
        connection.cursor().execute(sql)
    finally:
        connection.close()
