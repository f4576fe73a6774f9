"""The sender's work: claim a few messages, take their permits, hand each over, settle it at once."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

import structlog

from shared.channels import (
    Channel,
    Message,
    RefusesUsError,
    Transport,
    TransportError,
    UncertainError,
    ledger,
)
from shared.channels.ledger import Delivery
from shared.clock import Clock
from shared.db import Database, Tx, is_transient, storable
from shared.errors import HearbackError
from shared.faults import crash_at

log = structlog.get_logger("hearback.sender")

# A permit lives 15 s. A hand-over may take 10 s (the provider's time-out) and is only begun with 11 s left.
PERMIT_SECONDS = 15.0
LEFT_SECONDS = 11.0
BATCH_SECONDS = 2.0
MAX_BATCH = 100
# So many messages are with the provider at a time.
HANDS = 8
# Waits between attempts that certainly failed, in seconds; after the last the message has failed.
DELAYS = (5, 15, 60, 300, 900, 3600, 7200)
_SWEEP_SECONDS = 10.0
_LONGEST_ID = 200


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


@dataclass(frozen=True, slots=True)
class _Said:
    """What came of one hand-over; how many seconds until another try makes sense, if that was an attempt."""

    outcome: Outcome
    seconds: int = 0
    counted: bool = True


AskPermits = Callable[[Sequence[Delivery]], Permits]
Render = Callable[[Delivery, Permit], Message]
Lock = Callable[[Tx, Sequence[Delivery]], None]
InTransaction = Callable[[Tx, Sequence[Outcome]], None]
Afterwards = Callable[[Sequence[Outcome]], None]


def _nothing(*_: object) -> None:
    return None


@dataclass
class Sender:
    """Sends a service's due messages of `kinds`.

    `permits` and `render` are asked outside of any transaction; `settled` runs in the very transaction
    that settles the deliveries in the ledger, `afterwards` after its commit (to tell another service).
    `lock` begins that transaction: it locks what `settled` will change and is locked before deliveries.
    `only_own`: another sender of this service looks after the other kinds when one of them has died.
    A permit's life is counted on the monotonic clock from before it was asked for. `hands` messages are
    handed over at a time, each begun and settled in the ledger on its own account. When a provider says
    how long to wait, nothing more is handed to it meanwhile; the other channel's messages still go out.
    With a `channel` it looks after that one's messages only: a provider that is slow or hangs then keeps
    nobody else's waiting.
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
    lock: Lock = _nothing
    channel: Channel | None = None
    hands: int = HANDS
    pause: Callable[[float], None] = time.sleep
    _seconds_each: float = field(default=0.1, init=False)
    _swept_at: float = field(default=float("-inf"), init=False)
    _made: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)
    _paused: dict[str, tuple[float, str]] = field(default_factory=dict, init=False)
    _pausing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def step(self) -> bool:
        """One batch; returns whether there may be more to do at once."""
        self._sweep()
        if self.channel and self._paused_for(self.channel) > 0:
            return False
        # A slow provider is no reason for idle hands: they all begin at once.
        size = max(self.hands, min(MAX_BATCH, int(BATCH_SECONDS / self._seconds_each)))
        if self._paused:
            size = 1  # whoever asked us to wait is asked again by one message, not by all hands at once
        with self.db.transaction() as tx:
            batch = ledger.claim(tx, size, self.kinds, self.channel)
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
            self._hand_over_all(granted, permits.granted, deadline)
        return True

    def _paused_for(self, channel: str) -> float:
        """How many seconds nothing is to be handed to its provider."""
        return self._paused.get(channel, (float("-inf"), ""))[0] - self.clock.monotonic()

    def _pause_is_over(self, channel: str) -> None:
        """Its provider took or refused a message for good; another hand may have been told to wait since."""
        with self._pausing:
            if self._paused_for(channel) <= 0:
                self._paused.pop(channel, None)

    def _hand_over_all(
        self, granted: Sequence[Delivery], permits: Mapping[str, Permit], deadline: float
    ) -> None:
        """A few hands at a time; what they have done by the time we look is settled in one transaction.

        Free hands get their next messages before that, so that they are at work meanwhile.
        """
        waiting, running, said = deque(granted), set[Future[_Said]](), list[_Said]()
        began = self.clock.monotonic()
        try:
            while waiting or running or said:
                if waiting and deadline - self.clock.monotonic() < LEFT_SECONDS:
                    self._return(list(waiting), 0, None)
                    waiting.clear()
                free = min(self.hands - len(running), len(waiting))
                if free:
                    running |= self._begin([waiting.popleft() for _ in range(free)], permits, deadline)
                done, said = said, []
                self._settle_said(done)
                said = _first_done(running)
        except BaseException:
            # What the other hands are at will have left: it is noted as far as it still can be.
            while said or running:
                with suppress(Exception):
                    done, said = said, []
                    self._settle_said(done)
                    said = _first_done(running)
            raise
        took = max(0.001, self.clock.monotonic() - began) / len(granted)
        self._seconds_each = 0.8 * self._seconds_each + 0.2 * took

    def _begin(
        self, some: Sequence[Delivery], permits: Mapping[str, Permit], deadline: float
    ) -> set[Future[_Said]]:
        """Writes these messages, notes that they are about to leave, and lets them go."""
        written: dict[str, tuple[Delivery, Message, Transport]] = {}
        paused: list[_Said] = []
        for one in some:
            try:
                message = self.render(one, permits[one.id])
                way = self.transport(message.channel)
            except Exception as error:
                # Whatever is wrong with these words will be wrong next time; the others must still go out.
                log.error("sender.render_failed", delivery=one.id, kind=one.kind, exc_info=error)
                self._settle([Outcome(one, "failed", reason="The message could not be written.")])
                continue
            until, why = self._paused.get(message.channel, (float("-inf"), ""))
            if (left := until - self.clock.monotonic()) > 0:
                paused.append(_Said(Outcome(one, "returned", reason=why), math.ceil(left), counted=False))
            else:
                written[one.id] = (one, message, way)
        self._return_said(paused)
        if not written:
            return set()
        with self.db.transaction() as tx:
            ours = ledger.begin_hand_over(tx, list(written), some[0].claimed_at)
        return {self._pool().submit(self._hand_over, *written[id], deadline) for id in written if id in ours}

    def _hand_over(self, one: Delivery, message: Message, way: Transport, deadline: float) -> _Said:
        """One hand-over, on a thread of its own; what came of it. Never raises."""
        if deadline - self.clock.monotonic() < LEFT_SECONDS:
            # It was long until it came to this: a slow provider could have it after the permit is over.
            return _Said(Outcome(one, "returned"), counted=False)
        try:
            said = way.send(message)
        except UncertainError as error:
            return _Said(Outcome(one, "uncertain", reason=error.message))
        except TransportError as error:
            wait = error.retry_after or 0
            if wait and not error.permanent:
                # At once, for the other hands: theirs are told when they ask for something to hand over.
                with self._pausing:
                    if wait > self._paused_for(message.channel):
                        self._paused[message.channel] = (self.clock.monotonic() + wait, error.message)
            elif error.permanent:
                self._pause_is_over(message.channel)
            return _failure(one, error)
        except Exception as error:
            log.error("sender.transport_broke", delivery=one.id, exc_info=error)
            return _Said(Outcome(one, "uncertain", reason="The hand-over broke off."))
        crash_at("sender.after_hand_over")
        self._pause_is_over(message.channel)
        # What a provider calls it is its own affair: it must not keep the ledger from noting the hand-over.
        return _Said(Outcome(one, "handed", provider_id=said and storable(said)[:_LONGEST_ID]))

    def _settle_said(self, said: Sequence[_Said]) -> None:
        if said:
            crash_at("sender.before_settle")
        if settled := [one.outcome for one in said if one.outcome.result != "returned"]:
            self._settle(settled)
        self._return_said([one for one in said if one.outcome.result == "returned"])

    def _return_said(self, said: Sequence[_Said]) -> None:
        alike: dict[tuple[int, str | None, bool], list[Delivery]] = {}
        for one in said:
            key = (one.seconds, one.outcome.reason, one.counted)
            alike.setdefault(key, []).append(one.outcome.delivery)
        for (seconds, reason, counted), deliveries in alike.items():
            self._return(deliveries, seconds, reason, counted=counted)

    def _pool(self) -> ThreadPoolExecutor:
        # Made when first needed: threads do not survive a fork.
        if self._made is None:
            self._made = ThreadPoolExecutor(self.hands, thread_name_prefix="hand-over")
        return self._made

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        def write(tx: Tx) -> Sequence[Outcome]:
            self.lock(tx, [one.delivery for one in outcomes])
            if taken := {one.delivery.id: one.provider_id for one in outcomes if one.result == "handed"}:
                ledger.handed(tx, taken)
            return [outcome for outcome in outcomes if self._note(tx, outcome)]

        self._persist(write)

    def _note(self, tx: Tx, outcome: Outcome) -> bool:
        """Whether it was ours to say, in the ledger; what may have left is told in any case."""
        one = outcome.delivery
        if outcome.result == "uncertain":
            ledger.uncertain(tx, one.id, outcome.reason or "")
        elif outcome.result == "failed":
            return ledger.failed(tx, one.id, outcome.reason or "", one.claimed_at)
        elif outcome.result == "refused":
            return ledger.refused(tx, one.id, outcome.reason or "", one.claimed_at)
        return True

    def _return(
        self, deliveries: Sequence[Delivery], seconds: int, reason: str | None, *, counted: bool = False
    ) -> None:
        def write(tx: Tx) -> Sequence[Outcome]:
            self.lock(tx, deliveries)
            back = ledger.give_back(
                tx,
                [one.id for one in deliveries],
                tx.now + timedelta(seconds=seconds),
                reason,
                counted=counted,
                claimed_at=deliveries[0].claimed_at,  # a batch is one claim
            )
            return [Outcome(one, "returned", reason=reason) for one in deliveries if one.id in back]

        self._persist(write)

    def _persist(self, write: Callable[[Tx], Sequence[Outcome]]) -> None:
        # What happened outside is known only here: a database that blinks must not make it uncertain.
        for seconds in (0.1, 0.3, 1.0, None):
            try:
                with self.db.transaction() as tx:
                    outcomes = write(tx)
                    if outcomes:
                        self.settled(tx, outcomes)
                break
            except Exception as error:
                if seconds is None or not is_transient(error):
                    raise
                self.pause(seconds)
        if outcomes:
            self.afterwards(outcomes)

    def _sweep(self) -> None:
        now = self.clock.monotonic()
        if now - self._swept_at < _SWEEP_SECONDS:
            return
        self._swept_at = now
        with self.db.transaction() as tx:
            back, lost = ledger.after_crash(tx, self.kinds, only_own=self.only_own, lock_first=self.lock)
            outcomes = [Outcome(one, "returned") for one in back]
            outcomes += [Outcome(one, "uncertain", reason=one.reason) for one in lost]
            if outcomes:
                self.settled(tx, outcomes)
        if outcomes:
            log.warning("sender.found_claims", returned=len(back), uncertain=len(lost))
            self.afterwards(outcomes)


def _first_done(running: set[Future[_Said]]) -> list[_Said]:
    """Waits for the first that is done, and takes what is done by then out of `running`."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    running -= done
    return [future.result() for future in done]


def _failure(one: Delivery, error: TransportError) -> _Said:
    """What a refusal means for its message. When the provider refuses us altogether, that was no attempt."""
    if error.permanent:
        return _Said(Outcome(one, "failed", reason=error.message))
    wait = error.retry_after or 0
    if isinstance(error, RefusesUsError):
        return _Said(Outcome(one, "returned", reason=error.message), wait, counted=False)
    if one.attempts > len(DELAYS):
        return _Said(Outcome(one, "failed", reason=f"{error.message} Tried {one.attempts} times."))
    seconds = max(wait, DELAYS[min(one.attempts, len(DELAYS)) - 1])
    return _Said(Outcome(one, "returned", reason=error.message), seconds)
