"""Moves the outbox to the log: in order per key, nothing lost, and no relay in another's way.

One relay at a time serves a shard; a transaction-scoped advisory lock says which, and the server frees
it when that relay freezes. Rows are read in the order of their ids above a floor, so that dead rows at
the bottom cost nothing. The floor trails by a second, so most transactions that commit late with a lower
id are seen at once; the rest by a sweep below it every few seconds, or as soon as a later event of their key
is due: the two never swap places.

Of what the log does not take only its key waits (a partition without a leader, an event too large): it is
tried again by itself, ever more slowly, while all others go on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.db import Database, Tx, is_transient
from shared.errors import HearbackError
from shared.events.envelope import Event
from shared.events.outbox import SHARDS
from shared.faults import crash_at
from shared.log import Fenced, NotTried, Pass, Record, Sink
from shared.roles import brief

BATCH = 500
SWEEP_SECONDS = 3.0
TRAIL_SECONDS = 1.0
# A frozen relay's lock is freed after this; a sink gives up earlier.
FROZEN_MS = 10_000
_LOCK = 0x4842_0001
# Nobody knows how large the outbox is: empty, or empty and full of dead rows that a long reader keeps.
_BY_INDEX = "SET LOCAL enable_seqscan = off"


# So long (s) a shard's refused keys wait; after the second time each is tried by itself, for a log that
# refuses one event may have dropped what was on its way beside it.
_AGAIN = (0.2, 0.5, 1.0, 2.0, 5.0)
_TOGETHER = 2
# More is no matter of single keys.
_MOST_HELD = 2_000


class Moving(HearbackError):
    """Events do not go to this log now: another is about to be in use, or already is."""

    slug = "log-moving"


@dataclass
class _Held:
    """Keys of a shard of which the log did not take everything: the longest untried first."""

    keys: dict[str, None] = field(default_factory=dict)
    failures: int = 0
    until: float = 0.0
    lowest: int = 0
    """Nothing from here on counts as done."""
    why: str = ""


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
        self._held: dict[int, _Held] = {}
        self._swept = float("-inf")
        self._first = 0

    @property
    def trouble(self) -> str:
        """Why the log does not take some events, for people; nothing while it takes all."""
        return next((held.why for held in self._held.values()), "")

    def run_once(self) -> bool:
        """Sends a batch of each shard that nobody else serves; returns whether anything was sent.

        Raises `Moving` when events do not go to this log (any more), and transient errors when the database
        or the log is gone; nothing is lost then.
        """
        now = self.db.clock.monotonic()
        top = 0
        sent = False
        for shard, floor in self._due_shards(now):
            try:
                highest, any_sent = self._serve(shard, floor)
            except Exception:
                # The log may be gone, or some of what it holds: then the others come first next time.
                self._first = (shard + 1) % SHARDS
                raise
            top, sent = max(top, highest), sent or any_sent
        for shard, held in list(self._held.items()):
            if now >= held.until:
                sent = self._try_again(shard, held) or sent
        self._raise_floor(now, top)
        return sent

    def run(self, stop: threading.Event, pause: float = 0.05) -> None:
        """Sends until `stop` is set; raises what `run_once` raises."""
        while not stop.is_set():
            if not self.run_once():
                stop.wait(pause)

    def _due_shards(self, now: float) -> list[tuple[int, int]]:
        """Which shards have something to send, and above which id to look for it."""
        with self.db.transaction() as tx:
            tx.later(_BY_INDEX)
            rows = tx.all(
                """SELECT shard, count(*) AS n FROM (
                    SELECT shard FROM outbox WHERE id > %s ORDER BY id LIMIT %s) AS due GROUP BY shard""",
                (self._floor, 2 * self.batch),
            )
            floors = {row["shard"]: self._floor for row in rows}
            if sum(row["n"] for row in rows) >= 2 * self.batch:
                # Others may wait behind these.
                floors = dict.fromkeys(range(SHARDS), self._floor)
            for shard, limit in self._limits.items():
                floors[shard] = min(self._floor, limit)
            if now - self._swept >= SWEEP_SECONDS:
                self._swept = now
                tx.later(_BY_INDEX)
                for row in tx.all(
                    "SELECT shard, min(id) AS id FROM outbox WHERE id <= %s GROUP BY shard", (self._floor,)
                ):
                    floors[row["shard"]] = min(self._floor, row["id"] - 1)
        return sorted(floors.items(), key=lambda one: (one[0] - self._first) % SHARDS)

    def _serve(self, shard: int, floor: int) -> tuple[int, bool]:
        """Sends a batch of one shard; returns the highest id that was looked at, and whether any was sent."""
        held = self._held.get(shard)
        rows, refusals = self._pass(shard, floor, held.keys if held else ())
        if not rows:
            self._limits.pop(shard, None)
            return 0, False
        refusal = next((why for why in refusals if why and not isinstance(why, NotTried)), None)
        if refusal and all(refusals):
            raise refusal
        left = [row["id"] for row, why in zip(rows, refusals, strict=True) if isinstance(why, NotTried)]
        if left:
            # Read again with all after it, so its partition goes on in order.
            self._limits[shard] = min(left) - 1
        elif len(rows) >= self.batch:
            self._limits[shard] = rows[-1]["id"]
        else:
            self._limits.pop(shard, None)
        return rows[-1]["id"], not all(refusals)

    def _try_again(self, shard: int, held: _Held) -> bool:
        """Sends what was refused before, and what came after it; returns whether any was sent."""
        together = held.failures < _TOGETHER
        keys = list(held.keys) if together else list(held.keys)[:1]
        try:
            rows, refusals = self._pass(shard, held.lowest - 1, keys, only=True)
        except Exception as error:
            if not is_transient(error):
                raise
            held.until = self.db.clock.monotonic() + _AGAIN[-1]
            return False
        if not any(refusals) and len(rows) < self.batch:
            for key in keys:
                del held.keys[key]
        if not held.keys:
            del self._held[shard]
        return any(why is None for why in refusals)

    def _pass(
        self, shard: int, floor: int, held: Collection[str], *, only: bool = False
    ) -> tuple[list[dict[str, Any]], list[Exception | None]]:
        """Sends a batch of one shard without the `held` keys, or `only` them.

        Returns its rows and for each why the log has not taken it (None: it has); no rows when there are none
        or another relay serves the shard.
        """
        with self.db.transaction() as tx:
            tx.later(_BY_INDEX)
            mine = tx.one(
                """SELECT pg_try_advisory_xact_lock(%s, %s) AS locked,
                    set_config('idle_in_transaction_session_timeout', %s, true)""",
                (_LOCK, shard, str(self.frozen_ms)),
            )
            rows = self._due(tx, shard, floor, held, only) if mine and mine["locked"] else []
            if not rows:
                return [], []
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
                refusals = self.sink.send([_record(row) for row in rows], who)
            except Fenced as fenced:
                # This statement succeeds only while our lock holds: then nobody has overtaken us, but the log
                # remembers a number from before our database was restored; the next pass goes above it.
                tx.execute(
                    "SELECT setval('outbox_epoch', greatest(%s, (SELECT last_value FROM outbox_epoch)))",
                    (fenced.epoch,),
                )
                return rows, [NotTried(str(fenced))] * len(rows)
            crash_at("relay.after_flush")
            gone = [row for row, why in zip(rows, refusals, strict=True) if why is None]
            # Where they stand: an index that is full of dead rows is not asked. Nobody moves a row.
            tx.execute(
                "DELETE FROM outbox WHERE ctid = ANY(%s::tid[]) AND id + 0 = ANY(%s)",
                ([row["place"] for row in gone], [row["id"] for row in gone]),
            )
        self._hold(shard, rows, refusals)
        return rows, refusals

    def _hold(self, shard: int, rows: Sequence[dict[str, Any]], refusals: Sequence[Exception | None]) -> None:
        """The keys of what was refused wait for a while."""
        refused = [
            (row, why)
            for row, why in zip(rows, refusals, strict=True)
            if why is not None and not isinstance(why, NotTried)
        ]
        if not refused:
            return
        now = self.db.clock.monotonic()
        held = self._held.setdefault(shard, _Held(lowest=refused[0][0]["id"]))
        for row, _ in refused:
            if row["key"] in held.keys or len(held.keys) < _MOST_HELD:
                held.keys.pop(row["key"], None)
                held.keys[row["key"]] = None  # behind all others
        held.lowest = min(held.lowest, refused[0][0]["id"])
        held.why = brief(refused[0][1])
        held.until = now + _AGAIN[min(held.failures, len(_AGAIN) - 1)]
        held.failures += 1

    def _due(self, tx: Tx, shard: int, floor: int, held: Collection[str], only: bool) -> list[dict[str, Any]]:
        # One statement, so one snapshot: if a key's later event is seen, so is its earlier one. Each key is
        # looked up by itself (OFFSET 0), and by the index that begins with it (no other knows pairs): in any
        # other way it would read all that is dead below the floor.
        return tx.all(
            """WITH batch AS (
                SELECT *, ctid AS place FROM outbox
                WHERE shard = %(shard)s AND id > %(floor)s AND (key = ANY(%(held)s)) = %(only)s
                ORDER BY id LIMIT %(batch)s
            ), late AS (
                SELECT o.* FROM (SELECT DISTINCT key FROM batch) k CROSS JOIN LATERAL (
                    SELECT *, ctid AS place FROM outbox
                    WHERE outbox.key >= k.key AND (outbox.key, id) <= (k.key, %(floor)s::bigint) OFFSET 0) o
                WHERE %(floor)s > 0
            )
            SELECT * FROM batch UNION ALL SELECT * FROM late ORDER BY id""",
            {"shard": shard, "floor": floor, "batch": self.batch, "held": list(held), "only": only},
        )

    def _raise_floor(self, now: float, top: int) -> None:
        if top > (self._tops[-1][1] if self._tops else self._floor):
            self._tops.append((now, top))
        while self._tops and self._tops[0][0] <= now - TRAIL_SECONDS:
            self._floor = self._tops.popleft()[1]


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
