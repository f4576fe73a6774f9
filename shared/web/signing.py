"""Signed, timed values under a purpose's key, by the injected clock; the previous secret still counts."""

from __future__ import annotations

from typing import Any

from itsdangerous import TimestampSigner, URLSafeTimedSerializer

from shared.clock import Clock
from shared.settings import Settings


def serializer(settings: Settings, purpose: str, clock: Clock) -> URLSafeTimedSerializer:
    """Signs with the purpose's key and checks with all keys accepted for it."""

    class Signer(TimestampSigner):
        def get_timestamp(self) -> int:
            return int(clock.now().timestamp())

    keys: list[Any] = settings.keys(purpose)
    return URLSafeTimedSerializer(keys, salt=b"hearback." + purpose.encode(), signer=Signer)
