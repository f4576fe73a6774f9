"""An installation per file, log and seed; `SEEDS=20` repeats what depends on interleaving."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Literal

import pytest

from shared.settings import LOGS, KafkaSettings
from tests.support.history import History
from tests.support.kafka import Broker
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.running import Cast, running

SEEDS = range(1, int(os.environ.get("SEEDS", "1")) + 1)
PEOPLE = 30
_installations = itertools.count(1)


def settings_for(broker: Broker) -> KafkaSettings:
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
