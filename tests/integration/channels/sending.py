"""What the tests of all ways out share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.channels import TransportError

Send = Callable[[], str | None]
"""Hands one message over; returns the provider's id for it."""


def caught(send: Callable[[], object]) -> TransportError:
    """The error with which a hand-over ends."""
    with pytest.raises(TransportError) as found:
        send()
    return found.value
