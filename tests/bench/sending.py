"""Hand-overs to SendGrid over TLS by one sender process, with all that belongs to each mail."""

from __future__ import annotations

import time
from collections import Counter

from services.survey.commands import ask, company, programs
from shared.ids import SystemIds
from tests.bench.ground import Ground
from tests.bench.table import Row
from tests.support.providers.stand_in import StandIn, stand_in
from tests.support.running import Running

_MAILS = 5_000
# Not counted: the first connections, the first templates.
_FIRST = 500


def over_tls(ground: Ground, repeats: int) -> list[Row]:
    """Mails/s that the stand-in takes from a sender with permits, ledger and written words."""
    rates = []
    missing = doubled = 0
    for _ in range(repeats):
        with stand_in() as provider, ground.installation() as running:
            running.environment = provider.environment()
            _ask(running)
            running.role("survey", "sender")
            running.wait(lambda: len(provider.sendgrid.mails) >= _FIRST, None, "the first mails")
            began, first = time.perf_counter(), len(provider.sendgrid.mails)
            running.wait(lambda: len(provider.sendgrid.mails) >= _MAILS, None, "all mails")
            rates.append((_MAILS - first) / (time.perf_counter() - began))
            running.wait(lambda: _settled(running), None, "all mails to be settled")
            missing, doubled = _counted(running, provider)
    return [Row("mails to SendGrid over TLS, one sender", "mails/s", rates, (), 500, False, missing, doubled)]


def _ask(running: Running) -> None:
    """Customers with an address, and an invitation queued for each."""
    ids = SystemIds()
    db = running.db("survey")
    with db.transaction() as tx:
        company.ensure(tx)
        program = programs.ensure_default(tx)
        people = [(ids.new(), n) for n in range(_MAILS)]
        tx.values(
            "INSERT INTO customer (id, version, email, email_key, name, created_at, updated_at) VALUES %s",
            [
                (id_, 1, f"c{n}@example.com", f"c{n}@example.com", f"Customer {n}", tx.now, tx.now)
                for id_, n in people
            ],
        )
        run = ask.start(tx, str(program["id"]), {"all": True}, "bench")
    while run["state"] == "running":
        with db.transaction() as tx:
            run = ask.step(tx, str(run["id"]))
    assert run["asked"] == _MAILS, run


def _settled(running: Running) -> bool:
    with running.db("survey").transaction() as tx:
        return not tx.value("SELECT EXISTS (SELECT FROM delivery WHERE state IN ('queued', 'claimed'))")


def _counted(running: Running, provider: StandIn) -> tuple[int, int]:
    """Mails handed over that did not arrive, or the other way round; and those that arrived twice."""
    with running.db("survey").transaction() as tx:
        handed = {str(row["id"]) for row in tx.all("SELECT id FROM delivery WHERE state = 'handed'")}
    arrived = Counter(provider.sendgrid.delivery_ids())
    missing = len(handed ^ arrived.keys()) + _MAILS - len(handed)
    return missing, sum(count - 1 for count in arrived.values())
