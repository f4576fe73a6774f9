"""What followup's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.clock import ManualClock
from shared.settings import Settings
from tests.support.followup import Followup


@pytest.fixture
def followup(settings: Settings, clock: ManualClock) -> Iterator[Followup]:
    """Followup with a company in Berlin (CET, an hour ahead of UTC in March) that works nine to five."""
    service = Followup(settings, clock)
    service.apply(service.company())
    yield service
    service.db.close()
    service.app.extensions["hearback"].db.close()
