"""How far reporting is behind the log, asked in the background so that a slow log delays no page."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from flask import current_app

from services.reporting.handlers import GROUP
from shared.clock import Clock
from shared.log import Lag, Log
from shared.log.in_use import Following

_KEPT_SECONDS = 1.0
_PATIENCE = 0.05


@dataclass(frozen=True, slots=True)
class Freshness:
    """Figures are as of `at`, that is `behind` before now; `unread` events wait. `known` is False while the
    log does not answer: then `at` is only when it last did, or None."""

    at: datetime | None
    behind: timedelta
    unread: int
    known: bool


@dataclass
class LagWatch:
    """The lag of every consumer, remembered for a second.

    Invariant: `read` returns within a twentieth of a second when something is remembered, whatever the log
    does; only the very first one waits, at most a second.
    """

    log: Log | Following
    clock: Clock
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _asked: float = float("-inf")
    _at: datetime | None = None
    _lags: tuple[Lag, ...] = ()
    _known: bool = False

    def read(self) -> tuple[datetime | None, tuple[Lag, ...], bool]:
        """(when it was asked, the lags, whether the log answered the last time)."""
        first = self._at is None
        if self.clock.monotonic() - self._asked > _KEPT_SECONDS and self._lock.acquire(blocking=False):
            worker = threading.Thread(target=self._ask, name="lag", daemon=True)
            worker.start()
            worker.join(1.0 if first else _PATIENCE)
        return self._at, self._lags, self._known

    def freshness(self) -> Freshness:
        """How far reporting itself is behind."""
        at, lags, known = self.read()
        mine = [lag for lag in lags if lag.consumer == GROUP and lag.unread]
        behind = timedelta(seconds=max((lag.seconds for lag in mine), default=0.0))
        unread = sum(lag.unread for lag in mine)
        return Freshness(at - behind if at else None, behind, unread, known)

    def _ask(self) -> None:
        try:
            now = self.clock.now()
            found: Sequence[Lag] = self.log.lag()
            self._at, self._lags, self._known = now, tuple(found), True
        except Exception:
            # Whatever is wrong with the log: the figures stay, and say that their age is not known.
            self._known = False
        finally:
            self._asked = self.clock.monotonic()
            self._lock.release()


def lag_watch() -> LagWatch:
    """The watch of the current app."""
    found: LagWatch = current_app.extensions["hearback_lag"]
    return found
