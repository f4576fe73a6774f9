"""The relay's and the consumer's loops, as every service's `roles.py` uses them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import structlog
from psycopg2.errors import QueryCanceled

from shared import roles
from shared.db import Database, is_transient
from shared.events import inbox, parking
from shared.events.consumer import Apply, Consumer, MassParking
from shared.events.relay import Moving, Relay
from shared.log import Log, in_use, open_log
from shared.roles import RoleContext, brief

_PAUSE = 0.05
_PING_SECONDS = 2.0
_MOVING_PAUSE = 0.5
_MAINTAIN_SECONDS = 3600.0
_NEWER_SECONDS = 30.0
_BACK_OFF = (0.2, 0.5, 1.0, 2.0, 5.0)

_log = structlog.get_logger("hearback.events")


def relay_loop(ctx: RoleContext) -> roles.Loop:
    """A loop that moves the service's outbox to the log."""

    def loop(stop: threading.Event) -> None:
        here = in_use.begin(ctx.db, ctx.settings.log)
        log = open_log(ctx.settings, ctx.clock, name=here.log)
        try:
            log.ensure_topics()
            relay = Relay(ctx.service, ctx.db, log.sink(), log=here.log)
            _work(ctx, stop, log, here.log, relay.run_once, lambda: relay.trouble)
        finally:
            log.close()

    loop.__name__ = "relay"
    return loop


class ConsumerLoop:
    """A loop that applies the events of `topics` for `group`; the command line replays with its `apply`."""

    def __init__(self, ctx: RoleContext, group: str, topics: Sequence[str], apply: Apply) -> None:
        self.ctx = ctx
        self.group = group
        self.topics = tuple(topics)
        self.apply = apply
        self._started = False
        self._looked = float("-inf")

    def __call__(self, stop: threading.Event) -> None:
        if not self._started:
            # A new process is somebody's word to try again: it was restarted, or mended and deployed.
            clear_stop(self.ctx.db, self.group)
            self._started = True
        here = in_use.begin(self.ctx.db, self.ctx.settings.log)
        log = open_log(self.ctx.settings, self.ctx.clock, name=here.log)
        try:
            log.ensure_topics()
            source = log.source(self.group, self.topics)
            try:
                consumer = Consumer(self.group, self.ctx.db, source, self.apply)
                _work(self.ctx, stop, log, here.log, lambda: self._step(consumer, stop))
            finally:
                source.close()
        finally:
            log.close()

    def _step(self, consumer: Consumer, stop: threading.Event) -> bool:
        now = self.ctx.clock.monotonic()
        if now - self._looked >= _NEWER_SECONDS:
            # An older version may run beside us for a while, and park what it does not know.
            parking.replay_newer(self.ctx.db, self.group, self.apply)
            self._looked = now
        try:
            return consumer.run_once()
        except MassParking as error:
            _log.critical("consumer stopped", consumer=self.group, reason=error.message)
            self._stand_still(error.message, stop)
            return True

    def _stand_still(self, reason: str, stop: threading.Event) -> None:
        """Waits, unready, until the stop is taken back by `hearback log resume`, or the process ends."""
        roles.health().failed(reason)
        with self.ctx.db.transaction() as tx:
            tx.execute(
                """INSERT INTO consumer_stop (consumer, at, reason) VALUES (%s, %s, %s)
                ON CONFLICT (consumer) DO UPDATE SET at = excluded.at, reason = excluded.reason""",
                (self.group, tx.now, reason),
            )
        while not stop.is_set():
            roles.health().failed(reason)
            try:
                if stopped(self.ctx.db, self.group) is None:
                    return
            except Exception as error:
                if not is_transient(error):
                    raise
            stop.wait(0.5)


def consumer_loop(ctx: RoleContext, group: str, topics: Sequence[str], apply: Apply) -> ConsumerLoop:
    """A loop that applies the events of `topics` with `apply`, each exactly once for `group`."""
    return ConsumerLoop(ctx, group, topics, apply)


def stopped(db: Database, group: str) -> str | None:
    """Why the consumer stopped by itself, or None while it works."""
    with db.transaction() as tx:
        reason: str | None = tx.value("SELECT reason FROM consumer_stop WHERE consumer = %s", (group,))
        return reason


def clear_stop(db: Database, group: str) -> bool:
    """Lets a consumer that stopped by itself try again; returns whether it had stopped."""
    with db.transaction() as tx:
        return tx.execute("DELETE FROM consumer_stop WHERE consumer = %s", (group,)) > 0


def _work(
    ctx: RoleContext,
    stop: threading.Event,
    log: Log,
    name: str,
    step: Callable[[], bool],
    trouble: Callable[[], str] = str,
) -> None:
    """Steps until `stop`, or until another log than this one (`name`) is in use.

    A part that is gone makes the role unready and is tried again ever more slowly. What `trouble` says makes
    it unready as well, but keeps only some of the work waiting.
    """
    maintained = pinged = float("-inf")
    failures = 0
    while not stop.is_set():
        try:
            now = ctx.clock.monotonic()
            if now - maintained >= _MAINTAIN_SECONDS:
                inbox.maintain(ctx.db)
                log.maintain(ctx.clock.now())
                maintained = now
            if now - pinged >= _PING_SECONDS:
                # An idle relay would not notice that the log is gone, or another one.
                with ctx.db.transaction() as tx:
                    here = in_use.read(tx)
                if here is not None and here.log != name:
                    _log.info("events are on another log now", before=name, now=here.log)
                    return
                log.ping()
                pinged = now
            busy = step()
            failures = 0
            if said := trouble():
                roles.health().failed(said)
            else:
                roles.health().ok()
        except Moving as error:
            roles.health().failed(error.message)
            pinged = float("-inf")
            stop.wait(_MOVING_PAUSE)
            continue
        except Exception as error:
            if not (is_transient(error) or isinstance(error, QueryCanceled)):
                raise
            roles.health().failed(brief(error))
            _log.warning("trying again", error=brief(error), failures=failures + 1)
            stop.wait(_BACK_OFF[min(failures, len(_BACK_OFF) - 1)])
            failures += 1
            pinged = float("-inf")
            continue
        if not busy:
            stop.wait(_PAUSE)
