"""Passwords: hashed with argon2id, and one-time passwords that the database does not know."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from services.followup.domain import passwords

# OWASP's smallest recommended setting: 19 MiB and two passes; a login takes some 20 ms of one core.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Checked when nobody has that name, so that the answer takes as long as for somebody who exists.
_NOBODY = _HASHER.hash(secrets.token_hex(16))


def hashed(password: str) -> str:
    """What is stored of a password."""
    return _HASHER.hash(password)


def matches(stored: str | None, password: str) -> bool:
    """Whether `password` is the one behind `stored`; takes as long for an unknown one (None)."""
    try:
        return _HASHER.verify(stored or _NOBODY, password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


def outdated(stored: str) -> bool:
    """Whether a hash was made with other parameters than today's and should be made again."""
    return _HASHER.check_needs_rehash(stored)


def random_one_time() -> str:
    """A one-time password from the random source."""
    return passwords.one_time(secrets.token_bytes(10))


def one_time_of(key: bytes, nonce: str) -> str:
    """The one-time password behind a nonce.

    The mail that tells it is made when it is sent: the queue holds the nonce, which is worth nothing
    without the installation's secret, and never the password.
    """
    return passwords.one_time(hmac.new(key, b"one-time:" + nonce.encode(), hashlib.sha256).digest())
