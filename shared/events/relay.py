"""Moves the outbox to the log: in order per key, nothing lost, and no relay in another's way.

One relay at a time serves a shard; a transaction-scoped advisory lock says which, and the server frees
it when that relay freezes. Rows are read in the order of their ids above a floor, so that dead rows at
the bottom cost nothing. The floor trails by a second, so most transactions that commit late with a lower
id are seen at once; the rest by a full sweep every few seconds, or as soon as a later event of their key
is due: the two never swap places.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from shared.db import Database, Tx
from shared.errors import HearbackError
from shared.events.envelope import Event
from shared.events.outbox import SHARDS
from shared.faults import crash_at
from shared.log import Fenced, Pass, Record, Sink

BATCH = 500
SWEEP_SECONDS = 3.0
TRAIL_SECONDS = 1.0
# A frozen relay's lock is freed after this; a sink gives up earlier.
FROZEN_MS = 10_000
_LOCK = 0x4842_0001
# Nobody knows how large the outbox is: empty, or empty and full of dead rows that a long reader keeps.
_BY_INDEX = "SET LOCAL enable_seqscan = off"


class Moving(HearbackError):
    """Events do not go to this log now: another is about to be in use, or already is."""

    slug = "log-moving"


class Relay:
    """A relay of the service `name`, for one thread; several may run."""

    def __init__(
        self,
        name: str,
        db: Database,
        sink: Sink,
        *,
        log: str = "embedded",
        batch: int = BATCH,
        frozen_ms: int = FROZEN_MS,
    ) -> None:
        self.name = name
        self.db = db
        self.sink = sink
        self.log = log
        self.batch = batch
        self.frozen_ms = frozen_ms
        self._floor = 0
        self._tops: deque[tuple[float, int]] = deque()
        # Shards with more to send: nothing above these ids counts as done.
        self._limits: dict[int, int] = {}
        self._swept = float("-inf")

    def run_once(self) -> bool:
        """Sends a batch of each shard that nobody else serves; returns whether anything was sent.

        Raises `Moving` when events do not go to this log (any more), and transient errors when the database
        or the log is gone; nothing is lost then.
        """
        now = self.db.clock.monotonic()
        floor = self._floor
        if now - self._swept >= SWEEP_SECONDS:
            self._swept = now
            floor = 0
        with self.db.transaction() as tx:
            tx.later(_BY_INDEX)
            rows = tx.all(
                """SELECT DISTINCT shard FROM (
                    SELECT shard FROM outbox WHERE id > %s ORDER BY id LIMIT %s) AS due""",
                (floor, 2 * self.batch),
            )
        # A list, not a generator: every shard gets its turn.
        tops = [self._serve(row["shard"], floor) for row in rows]
        self._raise_floor(now, max(tops, default=0))
        return any(tops)

    def run(self, stop: threading.Event, pause: float = 0.05) -> None:
        """Sends until `stop` is set; raises what `run_once` raises."""
        while not stop.is_set():
            if not self.run_once():
                stop.wait(pause)

    def _serve(self, shard: int, floor: int) -> int:
        """Sends a batch of one shard; returns the highest id that was sent, 0 for none."""
        with self.db.transaction() as tx:
            tx.later(_BY_INDEX)
            mine = tx.one(
                """SELECT pg_try_advisory_xact_lock(%s, %s) AS locked,
                    set_config('idle_in_transaction_session_timeout', %s, true)""",
                (_LOCK, shard, str(self.frozen_ms)),
            )
            rows = self._due(tx, shard, floor) if mine and mine["locked"] else []
            if not rows:
                self._limits.pop(shard, None)
                return 0
            # Real time, whatever the clock says: the server counts from its last answer.
            until = time.monotonic() + self.frozen_ms / 1000
            # A statement of its own, after the lock: who moves the log waits for it, then nobody sends.
            [here] = tx.all(
                "SELECT nextval('outbox_epoch') AS epoch, (SELECT log FROM log_in_use) AS log,"
                " (SELECT moving_to FROM log_in_use) AS moving_to"
            )
            if here["moving_to"] or here["log"] not in (None, self.log):
                raise Moving(f"Events are being moved to {here['moving_to'] or here['log']}.")
            who = Pass(f"{self.name}/{shard}", here["epoch"], until)
            crash_at("relay.before_send")
            try:
                confirmed = self.sink.send([_record(row) for row in rows], who)
            except Fenced as fenced:
                # This statement succeeds only while our lock holds: then nobody has overtaken us, but the log
                # remembers a number from before our database was restored; the next pass goes above it.
                tx.execute(
                    "SELECT setval('outbox_epoch', greatest(%s, (SELECT last_value FROM outbox_epoch)))",
                    (fenced.epoch,),
                )
                self._limits[shard] = floor
                return 0
            crash_at("relay.after_flush")
            gone = [row for row, done in zip(rows, confirmed, strict=True) if done]
            missing = [row["id"] for row, done in zip(rows, confirmed, strict=True) if not done]
            sent = [row["id"] for row in gone]
            # Where they stand: an index that is full of dead rows is not asked. Nobody moves a row.
            tx.execute(
                "DELETE FROM outbox WHERE ctid = ANY(%s::tid[]) AND id + 0 = ANY(%s)",
                ([row["place"] for row in gone], sent),
            )
        if missing:
            # What failed is read again with all after it, so its partition goes on in order.
            self._limits[shard] = min(missing) - 1
        elif len(rows) >= self.batch:
            self._limits[shard] = rows[-1]["id"]
        else:
            self._limits.pop(shard, None)
        return max(sent, default=0)

    def _due(self, tx: Tx, shard: int, floor: int) -> Sequence[dict[str, Any]]:
        # One statement, so one snapshot: if a key's later event is seen, so is its earlier one. Each key is
        # looked up by itself (OFFSET 0), and by the index that begins with it (no other knows pairs): in any
        # other way it would read all that is dead below the floor.
        return tx.all(
            """WITH batch AS (
                SELECT *, ctid AS place FROM outbox
                WHERE shard = %(shard)s AND id > %(floor)s ORDER BY id LIMIT %(batch)s
            ), late AS (
                SELECT o.* FROM (SELECT DISTINCT key FROM batch) k CROSS JOIN LATERAL (
                    SELECT *, ctid AS place FROM outbox
                    WHERE outbox.key >= k.key AND (outbox.key, id) <= (k.key, %(floor)s::bigint) OFFSET 0) o
                WHERE %(floor)s > 0
            )
            SELECT * FROM batch UNION ALL SELECT * FROM late ORDER BY id""",
            {"shard": shard, "floor": floor, "batch": self.batch},
        )

    def _raise_floor(self, now: float, top: int) -> None:
        if top > (self._tops[-1][1] if self._tops else self._floor):
            self._tops.append((now, top))
        while self._tops and self._tops[0][0] <= now - TRAIL_SECONDS:
            self._floor = self._tops.popleft()[1]
        if self._limits:
            self._floor = min(self._floor, *self._limits.values())


def wait_until_still(db: Database) -> None:
    """Returns when no relay of this service is in the midst of a pass.

    Whatever was committed before the call is seen by every later pass. Raises `Unavailable` after a while.
    """
    for shard in range(SHARDS):
        with db.transaction() as tx:
            tx.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCK, shard))


def _record(row: dict[str, Any]) -> Record:
    event = Event(
        id=row["event_id"],
        type=row["type"],
        topic=row["topic"],
        key=row["key"],
        version=row["version"],
        occurred_at=row["occurred_at"],
        data=None,
        replay=row["replay"],
        trace=row["trace"],
        day=row["day"],
    )
    return Record(
        event.topic, event.key, None if row["data"] is None else row["data"].encode(), event.headers()
    )
