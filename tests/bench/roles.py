"""What each role costs: CPU seconds per thousand answers, and per thousand messages, each role a process."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from services.survey.commands import ask, company, customers, programs
from services.survey.domain.rows import Row as CustomerRow
from services.survey.edge import opt_out_fingerprints
from tests.bench import load
from tests.bench.ground import SCORES, Ground
from tests.bench.load import get
from tests.bench.seed import Answer, Campaign
from tests.bench.table import Row, calibration
from tests.support.providers.stand_in import StandIn, stand_in
from tests.support.running import TOKEN, Process, Running

_CUSTOMERS = 2_000
_CONNECTIONS = 4
_QUIET_SECONDS = 5.0
# Every role of every service but the webs of staff, which no answer needs.
_ROLES = (
    ("survey", "web"), ("survey", "relay"), ("survey", "consumer"), ("survey", "sender"), ("survey", "clock"),
    ("followup", "relay"), ("followup", "consumer"), ("followup", "sender"), ("followup", "clock"),
    ("reporting", "consumer"),
)  # fmt: skip
_PHASES = ("messages", "answers")


@dataclass
class _Figures:
    """Of one log: CPU seconds per thousand by phase and part, one figure for each repeat."""

    spent: dict[str, dict[str, list[float]]] = field(default_factory=lambda: {name: {} for name in _PHASES})
    idle: dict[str, list[float]] = field(default_factory=dict)
    unit: list[float] = field(default_factory=list)
    missing: int = 0
    doubled: int = 0


def per_thousand(ground: Ground, repeats: int) -> list[Row]:
    """CPU seconds of each role, of PostgreSQL and of the broker ÷ the fixed piece of Python's."""
    return [row for log in ground.logs() for row in _rows(log, _measured(ground, log, repeats))]


def _rows(log: str, figures: _Figures) -> list[Row]:
    rows = []
    for phase, parts in figures.spent.items():
        for part, spent in parts.items():
            idle = figures.idle[part]
            rows.append(
                Row(
                    f"{part}, per 1,000 {phase}, {log} log", "CPU s", spent, figures.unit,
                    missing=figures.missing if phase == "answers" else None,
                    doubled=figures.doubled if phase == "answers" else None,
                    note=f"idle {100 * sum(idle) / len(idle):.1f} % of a CPU" if phase == "answers" else "",
                )
            )  # fmt: skip
    return rows


def _measured(ground: Ground, log: str, repeats: int) -> _Figures:
    figures = _Figures()
    for _ in range(repeats):
        began = time.process_time()
        calibration()
        figures.unit.append(time.process_time() - began)
        with stand_in() as provider, ground.installation(log) as running:
            running.environment = provider.environment()
            _once(ground, running, provider, figures)
    return figures


def _once(ground: Ground, running: Running, provider: StandIn, figures: _Figures) -> None:
    processes = {f"{service} {role}": running.role(service, role) for service, role in _ROLES}
    people = _customers(running)
    running.settle()

    before = _spent(ground, processes)
    time.sleep(_QUIET_SECONDS)
    for part, seconds in _since(before, _spent(ground, processes)).items():
        figures.idle.setdefault(part, []).append(seconds / _QUIET_SECONDS)

    before = _spent(ground, processes)
    with running.db("survey").transaction() as tx:
        program = programs.ensure_default(tx)
        ask.start(tx, str(program["id"]), {"all": True}, "bench")
    running.wait(lambda: len(provider.sendgrid.mails) >= _CUSTOMERS, None, "all mails")
    running.settle()
    _note(figures, "messages", _since(before, _spent(ground, processes)))

    campaign = Campaign(running, fresh=_forms(provider, people))
    forms = campaign.take(_CUSTOMERS)
    pages = [get(f"/a/{form.token}?s={form.score}") for form in forms]
    before = _spent(ground, processes)
    shown = load.run(running.settings.port, pages, _CONNECTIONS, 300.0)
    done = load.run(running.settings.port, [form.request for form in forms], _CONNECTIONS, 300.0)
    campaign.book(forms, done.acknowledged, done.sent)
    running.settle()
    _note(figures, "answers", _since(before, _spent(ground, processes)))
    assert len(shown.acknowledged) == len(done.acknowledged) == _CUSTOMERS, (shown.failures, done.failures)
    missing, doubled = campaign.counted()
    figures.missing += missing
    figures.doubled += doubled


def _customers(running: Running) -> dict[str, str]:
    """Customers by e-mail, half of them of an account; everybody hears of them."""
    made: dict[str, str] = {}
    prints = opt_out_fingerprints(running.settings)
    with running.db("survey").transaction() as tx:
        company.ensure(tx)
        programs.ensure_default(tx)
    for start in range(0, _CUSTOMERS, 500):
        rows = [
            CustomerRow(
                {
                    "email": f"c{n}@example.com",
                    "name": f"Customer {n}",
                    "account": f"Firm {n // 8}" if n % 2 else None,
                },
                {},
            )
            for n in range(start, start + 500)
        ]
        with running.db("survey").transaction() as tx:
            for row, outcome in zip(rows, customers.upsert(tx, rows, prints), strict=True):
                made[str(row.values["email"])] = str(outcome.customer_id)
    return made


def _forms(provider: StandIn, people: Mapping[str, str]) -> list[Answer]:
    """What everybody will send, out of the mails that they got."""
    forms = []
    for n, mail in enumerate(provider.sendgrid.mails):
        found = next((TOKEN.search(part["value"]) for part in mail["content"]), None)
        assert found, "a mail without a link to answer"
        forms.append(
            Answer(
                found[1],
                secrets.token_urlsafe(16),
                SCORES[n % len(SCORES)],
                people[mail["personalizations"][0]["to"][0]["email"]],
            )
        )
    return forms


def _note(figures: _Figures, phase: str, spent: Mapping[str, float]) -> None:
    for part, seconds in spent.items():
        figures.spent[phase].setdefault(part, []).append(seconds * 1_000 / _CUSTOMERS)


def _spent(ground: Ground, processes: Mapping[str, Process]) -> dict[str, float]:
    """CPU seconds so far, by part."""
    pids = {name: process.popen.pid for name, process in processes.items()}
    pids |= {"PostgreSQL": ground.postgres_pid()}
    if broker := ground.broker_pid():
        pids["Kafka broker"] = broker
    return {name: _cpu(psutil.Process(pid)) for name, pid in pids.items()}


def _since(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after}


def _cpu(process: psutil.Process) -> float:
    """Of a process with its children, those that have ended and were waited for as well."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
