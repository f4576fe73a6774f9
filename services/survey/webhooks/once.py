"""What a provider tells has one effect, however often it is told, and by however many at once."""

from __future__ import annotations

from datetime import datetime

from services.survey.commands import inbound, preferences
from services.survey.domain.sms import Keyword
from services.survey.edge import opt_out_fingerprints
from shared.db import Tx
from shared.web import service


def fresh(tx: Tx, provider: str, event_id: str) -> bool:
    """Notes the event; False when it was noted before.

    Whoever comes second waits here until the first has committed, then has nothing to do.
    """
    return (
        tx.execute(
            "INSERT INTO webhook_event (provider, event_id, at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            (provider, event_id, tx.now),
        )
        == 1
    )


def text(
    provider: str, event_id: str, sender: str, words: str, at: datetime, keyword: Keyword | None = None
) -> bool:
    """Takes in a customer's text, once; returns whether a STOP came too late for one message on its way.

    `keyword` is as in `inbound.receive`. Events are remembered for some weeks, a text's id for ever.
    """
    here = service()
    with here.db.transaction() as tx:
        if fresh(tx, provider, event_id):
            received = inbound.receive(tx, event_id, sender, words, at, opt_out_fingerprints(), keyword)
        else:
            received = inbound.Received("repeated")
        stopped = received.stopped
        if received.effect == "repeated":
            # Whoever repeats a STOP has had no answer yet, perhaps because the first one still waits for it.
            stopped = inbound.stopped_by(tx, event_id)
    return stopped is not None and preferences.wait(here.db, stopped, ("sms",))
