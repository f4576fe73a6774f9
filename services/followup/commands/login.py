"""Logging in: whose password it is, with a limit on guesses per account and per address."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

from services.followup.commands import passwords
from shared.db import Row, Tx
from shared.errors import Invalid, TooMany

WINDOW = timedelta(minutes=15)
# Guesses in one window: at one account from one address, at one account, from one address. The
# account's own limit is wide, so that a stranger cannot easily keep its owner out.
LIMITS = {"pair": 8, "account": 60, "address": 40}

Transactions = Callable[[], AbstractContextManager[Tx]]


def log_in(transaction: Transactions, *, login: str, password: str, address: str) -> Row:
    """The staff row of whoever knows this password.

    Each guess is counted before the password is looked at, in a transaction of its own: parallel
    guesses count too, and a refusal does not undo the count. The slow hash holds no connection.
    Raises `TooMany`, or `Invalid` without saying which of the two was wrong.
    """
    login = login.strip().casefold()[:254]
    keys = {
        "pair": _hashed("pair", login, address),
        "account": _hashed("account", login),
        "address": _hashed("address", address),
    }
    with transaction() as tx:
        counted_at = tx.now
        _count(tx, keys)
        row = tx.one("SELECT * FROM staff WHERE email = %s", (login,))
    good = passwords.matches(row["password_hash"] if row else None, password)
    if row is None or not good or row["disabled"]:
        raise Invalid("The e-mail address or the password is wrong.", slug="wrong-login")
    with transaction() as tx:
        tx.execute("DELETE FROM login_failure WHERE who = ANY(%s)", ([keys["pair"], keys["account"]],))
        # This guess was none; the address's others stay.
        tx.execute("DELETE FROM login_failure WHERE who = %s AND at = %s", (keys["address"], counted_at))
        tx.execute(
            "UPDATE staff SET last_login_at = %s, password_hash = %s WHERE id = %s AND password_hash = %s",
            (tx.now, _fresh(row["password_hash"], password), row["id"], row["password_hash"]),
        )
    return row


def forget_old(tx: Tx) -> None:
    """Drops what no limit looks at any more."""
    tx.execute("DELETE FROM login_failure WHERE at < %s", (tx.now - WINDOW,))


def _count(tx: Tx, keys: dict[str, bytes]) -> None:
    for key in sorted(keys.values()):
        tx.execute("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(key[:8], "big", signed=True),))
    since = tx.now - WINDOW
    for kind, key in keys.items():
        row = tx.one(
            "SELECT count(*) AS n, min(at) AS oldest FROM login_failure WHERE who = %s AND at > %s",
            (key, since),
        )
        if row and row["n"] >= LIMITS[kind]:
            wait = max(1, int((row["oldest"] + WINDOW - tx.now).total_seconds()))
            raise TooMany(
                f"Too many wrong passwords. Try again in {max(1, -(-wait // 60))} minutes, "
                "or ask an administrator for a new one-time password.",
                retry_after=wait,
            )
    tx.values("INSERT INTO login_failure (who, at) VALUES %s", [(key, tx.now) for key in keys.values()])


def _hashed(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _fresh(stored: str, password: str) -> str:
    return passwords.hashed(password) if passwords.outdated(stored) else stored
