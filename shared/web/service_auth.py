"""How one of our services proves to another that it is one: a short-lived token under a shared key."""

from __future__ import annotations

from itsdangerous import BadData

from shared.clock import Clock, SystemClock
from shared.settings import Settings
from shared.web.signing import serializer

# Long enough for clocks that differ a little between hosts, short enough for a leaked log line.
LIFETIME_SECONDS = 300


def header(settings: Settings, purpose: str, clock: Clock | None = None) -> dict[str, str]:
    """The header to send with a call made for `purpose` ("permits")."""
    value = serializer(settings, "service", clock or SystemClock()).dumps({"purpose": purpose})
    return {"Authorization": f"Service {value if isinstance(value, str) else value.decode()}"}


def check(settings: Settings, clock: Clock, authorization: str) -> str | None:
    """The purpose a header was made for, or None when it is not one of ours or too old."""
    scheme, _, token = authorization.partition(" ")
    if scheme != "Service" or not token:
        return None
    try:
        data = serializer(settings, "service", clock).loads(token.strip(), max_age=LIFETIME_SECONDS)
    except BadData:
        return None
    purpose = data.get("purpose") if isinstance(data, dict) else None
    return purpose if isinstance(purpose, str) else None
