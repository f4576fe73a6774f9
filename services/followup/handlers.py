"""What followup does with each event: it keeps replicas, triages answers, and forgets whom survey erased."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from services.followup.commands import locks, notices, owners, replicas, triage
from shared.db import Tx
from shared.events.consumer import by_type
from shared.events.envelope import Event

GROUP = "followup"
TOPICS = ("settings", "customers", "invitations", "responses", "deliveries")


def apply(tx: Tx, events: Sequence[Event]) -> None:
    """Applies a batch in one transaction; raises when one of them cannot be applied.

    All rows the batch may touch are locked first, in order.
    """
    locks.lock_for(tx, events)
    _replicate(tx, events)
    # What deadlines and owners hang on, then most answers at once, then the rest one by one.
    settings = [event for event in events if event.topic == "settings"]
    _BY_TYPE(tx, settings)
    first = _first_answers(tx, events)
    seen = {event.id for event in (*settings, *first)}
    _BY_TYPE(tx, [event for event in events if event.id not in seen])


def _first_answers(tx: Tx, events: Sequence[Event]) -> list[Event]:
    """Stores and triages customers' first answers together; returns the events that this was about.

    Only those with nothing else of their customer in the batch that would have to come before or after.
    """
    times = Counter(event.key for event in events if event.topic == "responses")
    erased = {event.key for event in events if event.topic == "customers" and event.data is None}
    found = {
        _data(event)["response_id"]: event
        for event in events
        if event.type == "response.recorded"
        and times[event.key] == 1
        and event.key not in erased
        and _data(event)["state"] == "counted"
    }
    if not found:
        return []
    for response_id in replicas.known_responses(tx, list(found)):
        del found[response_id]
    gone = replicas.erased_of(tx, [event.key for event in found.values()])
    first = [event for event in found.values() if event.key not in gone]
    if not first:
        return []
    answers = replicas.store_first_responses(tx, [(event.version, _data(event)) for event in first])
    triage.first_answered(
        tx,
        [
            (answer, account["id"] if (account := _data(event)["account"]) else None, event.version)
            for answer, event in zip(answers, first, strict=True)
            if not event.replay
        ],
    )
    return first


def company_changed(tx: Tx, event: Event) -> None:
    """New settings; a new fallback owner gets what nobody owns."""
    data = _data(event)
    before = replicas.store_company(tx, event.version, data)
    if before is not None and before.get("fallback_owner") != data["fallback_owner"]:
        owners.find_owners(tx)


def program_changed(tx: Tx, event: Event) -> None:
    """A program's present name and wording."""
    replicas.store_program(tx, event.key, event.version, _data(event))


def customer_changed(tx: Tx, event: Event) -> None:
    """A customer's erasure; their state is kept with the whole batch's."""
    if event.data is None:
        _erase(tx, event.key)


def response_changed(tx: Tx, event: Event) -> None:
    """An answer, a change of mind, or an exclusion: stored always, triaged unless it is a replay."""
    data = _data(event)
    if replicas.is_erased(tx, data["customer_id"]):
        return
    stored = replicas.store_response(tx, event.version, data)
    if stored is None:
        return
    before, now = stored
    if now.perhaps_unhappy:
        replicas.store_unconfirmed(tx, data, score=now.score, at=now.revised_at, kind="quarantined")
    else:
        replicas.forget_unconfirmed(tx, data["invitation_id"])
    if not event.replay:
        triage.answered(tx, before, now, data["account"]["id"] if data["account"] else None, event.version)


def response_unconfirmed(tx: Tx, event: Event) -> None:
    """A click nobody confirmed; one of 0–6 is shown as "perhaps unhappy"."""
    data = _data(event)
    if data["band"] == "detractor" and not replicas.is_erased(tx, data["customer_id"]):
        replicas.store_unconfirmed(tx, data, score=data["score"], at=data["clicked_at"])


def message_received(tx: Tx, event: Event) -> None:
    """A customer's text that answers nothing; told to whoever has their task."""
    data = _data(event)
    if replicas.is_erased(tx, data["customer_id"]):
        return
    if replicas.store_message(tx, data) and not event.replay:
        triage.message_received(tx, data["customer_id"], data["message_id"])


def _erase(tx: Tx, customer_id: str) -> None:
    if replicas.is_erased(tx, customer_id):
        return
    tx.execute(
        "INSERT INTO erased (customer_id, at) VALUES (%s, %s) ON CONFLICT DO NOTHING", (customer_id, tx.now)
    )
    notices.on_customer_erased(tx, customer_id)
    triage.customer_erased(tx, customer_id)
    for table in ("response", "response_before", "unconfirmed", "inbound_message"):
        tx.execute(f"DELETE FROM {table} WHERE customer_id = %s", (customer_id,))  # noqa: S608
    tx.execute("DELETE FROM customer WHERE id = %s", (customer_id,))
    tx.execute("DELETE FROM idempotency WHERE position(%s::bytea IN body) > 0", (customer_id.encode(),))


def _replicate(tx: Tx, events: Sequence[Event]) -> None:
    """Accounts and customers of the batch, with one statement each: an import brings many.

    Before everything else in the batch: an answer finds its account's present manager, and an erasure
    removes what came before it.
    """
    told = [event for event in events if event.type in _WITH_ACCOUNT and event.data is not None]
    accounts = [account for event in told if (account := _data(event)["account"]) is not None]
    managers_before = dict(replicas.store_accounts(tx, accounts)) if accounts else {}
    if managers_before:
        owners.managers_changed(tx, managers_before)
    customers = [(event.version, _data(event)) for event in told if event.type == "customer.changed"]
    if customers:
        replicas.store_customers(tx, customers)


_WITH_ACCOUNT = (
    "customer.changed",
    "response.recorded",
    "response.revised",
    "response.excluded",
    "response.unconfirmed",
)


def _data(event: Event) -> dict[str, Any]:
    if event.data is None:
        raise ValueError(f"{event.type} needs data")
    return dict(event.data)


_BY_TYPE = by_type(
    {
        "company.changed": company_changed,
        "program.changed": program_changed,
        "customer.changed": customer_changed,
        "response.recorded": response_changed,
        "response.revised": response_changed,
        "response.excluded": response_changed,
        "response.unconfirmed": response_unconfirmed,
        "delivery.reported": notices.on_delivery_reported,
        "message.received": message_received,
    }
)
