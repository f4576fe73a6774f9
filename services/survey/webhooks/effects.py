"""What a provider's event does here, whichever provider says it: a text from a customer, a message's fate."""

from __future__ import annotations

from datetime import datetime

from flask import abort

from services.survey.commands import inbound, preferences, settle
from services.survey.edge import opt_out_fingerprints
from shared.db import Tx
from shared.web import service


def only_when_chosen(provider: str) -> None:
    """There is no such page while another provider is chosen: nobody could have signed for this one."""
    settings = service().settings
    if provider not in (settings.mail, settings.sms):
        abort(404)


def text(provider: str, event_id: str, sender: str, words: str, at: datetime) -> bool:
    """Takes in a customer's text, once; returns whether a STOP came too late for one message on its way."""
    here = service()
    with here.db.transaction() as tx:
        if _is_new(tx, provider, event_id):
            stopped = inbound.receive(tx, event_id, sender, words, at, opt_out_fingerprints()).stopped
        else:
            # Whoever repeats a STOP has had no answer yet, perhaps because the first one still waits for it.
            stopped = inbound.stopped_by(tx, event_id)
    return stopped is not None and preferences.wait(here.db, stopped, ("sms",))


def fate(
    provider: str, event_id: str, delivery_id: str, state: settle.Report, reason: str | None, at: datetime
) -> None:
    """Takes in what became of a message, once; of one that is not ours nothing is kept."""
    with service().db.transaction() as tx:
        if _is_new(tx, provider, event_id):
            settle.report(tx, delivery_id, state, reason, at, opt_out_fingerprints())


def _is_new(tx: Tx, provider: str, event_id: str) -> bool:
    # Whoever comes second waits here until the first has committed, then has nothing to do. Events are
    # remembered for some weeks, a text's id for ever: one that is replayed later is no new one.
    return bool(
        tx.execute(
            "INSERT INTO webhook_event (provider, event_id, at) SELECT %(provider)s, %(id)s, %(at)s"
            " WHERE NOT EXISTS (SELECT FROM inbound WHERE provider_id = %(id)s) ON CONFLICT DO NOTHING",
            {"provider": provider, "id": event_id, "at": tx.now},
        )
    )
