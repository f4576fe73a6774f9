"""Opting out of messages, coming back, and addresses that turned out to be dead."""

from __future__ import annotations

from services.survey import store
from services.survey.addresses import Fingerprints
from shared.db import Tx

CHANNELS = ("email", "sms")


def opt_out(tx: Tx, customer_id: str, channel: str, source: str, fingerprints: Fingerprints) -> bool:
    """No message leaves for this customer on this channel any more. Returns whether that is new.

    Commit, then wait for permits that are out (rule 7); `source` is 'link', 'one-click', 'stop',
    'staff' or 'complaint'. An unknown (erased) customer changes nothing.
    """
    customer = store.lock_customer(tx, customer_id)
    if customer is None:
        return False
    address = customer["email"] if channel == "email" else customer["phone"]
    if address:
        digest = fingerprints(channel, address)[-1]
        store.add_opt_outs(tx, [(channel, digest, tx.now, source)])
    column = f"{_known(channel)}_opt_out_at"
    if customer[column] is not None:
        return False
    tx.execute(f"UPDATE customer SET {column} = %s WHERE id = %s", (tx.now, customer_id))  # noqa: S608
    store.bump(tx, customer_id)
    return True


def opt_in(tx: Tx, customer_id: str, channel: str, fingerprints: Fingerprints) -> bool:
    """The customer wants messages on this channel again, by their own word. Returns whether that is new."""
    customer = store.lock_customer(tx, customer_id)
    if customer is None:
        return False
    address = customer["email"] if channel == "email" else customer["phone"]
    if address:
        tx.execute(
            "DELETE FROM opt_out WHERE channel = %s AND address_hash = ANY(%s)",
            (channel, fingerprints(channel, address)),
        )
    column = f"{_known(channel)}_opt_out_at"
    if customer[column] is None:
        return False
    tx.execute(f"UPDATE customer SET {column} = NULL WHERE id = %s", (customer_id,))  # noqa: S608
    store.bump(tx, customer_id)
    return True


def stop_address(tx: Tx, channel: str, address: str, source: str, fingerprints: Fingerprints) -> None:
    """Opts out an address that belongs to no customer (any more): it counts when it comes back."""
    store.add_opt_outs(tx, [(channel, fingerprints(channel, address)[-1], tx.now, source)])


def is_theirs(tx: Tx, customer_id: str, channel: str, digest: bytes, fingerprints: Fingerprints) -> bool:
    """Whether the address of this fingerprint is the customer's present one; they are locked."""
    customer = store.lock_customer(tx, customer_id)
    if customer is None:
        return False
    current = customer["email"] if _known(channel) == "email" else customer["phone"]
    return current is not None and digest in fingerprints(channel, current)


def bounced(tx: Tx, customer_id: str, channel: str) -> bool:
    """The customer's address on this channel is dead: nothing is sent there until it changes.

    Returns whether that is new.
    """
    customer = store.lock_customer(tx, customer_id)
    column = f"{_known(channel)}_bounced_at"
    if customer is None or customer[column] is not None:
        return False
    current = customer["email"] if channel == "email" else customer["phone"]
    if current is None:
        return False
    tx.execute(f"UPDATE customer SET {column} = %s WHERE id = %s", (tx.now, customer_id))  # noqa: S608
    store.bump(tx, customer_id)
    return True


def _known(channel: str) -> str:
    if channel not in CHANNELS:
        raise ValueError(f"there is no channel {channel!r}")
    return channel
