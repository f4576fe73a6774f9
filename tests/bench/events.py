"""What the log carries of a campaign in which everybody answers: events as their owners make them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from services.survey import facts
from shared.events import catalog
from shared.events.envelope import Event, encode
from shared.events.fields import plain
from shared.events.outbox import event_id, shard_of
from shared.ids import SystemIds
from shared.log import Record
from tests.bench.ground import SCORES

PROGRAM = str(uuid.uuid4())
# Every second customer belongs to an account, and an account has so many of them.
PER_ACCOUNT = 4
_COMMENTS = (None, "Nobody called back when they had promised to.", None, "Lovely people.", None)


def campaign(customers: int, scores: Sequence[int] = SCORES) -> list[Event]:
    """Each customer is known, asked, delivered to and answers; a detractor's task is opened."""
    ids = SystemIds()
    now = datetime.now(UTC)
    accounts = [ids.new() for _ in range(max(1, customers // 2 // PER_ACCOUNT))]
    found: list[Event] = []
    opened: set[str] = set()
    for n in range(customers):
        account = _account(accounts[n // 2 % len(accounts)]) if n % 2 else None
        found += _one(ids, n, scores[n % len(scores)], account, now + timedelta(milliseconds=n), opened)
    return found


def _account(id_: str) -> dict[str, Any]:
    return {
        "id": id_,
        "version": 1,
        "name": f"Firm {id_[-8:]}",
        "tier": "gold",
        "annual_value": "12000.00",
        "manager_email": None,
    }


def _one(
    ids: SystemIds, n: int, score: int, account: dict[str, Any] | None, now: datetime, opened: set[str]
) -> Iterator[Event]:
    customer, invitation, delivery, response = ids.new(), ids.new(), ids.new(), ids.new()
    about = {
        "invitation_id": invitation,
        "customer_id": customer,
        "program_id": PROGRAM,
        "program_name": "Recommend",
        "touchpoint": "Order",
        "channel": "email",
        "test": False,
    }
    times = {"created_at": now, "sent_at": now, "expires_at": now + timedelta(days=30)}
    yield event(
        "customer.changed",
        customer,
        customer,
        {
            "id": customer, "external_id": f"crm-{n}", "email": f"{customer}@example.com", "phone": None,
            "name": f"Customer {n}", "account": account, "language": "en", "time_zone": None,
            "touchpoint": "Order", "properties": {"plan": "pro"}, "may_email": True, "may_sms": False,
            "email_opt_out_at": None, "sms_opt_out_at": None, "created_at": now, "updated_at": now,
        },
        now,
    )  # fmt: skip
    sent = about | times | {"delivery_id": delivery, "account_id": account["id"] if account else None}
    yield event("invitation.sent", customer, invitation, sent, now)
    yield event(
        "delivery.reported",
        customer,
        delivery,
        {
            "delivery_id": delivery, "kind": "invitation", "ref_id": invitation, "customer_id": customer,
            "channel": "email", "state": "delivered", "reason": None, "at": now,
        },
        now,
    )  # fmt: skip
    answer = about | {
        "response_id": response, "score": score, "comment": _COMMENTS[n % len(_COMMENTS)], "callback": None,
        "account": account, "language": "en", "time_zone": None, "answered_at": now, "revised_at": now,
        "source": "page", "state": "counted",
    }  # fmt: skip
    yield event("response.recorded", customer, response, facts.response(answer), now)
    subject = account["id"] if account else customer
    if score <= 6 and subject not in opened:
        opened.add(subject)
        task = ids.new()
        yield event("task.opened", task, task, _task(task, account, customer, response, score, now), now)


def _task(
    task: str, account: dict[str, Any] | None, customer: str, response: str, score: int, now: datetime
) -> dict[str, Any]:
    return {
        "task_id": task, "state": "open", "account_id": account["id"] if account else None,
        "customer_id": customer, "customer_ids": [customer], "response_ids": [response], "owner_id": None,
        "owner_name": None, "owner_email": None, "opened_at": now, "due_at": now + timedelta(hours=8),
        "call_by": now + timedelta(hours=8), "first_contact_at": None, "contacted_at": None,
        "dont_call": False, "call_please": False, "lowest_score": score, "theme_id": None, "theme": None,
        "outcome": None, "resolved_at": None, "escalated_at": None, "withdrawn_reason": None,
        "reopened": False, "at": now,
    }  # fmt: skip


def event(type_: str, key: str, aggregate: str, data: dict[str, Any], at: datetime) -> Event:
    """As `outbox.append` would make it. Raises `BadEvent` when the catalog refuses it."""
    kind = catalog.event_type(type_)
    said = plain(data)
    catalog.check(kind, said)
    topic = kind.topic.name
    return Event(event_id(topic, aggregate, 1), type_, topic, key, 1, at, said, day=at.date())


def records(events: Sequence[Event]) -> list[Record]:
    """What a relay makes of them."""
    return [Record(event.topic, event.key, event.value(), event.headers()) for event in events]


def outbox_rows(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """What `outbox.append` would have inserted."""
    return [
        (
            shard_of(event.key),
            event.topic,
            event.key,
            event.id,
            event.type,
            event.version,
            event.occurred_at,
            encode(event.data or {}).decode(),
            False,
            "",
        )
        for event in events
    ]
