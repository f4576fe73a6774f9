"""Places in the database: who waits, who gives up, and what staff leave to customers."""

from __future__ import annotations

import threading
import time

import pytest

from shared.errors import Unavailable
from shared.web.pressure import AT_WORK, Places


def test_staff_never_have_the_last_place() -> None:
    places = Places()
    for _ in range(AT_WORK - 1):
        places.enter(staff=True)
    with pytest.raises(Unavailable):
        places.enter(staff=True)
    places.enter(staff=False)


def test_who_finds_no_place_gives_up_at_once_when_nothing_has_moved_for_a_while() -> None:
    places = Places()
    for _ in range(AT_WORK):
        places.enter(staff=False)
    with pytest.raises(Unavailable) as refused:
        places.enter(staff=False)
    assert refused.value.retry_after == 2
    began = time.monotonic()
    for _ in range(1_000):
        with pytest.raises(Unavailable):
            places.enter(staff=False)
    # A thousand waits would take minutes.
    assert time.monotonic() - began < 30


def test_who_waits_has_the_place_of_who_leaves() -> None:
    places = Places()
    for _ in range(AT_WORK):
        places.enter(staff=False)
    in_ = threading.Event()

    def wait() -> None:
        places.enter(staff=False)
        in_.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    places.leave(staff=False)
    assert in_.wait(5)
    waiting.join()
