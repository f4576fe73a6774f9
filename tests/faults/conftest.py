"""An installation per file, log and seed; `SEEDS=20` repeats what depends on interleaving; a table."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal

import pytest

from shared.settings import LOGS, KafkaSettings
from tests.support import trial
from tests.support.history import History
from tests.support.kafka import Broker, Cluster
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.running import Cast, running

SEEDS = range(1, int(os.environ.get("SEEDS", "1")) + 1)
PEOPLE = 30
_installations = itertools.count(1)


def settings_for(broker: Broker | Cluster) -> KafkaSettings:
    """Topics and groups of one installation's own, and little patience with a slow consumer."""
    return broker.settings(f"faults{next(_installations)}.", poll_seconds=6)


@contextlib.contextmanager
def history_on(
    postgres: TestPostgres,
    seed: int,
    log: Literal["embedded", "kafka"] | None,
    kafka: KafkaSettings | None = None,
) -> Iterator[History]:
    """Everything runs and everybody is asked."""
    urls = FreshDatabases(postgres)
    with running(urls, log=log, kafka=kafka) as installation:
        made = History(installation, seed, cast=Cast(installation))
        made.invite(PEOPLE)
        installation.settle()
        yield made
    urls.drop()


@pytest.fixture(
    scope="module",
    params=[(log, seed) for log in LOGS for seed in SEEDS],
    ids=lambda param: f"{param[0]}-seed{param[1]}",
)
def history(request: pytest.FixtureRequest, postgres: TestPostgres) -> Iterator[History]:
    """An installation on either log. The tests of a file go on from each other."""
    log, seed = request.param
    kafka = settings_for(request.getfixturevalue("broker")) if log == "kafka" else None
    with history_on(postgres, seed, log, kafka) as made:
        yield made


# What `make faults` calls each of them (FAULTS of the design), by its number in the tests' names.
FAULTS = {
    1: "web killed after its commit, before the reply",
    2: "relay killed after the log confirmed",
    3: "relay killed amid a batch",
    4: "a relay frozen and resumed beside another",
    5: "a low outbox id commits last",
    6: "long transactions beside the relay",
    7: "consumer killed after its commit, before the offset",
    8: "consumer killed before its commit",
    9: "rebalance amid a batch",
    10: "a handler slower than the poll interval",
    11: "broker away under load",
    12: "broker frozen, or refusing for good",
    13: "PostgreSQL killed under load",
    14: "disk full under PostgreSQL",
    15: "few connections, pooler killed",
    16: "poison, replay, erasure while parked",
    17: "duplicated, late, reordered events",
    18: "providers answer 429, 5xx, hang, drop",
    19: "forged, replayed, stale, truncated webhooks",
    20: "one webhook a hundred times at once",
    21: "rebuild under traffic",
    22: "two versions side by side",
    23: "clock steps, DST, month end",
    24: "SIGTERM amid load",
}
_COLUMNS = ("trials", "acknowledged", "lost", "doubled", "disordered", "differs")


@pytest.fixture(autouse=True)
def _trial(request: pytest.FixtureRequest) -> Iterator[None]:
    found = trial.begin()
    yield
    request.node.user_properties.append(("trial", asdict(found)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A row for each fault and log, of all its experiments; and how to run again what failed."""
    rows: dict[tuple[int, str], dict[str, Any]] = defaultdict(dict)
    said: list[str] = []
    failed = {
        report.nodeid
        for report in terminalreporter.getreports("failed") + terminalreporter.getreports("error")
        if "/faults/" in report.nodeid
    }
    skipped = {report.nodeid: report.longrepr for report in terminalreporter.getreports("skipped")}
    said += [f"not tried: {nodeid}: {why}" for nodeid, why in skipped.items() if "/faults/" in nodeid]
    # What is said once a test is over is in the category without a name.
    for report in terminalreporter.getreports("") + terminalreporter.getreports("error"):
        found = dict(report.user_properties).get("trial")
        said += found["said"] if found and report.when == "teardown" else []
        number = re.search(r"fault_(\d\d)_", report.nodeid)
        if report.when != "teardown" or found is None or number is None or report.nodeid in skipped:
            continue
        log = re.search(r"\[(?:.*-)?(embedded|kafka|one|three)\b", report.nodeid)
        where = {"one": "kafka", "three": "3 brokers"}.get(log[1], log[1]) if log else ""
        row = rows[int(number[1]), where]
        for name in _COLUMNS:
            row[name] = row.get(name, 0) + found[name]
        row["recovered"] = max(row.get("recovered", 0.0), found["recovered"] or 0.0)
        row["failed"] = row.get("failed", False) or report.nodeid in failed
    if rows:
        _table(terminalreporter, rows)
    for line in said:
        terminalreporter.write_line(line)
    for line in sorted({_again(nodeid) for nodeid in failed}):
        terminalreporter.write_line(line)


def _again(nodeid: str) -> str:
    """How to run a failed experiment again: with those before it in its file, which it goes on from."""
    name, seed = nodeid.rsplit("::", 1)[-1], re.search(r"seed(\d+)", nodeid)
    module = nodeid.split("::")[0].rsplit("/", 1)[-1].removesuffix(".py")
    where = re.search(r"\[(?:.*-)?(embedded|kafka|one|three)\b", name)
    chosen = [module, *([where[1]] if where else []), *([f"seed{seed[1]}"] if seed else [])]
    settings = f"SEEDS={seed[1] if seed else 1} TRIALS={os.environ.get('TRIALS', '160')}"
    return f"again: {settings} make faults ARGS=\"-k '{' and '.join(chosen)}'\"  # {name}"


def _table(terminal: pytest.TerminalReporter, rows: dict[tuple[int, str], dict[str, Any]]) -> None:
    names = ("trials", "acknowledged", "lost", "doubled", "out of order", "differs", "recovered in")
    terminal.section("faults")
    terminal.write_line(f"{'':55} {'log':10}" + "".join(f"{name:>14}" for name in names))
    for (number, where), row in sorted(rows.items()):
        recovered = f"{row['recovered']:.1f} s" if row["recovered"] else ""
        cells = [*(row[name] for name in _COLUMNS), recovered]
        line = f"{number:2} {FAULTS[number]:52} {where:10}" + "".join(f"{cell:>14}" for cell in cells)
        terminal.write_line(line + ("  FAILED" if row["failed"] else ""), red=row["failed"])
    missing = sorted(FAULTS.keys() - {number for number, _ in rows})
    if missing:
        terminal.write_line(f"not run: {', '.join(map(str, missing))}")
