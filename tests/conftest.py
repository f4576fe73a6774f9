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

_FOLDERS = ("unit", "contract", "integration", "faults", "browser", "bench")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks each test with the folder it lies in, and runs the fast ones first."""
    root = Path(__file__).parent
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
def postgres() -> Iterator[TestPostgres]:
    """The session's PostgreSQL server."""
    server = TestPostgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The session's Kafka broker; whoever stops one makes their own."""
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
