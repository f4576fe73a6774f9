"""An installation per file and seed; `SEEDS=20` repeats the experiments, which depend on interleaving."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.history import History
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.running import Cast, running

SEEDS = range(1, int(os.environ.get("SEEDS", "1")) + 1)
PEOPLE = 30


@pytest.fixture(scope="module", params=SEEDS, ids=lambda seed: f"seed{seed}")
def history(request: pytest.FixtureRequest, postgres: TestPostgres) -> Iterator[History]:
    """Everything runs and everybody is asked. The tests of a file go on from each other."""
    urls = FreshDatabases(postgres)
    with running(urls) as installation:
        made = History(installation, Cast(installation), request.param)
        made.invite(PEOPLE)
        installation.settle()
        yield made
    urls.drop()
