"""What these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.clock import ManualClock
from shared.settings import Settings
from tests.support.asking import Asking


@pytest.fixture
def survey(settings: Settings, clock: ManualClock) -> Iterator[Asking]:
    """Survey with a company and a program."""
    service = Asking(settings, clock)
    yield service
    service.close()
