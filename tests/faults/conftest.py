"""A fresh installation per experiment; `SEEDS=20` repeats those that depend on interleaving."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.history import History
from tests.support.postgres import FreshDatabases
from tests.support.running import Running, running

SEEDS = range(1, int(os.environ.get("SEEDS", "1")) + 1)


@pytest.fixture
def installation(database_urls: FreshDatabases) -> Iterator[Running]:
    """Databases, a folder and a port; the test starts what it needs."""
    with running(database_urls) as found:
        yield found


@pytest.fixture(params=SEEDS, ids=lambda seed: f"seed{seed}")
def history(request: pytest.FixtureRequest, installation: Running) -> History:
    """An installation's history, not yet begun."""
    return History(installation, request.param)
