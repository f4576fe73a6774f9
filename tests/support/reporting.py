"""Histories of events, checked against the catalog, for the tests of reporting."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from shared.events.catalog import check, event_type
from shared.events.envelope import Event
from shared.events.fields import instant

START = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
PROGRAMS = {
    "11111111-1111-7111-8111-111111111111": ("Orders", "order"),
    "22222222-2222-7222-8222-222222222222": ("Support", "support"),
}
_CARRIED = ("invitation_id", "customer_id", "program_id", "program_name", "touchpoint")
HOURS = {day: ["09:00", "17:00"] for day in ("mon", "tue", "wed", "thu", "fri")}


def make(kind: str, key: str, version: int, data: Mapping[str, Any] | None, at: datetime) -> Event:
    """An event as the catalog allows it."""
    of = event_type(kind)
    aggregate = key
    if data is not None:
        check(of, data)
        if of.aggregate:
            aggregate = of.aggregate(data)
    name = f"{of.topic.name}|{aggregate}|{version}"
    return Event(str(uuid.uuid5(uuid.NAMESPACE_OID, name)), kind, of.topic.name, key, version, at, data)


@dataclass
class History:
    """Events in the order they happened, made by saying what happens; ids come from `random`, so a seed
    makes the same history again."""

    random: random.Random = field(default_factory=lambda: random.Random(7))
    now: datetime = START
    events: list[Event] = field(default_factory=list)
    _versions: dict[str, int] = field(default_factory=dict)
    _last: dict[str, dict[str, Any]] = field(default_factory=dict)
    _accounts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def id(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def tell(self, kind: str, key: str, aggregate: str, data: Mapping[str, Any] | None) -> None:
        """Adds an event with the aggregate's next version."""
        version = self._versions[aggregate] = self._versions.get(aggregate, 0) + 1
        self.events.append(make(kind, key, version, data, self.now))

    def company(self, zone: str = "UTC") -> None:
        data = {
            "name": "Acme",
            "sender_name": "Acme",
            "sender_email": "hello@acme.example",
            "reply_to": "hello@acme.example",
            "postal_address": "1 Main Street",
            "colour": "#2255aa",
            "language": "en",
            "time_zone": zone,
            "business_hours": HOURS,
            "first_contact_hours": 8,
            "fallback_owner": None,
            "ask_gap_days": 30,
            "contact_limit": 6,
        }
        self.tell("company.changed", "company", "company", data)

    def programs(self) -> None:
        for key, (name, touchpoint) in PROGRAMS.items():
            data = {
                "id": key,
                "name": name,
                "touchpoint": touchpoint,
                "channels": ["email"],
                "wording": {},
                "answer_days": 30,
                "state": "active",
            }
            self.tell("program.changed", key, key, data)

    def customer(self, name: str = "Ada", account: Mapping[str, Any] | None = None) -> str:
        key = self.id()
        data = {
            "id": key,
            "external_id": None,
            "email": f"{key}@example.com",
            "phone": None,
            "name": name,
            "account": account,
            "language": None,
            "time_zone": None,
            "touchpoint": None,
            "properties": {},
            "may_email": True,
            "may_sms": False,
            "email_opt_out_at": None,
            "sms_opt_out_at": None,
            "created_at": instant(self.now),
            "updated_at": instant(self.now),
        }
        self._last[key] = data
        self.tell("customer.changed", key, key, data)
        return key

    def account(self, name: str, manager: str | None = None) -> dict[str, Any]:
        """An account as it stands now; naming another manager makes its next version."""
        found = self._accounts.get(name)
        if found is None or found["manager_email"] != manager:
            found = self._accounts[name] = {
                "id": found["id"] if found else self.id(),
                "version": found["version"] + 1 if found else 1,
                "name": name,
                "tier": "gold",
                "annual_value": "12000.00",
                "manager_email": manager,
            }
        return found

    def change_customer(self, customer: str, **changed: Any) -> None:
        """A customer's next state."""
        data = self._last[customer] | changed | {"updated_at": instant(self.now)}
        self._last[customer] = data
        self.tell("customer.changed", customer, customer, data)

    def text(self, customer: str, words: str) -> None:
        """A customer's text that answers nothing."""
        data: dict[str, Any] = {
            "message_id": self.id(),
            "customer_id": customer,
            "account_id": None,
            "channel": "sms",
            "text": words,
            "at": instant(self.now),
        }
        self.tell("message.received", customer, data["message_id"], data)

    def erase(self, customer: str) -> None:
        self.tell("customer.changed", customer, customer, None)

    def ask(
        self, customer: str, program: str | None = None, *, test: bool = False, touchpoint: str | None = None
    ) -> str:
        """An invitation that was handed over; returns its id."""
        program = program or next(iter(PROGRAMS))
        key = self.id()
        data = {
            "invitation_id": key,
            "customer_id": customer,
            **_asked_about(program, touchpoint),
            "channel": "email",
            "account_id": None,
            "delivery_id": self.id(),
            "created_at": instant(self.now),
            "sent_at": instant(self.now),
            "expires_at": instant(self.now + timedelta(days=30)),
            "test": test,
        }
        self._last[key] = dict(data)
        self.tell("invitation.sent", customer, key, data)
        return key

    def expire(self, invitation: str) -> None:
        customer = self._last[invitation]["customer_id"]
        data = {"invitation_id": invitation, "customer_id": customer, "at": instant(self.now)}
        self.tell("invitation.expired", customer, invitation, data)

    def skip(self, customer: str, reason: str = "recently_asked") -> None:
        data: dict[str, Any] = {
            "skip_id": self.id(),
            "invitation_id": None,
            "customer_id": customer,
            **_asked_about(next(iter(PROGRAMS)), None),
            "account_id": None,
            "reason": reason,
            "at": instant(self.now),
        }
        self.tell("invitation.skipped", customer, data["skip_id"], data)

    def report(
        self, ref: str, customer: str, state: str, *, kind: str = "invitation", delivery: str | None = None
    ) -> str:
        """What the provider says of an invitation's or notice's message; returns the delivery's id."""
        delivery = delivery or self._last[ref].get("delivery_id") or self.id()
        data = {
            "delivery_id": delivery,
            "kind": kind,
            "ref_id": ref,
            "customer_id": customer,
            "channel": "email",
            "state": state,
            "reason": None,
            "at": instant(self.now),
        }
        version = {"delivered": 1, "bounced": 2, "failed": 2, "complained": 3}[state]
        self.events.append(make("delivery.reported", customer, version, data, self.now))
        return delivery

    def click(self, invitation: str, score: int) -> None:
        """A score that was clicked and never confirmed."""
        asked = self._last[invitation]
        data = {
            k: asked[k] for k in ("invitation_id", "customer_id", "program_id", "program_name", "touchpoint")
        }
        data |= {"channel": "email", "account": self._account_of(asked), "score": score, "band": band(score)}
        data["clicked_at"] = instant(self.now)
        self.tell("response.unconfirmed", asked["customer_id"], f"unconfirmed:{invitation}", data)

    def answer(
        self, invitation: str, score: int, *, state: str = "counted", comment: str | None = None
    ) -> str:
        """An answer; returns its id."""
        asked = self._last[invitation]
        key = self.id()
        data = {
            k: asked[k] for k in ("invitation_id", "customer_id", "program_id", "program_name", "touchpoint")
        }
        data |= {
            "response_id": key,
            "channel": "email",
            "score": score,
            "band": band(score),
            "comment": comment,
            "callback": None,
            "account": self._account_of(asked),
            "language": None,
            "time_zone": None,
            "answered_at": instant(self.now),
            "revised_at": instant(self.now),
            "source": "page",
            "state": state,
            "test": asked["test"],
        }
        self._last[key] = data
        self.tell("response.recorded", asked["customer_id"], key, data)
        return key

    def revise(self, response: str, score: int) -> None:
        data = self._last[response] | {"score": score, "band": band(score), "revised_at": instant(self.now)}
        self._last[response] = data
        self.tell("response.revised", data["customer_id"], response, data)

    def exclude(self, response: str, excluded: bool = True) -> None:
        self._last[response] = self._last[response] | {"state": "excluded" if excluded else "counted"}
        data = self._last[response] | {
            "excluded": excluded,
            "reason": "a test",
            "by": "Lea",
            "at": instant(self.now),
        }
        self.tell("response.excluded", data["customer_id"], response, data)

    def task(self, response: str, *, due_in: timedelta = timedelta(hours=8)) -> str:
        """A callback task that an answer opened; returns its id."""
        key = self.id()
        answer = self._last[response]
        data = {
            "task_id": key,
            "state": "open",
            "account_id": None,
            "customer_id": answer["customer_id"],
            "customer_ids": [answer["customer_id"]],
            "response_ids": [response],
            "owner_id": None,
            "owner_name": "Max",
            "owner_email": "max@acme.example",
            "opened_at": instant(self.now),
            "due_at": instant(self.now + due_in),
            "call_by": None,
            "first_contact_at": None,
            "contacted_at": None,
            "dont_call": False,
            "call_please": False,
            "lowest_score": answer["score"],
            "theme_id": None,
            "theme": None,
            "outcome": None,
            "resolved_at": None,
            "escalated_at": None,
            "withdrawn_reason": None,
            "reopened": False,
            "at": instant(self.now),
        }
        self._last[key] = data
        self.tell("task.opened", key, key, data)
        return key

    def task_event(self, task: str, kind: str, **changed: Any) -> None:
        """Something that happened to a task, with the fields it changed."""
        data = self._last[task] | changed | {"at": instant(self.now)}
        self._last[task] = data
        self.tell(f"task.{kind}", task, task, data)

    def join(self, task: str, response: str) -> None:
        self.task_event(task, "joined", response_ids=[*self._last[task]["response_ids"], response])

    def attempt(self, task: str, *, reached: bool) -> None:
        now = instant(self.now)
        before = self._last[task]
        self.task_event(
            task,
            "attempted",
            first_contact_at=before["first_contact_at"] or now,
            contacted_at=before["contacted_at"] or (now if reached else None),
        )

    def resolve(self, task: str) -> None:
        self.task_event(
            task,
            "resolved",
            state="resolved",
            theme_id=PROGRAM_THEME,
            theme="Delivery",
            outcome="fixed",
            resolved_at=instant(self.now),
        )

    def change(self, title: str = "Saturday delivery") -> str:
        key = self.id()
        data = {
            "change_id": key,
            "title": title,
            "was_wrong": "Too slow",
            "is_different": "Faster",
            "language": "en",
            "themes": [{"id": PROGRAM_THEME, "name": "Delivery"}],
            "published_at": instant(self.now),
            "published_by": "Lea",
            "audience_count": 1,
            "withdrawn_at": None,
        }
        self._last[key] = data
        self.tell("change.published", key, key, data)
        return key

    def notice(self, change: str, response: str, *, skipped: str | None = None) -> str:
        """A notice about a change to who gave an answer; returns its id."""
        key = self.id()
        data = {
            "notice_id": key,
            "change_id": change,
            "customer_id": self._last[response]["customer_id"],
            "response_id": response,
            "channel": None if skipped else "email",
            "delivery_id": None if skipped else self.id(),
            "quote": None,
            "sent_at": None if skipped else instant(self.now),
            "reason": skipped,
            "helped": None,
            "helped_at": None,
            "at": instant(self.now),
        }
        self._last[key] = data
        self.tell("notice.skipped" if skipped else "notice.sent", data["customer_id"], key, data)
        return key

    def helped(self, notice: str, yes: bool) -> None:
        data = self._last[notice] | {"helped": yes, "helped_at": instant(self.now), "at": instant(self.now)}
        self._last[notice] = data
        self.tell("notice.answered", data["customer_id"], notice, data)

    def _account_of(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """The present state of the account of whoever was asked."""
        account = self._last[asked["customer_id"]]["account"]
        return self._accounts.get(account["name"], account) if account else None

    def wait(self, **by: float) -> None:
        self.now += timedelta(**by)


PROGRAM_THEME = "33333333-3333-7333-8333-333333333333"


def band(score: int) -> str:
    return "detractor" if score <= 6 else "passive" if score <= 8 else "promoter"


def _asked_about(program: str, touchpoint: str | None) -> dict[str, str]:
    name, usual = PROGRAMS[program]
    return {"program_id": program, "program_name": name, "touchpoint": touchpoint or usual}
