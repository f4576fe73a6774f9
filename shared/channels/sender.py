"""The sender's work: claim a few messages, take their permits, hand each over, settle it at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import structlog

from shared.channels import Message, RefusesUsError, Transport, TransportError, UncertainError, ledger
from shared.channels.ledger import Delivery
from shared.clock import Clock
from shared.db import Database, Tx, is_transient
from shared.errors import HearbackError
from shared.faults import crash_at

log = structlog.get_logger("hearback.sender")

# A permit lives 15 s. A hand-over may take 10 s (the provider's time-out) and is only begun with 11 s left.
PERMIT_SECONDS = 15.0
LEFT_SECONDS = 11.0
BATCH_SECONDS = 2.0
MAX_BATCH = 50
# Waits between attempts that certainly failed, in seconds; after the last the message has failed.
DELAYS = (5, 15, 60, 300, 900, 3600, 7200)
_SWEEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to hand one message over: to which address, and what the words need to know."""

    address: str
    name: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    channel: str | None = None


@dataclass(frozen=True, slots=True)
class Permits:
    """Who may be written to now, by delivery id; an id in neither waits for a better moment."""

    granted: Mapping[str, Permit]
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step of the sender did with a delivery.

    `returned`: it certainly did not leave and waits in the queue again; its permit is given back.
    """

    delivery: Delivery
    result: Literal["handed", "failed", "uncertain", "refused", "returned"]
    provider_id: str | None = None
    reason: str | None = None


AskPermits = Callable[[Sequence[Delivery]], Permits]
Render = Callable[[Delivery, Permit], Message]
InTransaction = Callable[[Tx, Sequence[Outcome]], None]
Afterwards = Callable[[Sequence[Outcome]], None]


def _nothing(_: Sequence[Outcome]) -> None:
    return None


@dataclass
class Sender:
    """Sends a service's due messages of `kinds`.

    `permits` and `render` are asked outside of any transaction; `settled` runs in the very transaction
    that settles the deliveries in the ledger, `afterwards` after its commit (to tell another service).
    `only_own`: another sender of this service looks after the other kinds when one of them has died.
    A permit's life is counted on the monotonic clock from before it was asked for. When a provider says
    how long to wait, nothing is handed to it meanwhile.
    """

    db: Database
    clock: Clock
    kinds: Sequence[str]
    transport: Callable[[str], Transport]
    permits: AskPermits
    render: Render
    settled: InTransaction
    afterwards: Afterwards = _nothing
    only_own: bool = False
    pause: Callable[[float], None] = time.sleep
    _seconds_each: float = field(default=0.1, init=False)
    _swept_at: float = field(default=float("-inf"), init=False)
    _paused: dict[str, tuple[float, str]] = field(default_factory=dict, init=False)

    def step(self) -> bool:
        """One batch; returns whether there may be more to do at once."""
        self._sweep()
        size = max(1, min(MAX_BATCH, int(BATCH_SECONDS / self._seconds_each)))
        with self.db.transaction() as tx:
            batch = ledger.claim(tx, size, self.kinds)
        if not batch:
            return False
        crash_at("sender.after_claim")
        deadline = self.clock.monotonic() + PERMIT_SECONDS
        try:
            permits = self.permits(batch)
        except Exception as error:
            self._return(batch, 5, "Survey does not answer; the message waits.")
            if isinstance(error, HearbackError) or is_transient(error):
                log.warning("sender.no_permits", error=type(error).__name__)
                return False
            raise
        return self._work(batch, permits, deadline) and len(batch) == size

    def _work(self, batch: Sequence[Delivery], permits: Permits, deadline: float) -> bool:
        refused = [
            Outcome(one, "refused", reason=permits.refused[one.id])
            for one in batch
            if one.id in permits.refused
        ]
        granted = [one for one in batch if one.id in permits.granted]
        waiting = [one for one in batch if one.id not in permits.granted and one.id not in permits.refused]
        if refused:
            self._settle(refused)
        if waiting:
            self._return(waiting, 30, "No permit yet.")
        if granted:
            expires = self.clock.now() + timedelta(seconds=max(0.0, deadline - self.clock.monotonic()))
            with self.db.transaction() as tx:
                ledger.permitted(tx, [one.id for one in granted], expires)
        for place, one in enumerate(granted):
            if deadline - self.clock.monotonic() < LEFT_SECONDS:
                self._return(granted[place:], 0, None)
                break
            began = self.clock.monotonic()
            self._hand_over(one, permits.granted[one.id], deadline)
            took = max(0.001, self.clock.monotonic() - began)
            self._seconds_each = 0.8 * self._seconds_each + 0.2 * took
        return True

    def _hand_over(self, one: Delivery, permit: Permit, deadline: float) -> None:
        try:
            message = self.render(one, permit)
            way = self.transport(message.channel)
        except Exception as error:
            # Whatever is wrong with these words will be wrong the next time; the others must still go out.
            log.error("sender.render_failed", delivery=one.id, kind=one.kind, exc_info=error)
            self._settle([Outcome(one, "failed", reason="The message could not be written.")])
            return
        until, why = self._paused.get(message.channel, (float("-inf"), ""))
        if (left := until - self.clock.monotonic()) > 0:
            self._return([one], math.ceil(left), why)
            return
        with self.db.transaction() as tx:
            ours = ledger.begin_hand_over(tx, one.id)
        if not ours:
            return
        if deadline - self.clock.monotonic() < LEFT_SECONDS:
            # Writing it took too long: a slow provider could have it after the permit is over.
            self._return([one], 0, None)
            return
        retry_after, counted = 0, True
        try:
            provider_id = way.send(message)
        except UncertainError as error:
            outcome = Outcome(one, "uncertain", reason=error.message)
        except TransportError as error:
            counted = not isinstance(error, RefusesUsError)
            outcome, retry_after = _failure(one, error, counted=counted), error.retry_after or 0
            if retry_after and not error.permanent:
                self._paused[message.channel] = (self.clock.monotonic() + retry_after, error.message)
        except Exception as error:
            log.error("sender.transport_broke", delivery=one.id, exc_info=error)
            outcome = Outcome(one, "uncertain", reason="The hand-over broke off.")
        else:
            crash_at("sender.after_hand_over")
            outcome = Outcome(one, "handed", provider_id=provider_id)
        crash_at("sender.before_settle")
        if outcome.result == "returned":
            wait = max(retry_after, DELAYS[min(one.attempts, len(DELAYS)) - 1] if counted else 0)
            self._return([one], wait, outcome.reason, counted=counted)
        else:
            self._settle([outcome])

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        def write(tx: Tx) -> None:
            for outcome in outcomes:
                one = outcome.delivery.id
                if outcome.result == "handed":
                    ledger.handed(tx, one, outcome.provider_id)
                elif outcome.result == "uncertain":
                    ledger.uncertain(tx, one, outcome.reason or "")
                elif outcome.result == "failed":
                    ledger.failed(tx, one, outcome.reason or "")
                else:
                    ledger.refused(tx, one, outcome.reason or "")
            self.settled(tx, outcomes)

        self._persist(write)
        self.afterwards(outcomes)

    def _return(
        self, deliveries: Sequence[Delivery], seconds: int, reason: str | None, *, counted: bool = False
    ) -> None:
        outcomes = [Outcome(one, "returned", reason=reason) for one in deliveries]

        def write(tx: Tx) -> None:
            ids = [one.id for one in deliveries]
            ledger.give_back(tx, ids, tx.now + timedelta(seconds=seconds), reason, counted=counted)
            self.settled(tx, outcomes)

        self._persist(write)
        self.afterwards(outcomes)

    def _persist(self, write: Callable[[Tx], None]) -> None:
        # What happened outside is known only here: a database that blinks must not make it uncertain.
        for wait in (0.1, 0.3, 1.0, None):
            try:
                with self.db.transaction() as tx:
                    write(tx)
                return
            except Exception as error:
                if wait is None or not is_transient(error):
                    raise
                self.pause(wait)

    def _sweep(self) -> None:
        now = self.clock.monotonic()
        if now - self._swept_at < _SWEEP_SECONDS:
            return
        self._swept_at = now
        with self.db.transaction() as tx:
            back, lost = ledger.after_crash(tx, self.kinds, only_own=self.only_own)
            outcomes = [Outcome(one, "returned") for one in back]
            outcomes += [Outcome(one, "uncertain", reason=one.reason) for one in lost]
            if outcomes:
                self.settled(tx, outcomes)
        if outcomes:
            log.warning("sender.found_claims", returned=len(back), uncertain=len(lost))
            self.afterwards(outcomes)


def _failure(one: Delivery, error: TransportError, *, counted: bool) -> Outcome:
    if error.permanent:
        return Outcome(one, "failed", reason=error.message)
    if counted and one.attempts > len(DELAYS):
        return Outcome(one, "failed", reason=f"{error.message} Tried {one.attempts} times.")
    return Outcome(one, "returned", reason=error.message)
