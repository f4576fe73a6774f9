"""Is anything stuck: what each part says, how far consumers are behind, what was set aside, what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import urllib3
from flask import Blueprint, render_template, request

from services.reporting.freshness import lag_watch
from services.reporting.handlers import GROUP
from services.reporting.queries.recount import recount
from shared.events import parking
from shared.events.workers import stopped
from shared.log import Lag
from shared.roles import read_report
from shared.settings import SERVICES, Settings
from shared.web import allow, service

bp = Blueprint("status", __name__)

# A part that needs longer to say that it is ready is not.
_TIMEOUT = urllib3.Timeout(connect=0.5, read=1.5)
_LATE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Part:
    """A service as its own `/readyz` tells it, and its worker on this machine. `problems` are sentences."""

    name: str
    answers: bool
    body: Mapping[str, Any]
    roles: Mapping[str, Mapping[str, Any]]
    problems: tuple[str, ...]


@bp.get("/reporting/status")
@allow("lead", "admin")
def show() -> str:
    """The status, and with `?recount=1` a comparison of all figures with the raw answers."""
    here = service()
    # First, so that a slow database is said at once rather than after our own part has waited for it.
    parked = parking.keys(here.db, limit=100)
    standing = stopped(here.db, GROUP)
    lags, log_answers = _lags()
    parts = _parts(here.settings)
    late = [lag for lag in lags if lag.unread and lag.seconds > _LATE_SECONDS]
    counted = None
    if request.args.get("recount"):
        with here.db.transaction() as tx:
            tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            tx.execute("SET LOCAL statement_timeout = 120000")
            counted = recount(tx)
    stuck = (
        sum(len(part.problems) for part in parts)
        + len(parked)
        + bool(standing)
        + bool(late)
        + (not log_answers)
        + (counted is not None and not counted.equal)
    )
    return render_template(
        "reporting/status.html",
        parts=parts,
        lags=_by_consumer(lags),
        late=late,
        log_answers=log_answers,
        parked=parked,
        standing=standing,
        counted=counted,
        stuck=stuck,
        uncertain={part.name: part.body.get("uncertain") for part in parts},
    )


def _lags() -> tuple[tuple[Lag, ...], bool]:
    _, lags, known = lag_watch().read()
    return lags, known


@dataclass(frozen=True, slots=True)
class Behind:
    """A consumer with all its topics: unread events, and the age of the oldest in seconds."""

    consumer: str
    unread: int
    seconds: float
    topics: tuple[Lag, ...]


def _by_consumer(lags: tuple[Lag, ...]) -> list[Behind]:
    names = sorted({lag.consumer for lag in lags})
    mine = {name: tuple(lag for lag in lags if lag.consumer == name) for name in names}
    return [
        Behind(
            name,
            sum(lag.unread for lag in mine[name]),
            max((lag.seconds for lag in mine[name] if lag.unread), default=0.0),
            tuple(lag for lag in mine[name] if lag.unread),
        )
        for name in names
    ]


def _parts(settings: Settings) -> list[Part]:
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        return list(pool.map(lambda name: _part(settings, name), SERVICES))


def _part(settings: Settings, name: str) -> Part:
    body = _ready(settings, name)
    report = read_report(settings.home, name) or {}
    problems: list[str] = []
    if body is None:
        problems.append("Its web role does not answer: see whether it runs (hearback status, make logs).")
    else:
        if body.get("status") != "ready":
            problems.append(
                f"Its web role is not ready: the database {body.get('database', 'is not known')}."
            )
        if body.get("parked"):
            problems.append(
                f"{body['parked']} events are set aside: see hearback log parked, mend the cause, then run "
                f"hearback log replay {name}."
            )
        if (body.get("outbox") or 0) > 10_000:
            problems.append(
                "Many events wait to go to the log: see whether its relay runs (hearback status)."
            )
    roles: Mapping[str, Mapping[str, Any]] = report.get("roles", {})
    for role, state in roles.items():
        if not state.get("ready"):
            problems.append(f"Its {role} cannot work now: {state.get('error') or 'it is starting'}.")
    if not report and (settings.home / "run" / "supervisord.pid").exists():  # else it runs elsewhere
        problems.append("Its worker does not report: see whether it runs (hearback status, make logs).")
    return Part(name, body is not None, body or {}, roles, tuple(problems))


def _ready(settings: Settings, name: str) -> Mapping[str, Any] | None:
    """What `/readyz` of a service says, ready or not; None when nothing of that kind answers."""
    # On one machine the port next door; else where we are told it is, or the address that everybody uses.
    told = {"survey": settings.survey_url, "followup": settings.followup_url}.get(name, settings.local_url)
    for origin in dict.fromkeys((told, settings.local_url, settings.public_url)):
        try:
            reply = urllib3.request(
                "GET", f"{origin}/{name}/readyz", timeout=_TIMEOUT, retries=False, redirect=False
            )
            body = json.loads(reply.data)
        except (urllib3.exceptions.HTTPError, ValueError):
            continue
        if isinstance(body, dict) and body.get("service") == name:
            return body
    return None
