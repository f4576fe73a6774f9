"""Identifiers and tokens, passed in like the clock."""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from datetime import datetime
from typing import Protocol


class Ids(Protocol):
    """Where new identifiers and tokens come from."""

    def new(self) -> str:
        """A new id: a UUID version 7 as text (time-ordered, so indexes stay dense)."""
        ...

    def token(self) -> str:
        """A new secret for a link or a key: 128 random bits, URL-safe, 22 characters."""
        ...


class SystemIds:
    """Ids from the machine's clock and its random source."""

    def new(self) -> str:
        # RFC 9562, 5.7: 48 bits of Unix milliseconds, version, 12 random bits, variant, 62 random bits.
        milliseconds = time.time_ns() // 1_000_000
        value = (milliseconds & ((1 << 48) - 1)) << 80 | secrets.randbits(80)
        value = value & ~(0xF << 76) | 0x7 << 76
        value = value & ~(0x3 << 62) | 0x2 << 62
        return as_uuid(value.to_bytes(16))

    def token(self) -> str:
        return secrets.token_urlsafe(16)


def first_at(instant: datetime) -> str:
    """The lowest id that `SystemIds` can have made at an instant; earlier ones are lower."""
    return as_uuid((int(instant.timestamp() * 1000) << 80).to_bytes(16))


def as_uuid(raw: bytes) -> str:
    """The text of a UUID of 16 bytes; `uuid.UUID` takes three times as long to find it."""
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def hash_token(token: str) -> bytes:
    """What is stored of a token: its SHA-256 (32 bytes). Tokens are random, so no salt is needed."""
    return hashlib.sha256(token.encode()).digest()


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id; others are "not found" before they reach the database."""
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
