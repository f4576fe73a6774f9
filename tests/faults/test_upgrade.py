"""A rolling upgrade: two versions side by side under traffic, and nothing acknowledged is lost or doubled."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from shared.migrate import head
from shared.roles import read_report
from shared.settings import SERVICES, KafkaSettings
from tests.faults.conftest import settings_for
from tests.support import trial, upgrade
from tests.support.checker import check
from tests.support.history import Asked
from tests.support.postgres import TestPostgres
from tests.support.running import ROOT, Running
from tests.support.upgrade import Traffic, ready, readyz

SECRET = "a secret of the tests, 32 characters or more"
PEOPLE = 8


@pytest.fixture
def urls(postgres: TestPostgres) -> Iterator[dict[str, str]]:
    made = upgrade.databases(postgres)
    yield made
    for url in made.values():
        postgres.drop(url)


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow_fault)])
def kafka(request: pytest.FixtureRequest) -> KafkaSettings | None:
    return settings_for(request.getfixturevalue("broker")) if request.param == "kafka" else None


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where another version of the program lies, readable by the user that everything runs as."""
    made = Path(tempfile.mkdtemp(prefix="hearback-program-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def start(running: Running) -> None:
    running.web()
    running.workers()


def in_use(old: Running) -> Asked:
    """The old version serves: its tables are there, everybody was asked."""
    old.command("migrate")
    start(old)
    asked = Asked(old)
    asked.invite(PEOPLE)
    return asked


def columns(url: str) -> set[str]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cur:
            cur.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = 'response_version'"
            )
            return {row[0] for row in cur.fetchall()}
    finally:
        connection.close()


def the_same_form_to_both(asked: Asked, one: Running, other: Running) -> None:
    """A form that is sent again, to the other version, is known there: it is no second answer."""
    for person, (first, second) in zip(asked.people, ((one, other), (other, one)), strict=False):
        shown, nonce = person.version, secrets.token_urlsafe(12)
        asked.where = lambda url=first.url: url
        ack = asked.answer(person, 4, "sent twice", nonce=nonce)
        person.version = shown
        asked.where = lambda url=second.url: url
        assert asked.answer(person, 4, "sent twice", nonce=nonce) == ack


def test_fault_22_the_version_before_and_this_one_serve_side_by_side(
    urls: dict[str, str], folder: Path, kafka: KafkaSettings | None
) -> None:
    before = upgrade.previous(folder)
    if before is None:
        pytest.skip("no version before this one: there is no history here (a shallow clone, an archive)")
    trial.now.said.append(f"the version before is {before}")
    with (
        upgrade.version(folder, urls, SECRET, kafka) as old,
        upgrade.version(ROOT, urls, SECRET, kafka) as new,
    ):
        asked = in_use(old)
        with Traffic(asked, [old.url]) as traffic:
            # The new one meets the tables of the one before: it is ready, or it waits and says for what.
            start(new)
            status, body = readyz(new, "survey")
            assert status == 200 or "hearback migrate" in body["problem"], body
            traffic.go_on()
            new.command("migrate", "--expand")
            new.wait(lambda: ready(new), None, "the new version to be ready")
            traffic.urls.append(new.url)
            traffic.go_on()
            if "schema_floor" in (folder / "shared/migrate.py").read_text():
                assert readyz(old, "survey")[0] == 200
        the_same_form_to_both(asked, old, new)
        with Traffic(asked, [old.url, new.url]) as traffic:
            traffic.go_on()
            for number, process in enumerate(old.processes):
                traffic.urls[:] = [new.url] if process.name == "web" else traffic.urls
                process.stop() if number % 2 else process.kill()
                traffic.go_on(4)
        new.command("migrate", "--wait", "80")
        new.settle()
        asked.running = new
        check(asked)


def test_fault_22_a_made_up_next_version_expands_and_contracts_under_traffic(
    urls: dict[str, str], folder: Path, kafka: KafkaSettings | None
) -> None:
    expand, contract = upgrade.following(folder)
    with (
        upgrade.version(ROOT, urls, SECRET, kafka) as old,
        upgrade.version(folder, urls, SECRET, kafka) as new,
    ):
        asked = in_use(old)
        with Traffic(asked, [old.url]) as traffic:
            traffic.go_on()
            # The new version on the old tables: unready, with a sentence; it does nothing, and loses nothing.
            start(new)
            status, body = readyz(new, "survey")
            assert status == 503 and "hearback migrate" in body["problem"], body
            assert readyz(new, "followup")[0] == 200 or "not asked" in readyz(new, "followup")[1]["problem"]
            new.wait(
                lambda: "hearback migrate" in _worker_says(new), None, "its worker to say what it waits for"
            )
            traffic.go_on()

            said = new.command("migrate", "--expand").stdout
            assert f"survey: migrated, at {expand}" in said and contract in said
            new.wait(lambda: ready(new), None, "the new version to go on by itself")
            traffic.urls.append(new.url)
            traffic.go_on()
            # The old version on the new tables: it is ready, and it serves.
            assert all(readyz(old, service)[0] == 200 for service in SERVICES)
            assert {"nonce", "form_key"} <= columns(urls["survey"])

            refused = new.command("migrate", check=False)
            assert refused.returncode == 1, refused.stdout
            assert (
                f"Migration {contract} of survey" in refused.stderr and "hearback migrate" in refused.stderr
            )
            assert f"tables {head('survey')}" in refused.stderr and "survey relay consumer" in refused.stderr
            assert "nonce" in columns(urls["survey"])
            traffic.go_on()
        the_same_form_to_both(asked, old, new)
        with Traffic(asked, [old.url, new.url]) as traffic:
            traffic.go_on()
            traffic.urls[:] = [new.url]
            for process in old.processes:
                process.stop()
            traffic.go_on()
            assert "survey: migrated" in new.command("migrate").stdout
            assert "nonce" not in columns(urls["survey"])
            traffic.go_on()
            assert "survey: up to date" in new.command("migrate").stdout
        new.settle()
        asked.running = new
        check(asked)

        # The old version, started once more, does not touch tables that have lost what it uses.
        late = old.role("survey")
        old.wait(
            lambda: "has lost what it uses" in _worker_says(old), late, "the old version to say why it waits"
        )
        assert late.alive
        start_again = old.command("migrate", check=False)
        assert start_again.returncode == 1 and "was made by a newer one" in start_again.stderr


def _worker_says(running: Running) -> str:
    report = read_report(running.settings.home, "survey")
    return " ".join(role["error"] for role in report["roles"].values()) if report else ""
