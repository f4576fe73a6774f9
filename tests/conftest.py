"""What all tests stand on: one PostgreSQL per session, fresh databases and a still clock per test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.clock import ManualClock
from shared.db import Database
from shared.ids import SystemIds
from shared.provider_settings import PREFIXES
from shared.settings import Settings
from tests.support.kafka import Broker
from tests.support.postgres import FreshDatabases, TestPostgres

# No setting of the person who runs the tests may change what they say.
for _name in [name for name in os.environ if name.startswith(PREFIXES) and name != "HEARBACK_NO_SKIPS"]:
    del os.environ[_name]

_FOLDERS = ("unit", "contract", "integration", "faults", "browser", "bench", "deploy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--containers",
        action="store_true",
        help="PostgreSQL and Kafka from their images, for the tests that need one; and the whole product.",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks each test with the folder it lies in, and runs the fast ones first.

    With `--containers` what stands on neither PostgreSQL nor Kafka would only be run twice; without it
    there may be no engine for what is deployed.
    """
    root = Path(__file__).parent
    on_containers = config.getoption("--containers")

    def wanted(item: pytest.Item) -> bool:
        deploys = item.path.parent.name == "deploy"
        if not on_containers:
            return not deploys
        return deploys or bool({"postgres", "broker"} & set(getattr(item, "fixturenames", ())))

    if left := [item for item in items if not wanted(item)]:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if wanted(item)]
    items.sort(key=lambda item: _FOLDERS.index(item.path.relative_to(root).parts[0]))
    for item in items:
        folder = item.path.relative_to(root).parts[0]
        if folder in _FOLDERS:
            item.add_marker(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("HEARBACK_NO_SKIPS"):
        for report in terminalreporter.stats.get("skipped", []):
            terminalreporter.write_line(
                f"skipped, which is forbidden here: {report.nodeid} {report.longrepr}", red=True
            )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With HEARBACK_NO_SKIPS a skipped test fails the run: what was not tested is not known to work."""
    if not os.environ.get("HEARBACK_NO_SKIPS"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if isinstance(reporter, pytest.TerminalReporter) and (
        reporter.stats.get("skipped") or reporter.stats.get("xfailed")
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def postgres(pytestconfig: pytest.Config) -> Iterator[TestPostgres]:
    """The session's PostgreSQL server."""
    if pytestconfig.getoption("--containers"):
        from tests.support.containers import PostgresServer

        server = TestPostgres(PostgresServer())
    else:
        server = TestPostgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def broker(pytestconfig: pytest.Config) -> Iterator[Broker]:
    """The session's Kafka broker; whoever stops one makes their own."""
    if pytestconfig.getoption("--containers"):
        from tests.support.containers import ContainerBroker

        started = ContainerBroker().start()
    else:
        started = Broker().start()
    yield started
    started.close()


@pytest.fixture
def database_urls(postgres: TestPostgres) -> Iterator[FreshDatabases]:
    urls = FreshDatabases(postgres)
    yield urls
    urls.drop()


@pytest.fixture
def settings(database_urls: FreshDatabases, tmp_path: Path) -> Settings:
    """Settings of one test: its own empty databases (made when first used) and data folder."""
    return Settings(
        home=tmp_path, secret="a secret of the tests, 32 characters or more", database_urls=database_urls
    )


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands at a Tuesday noon-ish in working hours: 2026-03-03 10:00 UTC."""
    return ManualClock(datetime(2026, 3, 3, 10, 0, tzinfo=UTC))


@pytest.fixture
def ids() -> SystemIds:
    return SystemIds()


@pytest.fixture
def database(settings: Settings, clock: ManualClock, ids: SystemIds) -> Iterator[Callable[[str], Database]]:
    """Makes the `Database` of a service; asked twice it gives the same one."""
    made: dict[str, Database] = {}

    def make(name: str) -> Database:
        if name not in made:
            made[name] = Database(settings.database_urls[name], clock, ids, name=name)
        return made[name]

    yield make
    for db in made.values():
        db.close()
