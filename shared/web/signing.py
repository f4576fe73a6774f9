"""Signed, timed values under a purpose's key, by the injected clock; the previous secret still counts."""

from __future__ import annotations

from typing import Any

from itsdangerous import SignatureExpired, TimestampSigner, URLSafeTimedSerializer

from shared.clock import Clock
from shared.settings import Settings


def serializer(settings: Settings, purpose: str, clock: Clock) -> URLSafeTimedSerializer:
    """Signs with the purpose's key and checks with all keys accepted for it.

    What it loads may be up to `max_age` seconds old, and as much ahead of the clock.
    """

    class Signer(TimestampSigner):
        def get_timestamp(self) -> int:
            return int(clock.now().timestamp())

        def unsign(
            self, signed_value: Any, max_age: int | None = None, return_timestamp: bool = False
        ) -> Any:
            # What was signed "later than now" is ours all the same: a clock was put back meanwhile, or
            # another host's is ahead. itsdangerous would take a second of that for a forgery.
            value, at = super().unsign(signed_value, return_timestamp=True)
            if max_age is not None and abs(self.get_timestamp() - int(at.timestamp())) > max_age:
                raise SignatureExpired(
                    "Signed too long ago, or by another time", payload=value, date_signed=at
                )
            return (value, at) if return_timestamp else value

    keys: list[Any] = settings.keys(purpose)
    return URLSafeTimedSerializer(keys, salt=b"hearback." + purpose.encode(), signer=Signer)
