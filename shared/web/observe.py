"""What is seen of requests from outside: an id, one line in the log, and counters; never personal data."""

from __future__ import annotations

import re
import sys
import time

import structlog
from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from shared import telemetry
from shared.web.service import Service

_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_QUIET = ("/healthz", "/readyz", "/metrics")
# Seconds; a page has 0.1 of server time to be good.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


def configure_logging() -> None:
    """JSON lines on standard error, unless the process has chosen otherwise already."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        # Asked for each line: whoever redirects standard error later gets the later lines.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def masked(path: str) -> str:
    """A path fit for a log: without the tokens that links carry."""
    parts = path.split("/")
    for place, part in enumerate(parts):
        behind_token = place >= 2 and parts[1] in ("a", "u")
        looks_random = len(part) >= 20 and not _UUID.fullmatch(part) and not part.isalpha()
        if part and (behind_token or looks_random or "@" in part or "%40" in part or part.startswith("+")):
            parts[place] = "…"
    return "/".join(parts)


class Observer:
    """Counts and notes the requests of one app."""

    def __init__(self, here: Service) -> None:
        self.here = here
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "hearback_http_requests",
            "Requests answered.",
            ["service", "method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "hearback_http_request_seconds",
            "Server time of a request.",
            ["service", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def begin(self) -> None:
        """Before everything else: the request's id (a proxy's is kept) and when it began."""
        given = request.headers.get("X-Request-Id", "")
        g.request_id = given if _GIVEN_ID.fullmatch(given) else self.here.ids.token()
        g.began = time.perf_counter()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=g.request_id, service=self.here.name)

    def end(self, response: Response) -> Response:
        """After everything else: one line, one count. Query strings are not written down."""
        took = time.perf_counter() - g.get("began", time.perf_counter())
        rule = request.url_rule.rule if request.url_rule else "unknown"
        self.requests.labels(self.here.name, request.method, rule, response.status_code).inc()
        self.seconds.labels(self.here.name, rule).observe(took)
        who = g.get("actor")
        quiet = request.path.endswith(_QUIET) or rule.endswith("/static/<path:name>")
        if not (quiet and response.status_code < 400):
            line = {
                "request_id": g.get("request_id", ""),
                "service": self.here.name,
                "method": request.method,
                "path": masked(request.path),
                "status": response.status_code,
                "ms": round(took * 1000, 1),
                "actor": f"{who.kind}:{who.id}" if who else None,
            }
            telemetry.note("hearback.access", "request", line)
        return response

    def exposition(self) -> Response:
        """All counters in Prometheus' text format."""
        return Response(generate_latest(self.registry), content_type=CONTENT_TYPE_LATEST)


def install(app: Flask, here: Service) -> Observer:
    """Observes every request of `app`."""
    configure_logging()
    observer = Observer(here)
    app.before_request(observer.begin)
    return observer
