"""What these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.clock import ManualClock
from shared.settings import Settings
from tests.support.customers import Survey


@pytest.fixture
def survey(settings: Settings, clock: ManualClock) -> Iterator[Survey]:
    """Survey with an empty database."""
    service = Survey(settings, clock)
    yield service
    service.close()
