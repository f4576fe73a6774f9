"""Empties everything that reporting took from the log, so that the owners can tell it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.reporting.handlers import GATE, GROUP
from shared.db import Database, Tx
from shared.events import inbox

_REPLICAS = (
    "company",
    "program",
    "customer",
    "invitation",
    "skip",
    "response",
    "unconfirmed",
    "delivery",
    "task",
    "task_response",
    "change",
    "notice",
    "nps_day",
    "funnel_day",
)

# What others keep of it, and what it keeps of others, so that they can be compared (`shared.agreement`).
OWNED: Mapping[str, str] = {}
HEARD = {
    "answers": "SELECT id, version, concat(score, ' ', state) AS said FROM response WHERE version > 0",
    "invitations": "SELECT id, 1 AS version, '' AS said FROM invitation WHERE asked",
    "tasks": "SELECT id, version, '' AS said FROM task WHERE version > 0",
}


def clear(tx: Tx) -> None:
    """Forgets all facts and figures and what was applied or parked; waits for batches that are under way.

    The ids of erased customers stay: nobody tells them again. Staff and keys stay usable until their newest
    state comes, which then replaces whatever is there.
    """
    tx.execute("SELECT pg_advisory_xact_lock(%s)", (GATE,))
    tx.execute(f"TRUNCATE {', '.join(_REPLICAS)}")
    tx.execute("UPDATE staff SET version = 0")
    tx.execute("UPDATE apikey SET version = 0")
    inbox.clear(tx, GROUP)
    # Whatever a key waited with is about to be told again in its newest state.
    tx.execute("DELETE FROM parked_key WHERE consumer = %s", (GROUP,))


def republish(db: Database, topics: Sequence[str] | None = None) -> int:
    """Reporting owns nothing, so it has nothing to tell: 0 events."""
    return 0
