"""An event of a provider has one effect, however often it is told, and by however many at once."""

from __future__ import annotations

from shared.db import Tx


def fresh(tx: Tx, provider: str, event_id: str) -> bool:
    """Notes the event; False when it was noted before.

    Whoever comes second waits here until the first has committed, then has nothing to do.
    """
    return (
        tx.execute(
            "INSERT INTO webhook_event (provider, event_id, at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (provider, event_id, tx.now),
        )
        == 1
    )
