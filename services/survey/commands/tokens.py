"""Mints the secrets of the links in a message, at its hand-over; only their hashes are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from shared.db import Tx
from shared.ids import hash_token

# Read-only after the invitation's expiry for a year; a preference link must outlive the message's use.
READABLE = timedelta(days=365)

# (delivery id, customer id, (kind of what the trail is about, its id), channel)
Wanted = tuple[str, str, tuple[str, str | None], str]


def mint(tx: Tx, wanted: Sequence[Wanted], public_url: str) -> dict[str, Mapping[str, str]]:
    """Links per delivery: `trail` (when there is an invitation), `preferences`, `unsubscribe`."""
    if not wanted:
        return {}
    ids = [about for _, _, (kind, about), _ in wanted if kind == "response" and about]
    of_response = {
        str(row["id"]): str(row["invitation_id"])
        for row in (
            tx.all("SELECT id, invitation_id FROM response WHERE id = ANY(%s::uuid[])", (ids,)) if ids else []
        )
    }
    rows: list[tuple[bytes, str, str, str | None, str]] = []
    links: dict[str, Mapping[str, str]] = {}
    for delivery_id, customer_id, (kind, about), channel in wanted:
        invitation_id = of_response.get(about or "") if kind == "response" else about
        trail, preferences = tx.ids.token(), tx.ids.token()
        rows.append((hash_token(preferences), "preferences", customer_id, None, channel))
        found = {
            "preferences": f"{public_url}/u/{preferences}",
            "unsubscribe": f"{public_url}/u/{preferences}",
        }
        if invitation_id:
            rows.append((hash_token(trail), "answer", customer_id, invitation_id, channel))
            found["trail"] = f"{public_url}/a/{trail}"
        links[delivery_id] = found
    tx.values(
        "INSERT INTO token (hash, purpose, customer_id, invitation_id, channel, created_at, expires_at)"
        " SELECT v.hash, v.purpose, v.customer_id, v.invitation_id, v.channel, v.at,"
        "        greatest(v.at, i.expires_at) + v.readable"
        " FROM (VALUES %s) AS v (hash, purpose, customer_id, invitation_id, channel, at, readable)"
        " LEFT JOIN invitation i ON i.id = v.invitation_id",
        [(*row, tx.now, READABLE) for row in rows],
        template="(%s::bytea, %s, %s::uuid, %s::uuid, %s, %s::timestamptz, %s::interval)",
    )
    return links


def forget(tx: Tx) -> int:
    """Deletes tokens that lead nowhere any more; returns how many (at most 1,000 at a time)."""
    return tx.execute(
        "DELETE FROM token WHERE hash IN (SELECT hash FROM token WHERE expires_at < %s LIMIT 1000)", (tx.now,)
    )
