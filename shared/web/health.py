"""Whether this process lives, can do its own work, and how much it has done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import psycopg2
from flask import Blueprint, Response, jsonify
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from shared.db import lasting
from shared.errors import HearbackError
from shared.web.access import operator_or_key, public
from shared.web.observe import Observer
from shared.web.service import Service

_LAG_SECONDS = 5.0


def blueprint(here: Service, observer: Observer) -> Blueprint:
    """`healthz`, `readyz` and `metrics` of one service."""
    bp = Blueprint("health", __name__, url_prefix=f"/{here.name}")
    lag = _Remembered(_lag_of(here))
    observer.registry.register(_Backlog(here))

    @bp.get("/healthz")
    @public
    def healthz() -> Response:
        """The process answers; nothing else is asked of it."""
        return jsonify(status="alive", service=here.name)

    @bp.get("/readyz")
    @public
    def readyz() -> tuple[Response, int, dict[str, str]]:
        """Ready means: the database answers and its tables serve us. The log's trouble shows in the body.

        Tables of a newer version serve as long as they have lost nothing that this one uses.
        """
        body: dict[str, Any] = {"service": here.name, "role": "web"}
        try:
            problem = _unfit(here)
            if not problem:
                body |= backlog(here)
            body["database"] = "ok" if not problem else "its tables are of another version"
        except (psycopg2.Error, HearbackError) as error:
            problem = lasting(error) or f"The database of {here.name} does not answer."
            body["database"] = "does not answer"
        ready = not problem
        if problem:
            body["problem"] = problem
        body["log"] = lag.value()
        body["status"] = "ready" if ready else "unready"
        return jsonify(body), 200 if ready else 503, {} if ready else {"Retry-After": "2"}

    @bp.get("/metrics")
    @operator_or_key("metrics:read")
    def metrics() -> Response:
        """Counters of this process, for this machine and for keys with the scope metrics:read."""
        return observer.exposition()

    return bp


def backlog(here: Service) -> dict[str, Any]:
    """What waits in the database: events not yet on the log, events set aside, uncertain messages.

    Raises when it cannot tell.
    """
    counted = {"outbox": "outbox", "parked": "parked"}
    if import_module("shared.migrate").has_ledger(here.name):
        counted["uncertain"] = "delivery WHERE state = 'uncertain' AND settled_at IS NULL"
    columns = "".join(
        f", (SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT 100001) AS {name}) AS {name}"  # noqa: S608
        for name, rows in counted.items()
    )
    with here.db.separate() as tx:
        row = tx.one(f"SELECT (SELECT version_num FROM alembic_version) AS schema{columns}")  # noqa: S608
    return row or {}


def _unfit(here: Service) -> str:
    """Why this process cannot work on the tables, or is not noted as one that does; empty when it can."""
    with here.db.separate() as tx:
        said: str = import_module("shared.migrate").unfit(here.name, tx.cur)
    return said or str(import_module("shared.presence").refusal(here.name))


def _lag_of(here: Service) -> Callable[[], Any]:
    """Asks the log in use how far everybody is; it is opened when first asked, and kept."""
    in_use = import_module("shared.log.in_use")
    lag: Callable[[], Any] = in_use.Following(here.settings, here.db, here.clock).lag
    return lag


class _Backlog(Collector):
    """Gauges read from the database when somebody asks."""

    def __init__(self, here: Service) -> None:
        self.here = here

    def describe(self) -> list[GaugeMetricFamily]:
        return []

    def collect(self) -> list[GaugeMetricFamily]:
        try:
            counts = backlog(self.here)
        except (psycopg2.Error, HearbackError):
            return []
        found = []
        for name, what, text in (
            ("outbox", "events", "Events not yet on the log."),
            ("parked", "events", "Events set aside."),
            ("uncertain", "messages", "Messages of which nobody knows whether they went out."),
        ):
            if name in counts:
                gauge = GaugeMetricFamily(f"hearback_{name}_{what}", text, labels=["service"])
                gauge.add_metric([self.here.name], float(counts[name] or 0))
                found.append(gauge)
        return found


class _Remembered:
    """A value fetched in the background at most every few seconds, so that a dead neighbour delays nobody."""

    def __init__(self, fetch: Callable[[], Any]) -> None:
        self.fetch = fetch
        self.lock = threading.Lock()
        self.at = float("-inf")
        self.known: Any = {"status": "not asked yet"}

    def value(self) -> Any:
        """The value as it was last known; waits a quarter of a second at most."""
        if time.monotonic() - self.at > _LAG_SECONDS and self.lock.acquire(blocking=False):
            worker = threading.Thread(target=self._refresh, name="log-lag", daemon=True)
            worker.start()
            worker.join(0.25)
        return self.known

    def _refresh(self) -> None:
        try:
            self.known = {"status": "ok", "lag": self.fetch()}
        except Exception as error:
            # Whatever is wrong with the log is the log's readiness, not ours: say so and go on.
            self.known = {"status": "does not answer", "error": type(error).__name__}
        finally:
            self.at = time.monotonic()
            self.lock.release()
