"""Followup in tests: its app over HTTP, logged-in browsers, and events as its consumer gets them."""

from __future__ import annotations

import re
import uuid
from datetime import datetime, timedelta
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from services.followup import handlers
from services.followup.app import create_app
from services.followup.commands import keys, staff
from services.followup.domain.roles import SCOPES
from shared.clock import ManualClock
from shared.db import Database, Row, Tx
from shared.events.envelope import Event
from shared.events.fields import instant
from shared.ids import SystemIds
from shared.settings import Settings

PASSWORD = "correct horse battery"
_CSRF = re.compile(r'name="csrf_token" value="([0-9a-f]+)"')


class Browser:
    """A browser of one person: keeps cookies, sends the form's token along."""

    def __init__(self, app: Flask) -> None:
        self.client: FlaskClient = app.test_client()

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self.client.get(path, headers={"Accept": "text/html"}, **kwargs)

    def post(
        self, path: str, data: dict[str, Any] | None = None, *, form_on: str | None = None
    ) -> TestResponse:
        """Posts a form with the token that the page `form_on` carries (any page of one's own has one)."""
        page = self.get(form_on or "/followup/password")
        found = _CSRF.search(page.text)
        if found is None:
            page = self.get("/followup/login")
            found = _CSRF.search(page.text)
        assert found, f"no form on {form_on}: {page.status}"
        return self.client.post(
            path, data={**(data or {}), "csrf_token": found[1]}, headers={"Accept": "text/html"}
        )

    def log_in(self, login: str, password: str = PASSWORD) -> TestResponse:
        return self.post("/followup/login", {"login": login, "password": password}, form_on="/followup/login")


class Followup:
    """One followup service with its database and its clock."""

    def __init__(self, settings: Settings, clock: ManualClock) -> None:
        self.settings = settings
        self.clock = clock
        self.db = Database(settings.database_urls["followup"], clock, SystemIds(), name="test")
        self.app = create_app(settings, clock=clock)
        self.versions: dict[str, int] = {}
        self.people: dict[str, str] = {}

    def staff(self, email: str, role: str = "agent", name: str | None = None) -> str:
        """A person with a login and the usual password; returns their id."""
        name = name or email.split("@")[0].title()
        with self.db.transaction() as tx:
            staff_id, once = staff.add(tx, b"k" * 32, email=email, name=name, role=role)
            staff.set_own_password(tx, staff_id, current=once, new=PASSWORD, again=PASSWORD)
        self.people[email] = staff_id
        return staff_id

    def browser(self, email: str) -> Browser:
        """A browser in which this person is logged in."""
        browser = Browser(self.app)
        assert browser.log_in(email).status_code == 303
        return browser

    def key(self, *scopes: str) -> dict[str, str]:
        """The headers of a new API key (by default with every scope)."""
        with self.db.transaction() as tx:
            _, secret = keys.create(tx, name="a program", scopes=scopes or list(SCOPES), created_by=None)
        return {"Authorization": f"Bearer {secret}"}

    def apply(self, *events: Event) -> None:
        """Applies events as one batch of the consumer."""
        with self.db.transaction() as tx:
            handlers.apply(tx, events)

    def all(self, sql: str, *args: Any) -> list[Row]:
        with self.db.transaction() as tx:
            return tx.all(sql, args)

    def one(self, sql: str, *args: Any) -> Row:
        rows = self.all(sql, *args)
        assert len(rows) == 1, rows
        return rows[0]

    def tasks(self) -> list[Row]:
        return self.all("SELECT * FROM task ORDER BY opened_at, id")

    def published(self, type_: str | None = None) -> list[Row]:
        """What waits in the outbox, oldest first."""
        rows = self.all("SELECT type, key, version, data::jsonb AS data, replay FROM outbox ORDER BY id")
        return [row for row in rows if type_ is None or row["type"] == type_]

    def mails(self) -> list[Row]:
        """Mails queued for staff, oldest first."""
        return self.all(
            """SELECT d.*, s.email AS to FROM delivery d JOIN staff s ON s.id = (d.data->>'staff_id')::uuid
               WHERE d.kind = 'staff' ORDER BY d.created_at, d.id"""
        )

    # Events as survey publishes them.

    def company(self, **more: Any) -> Event:
        data = {
            "name": "Acme",
            "sender_name": "Acme",
            "sender_email": "hello@acme.example",
            "reply_to": "hello@acme.example",
            "postal_address": "1 Road",
            "colour": "#0b5fff",
            "language": "en",
            "time_zone": "Europe/Berlin",
            "business_hours": {day: ["09:00", "17:00"] for day in ("mon", "tue", "wed", "thu", "fri")},
            "first_contact_hours": 8,
            "fallback_owner": None,
            "ask_gap_days": 30,
            "contact_limit": 6,
        } | more
        return self._event("company.changed", "settings", "company", data, "company")

    def customer(self, customer_id: str, account: dict[str, Any] | None = None, **more: Any) -> Event:
        data = {
            "id": customer_id,
            "external_id": None,
            "email": "carla@customer.example",
            "phone": "+4915112345678",
            "name": "Carla Customer",
            "account": account,
            "language": "en",
            "time_zone": None,
            "touchpoint": None,
            "properties": {},
            "may_email": True,
            "may_sms": True,
            "email_opt_out_at": None,
            "sms_opt_out_at": None,
            "created_at": self._at(),
            "updated_at": self._at(),
        } | more
        return self._event("customer.changed", "customers", customer_id, data, customer_id)

    def erasure(self, customer_id: str) -> Event:
        return self._event("customer.changed", "customers", customer_id, None, customer_id)

    def response(
        self,
        customer_id: str,
        score: int,
        *,
        account: dict[str, Any] | None = None,
        response_id: str | None = None,
        type_: str | None = None,
        replay: bool = False,
        version: int | None = None,
        **more: Any,
    ) -> Event:
        response_id = response_id or str(uuid.uuid4())
        data = {
            "response_id": response_id,
            "invitation_id": str(uuid.uuid5(uuid.NAMESPACE_URL, response_id)),
            "customer_id": customer_id,
            "program_id": str(uuid.UUID(int=7)),
            "program_name": "After an order",
            "touchpoint": "order",
            "channel": "email",
            "score": score,
            "band": "detractor" if score <= 6 else "passive" if score <= 8 else "promoter",
            "comment": None,
            "callback": None,
            "account": account,
            "language": "en",
            "time_zone": None,
            "answered_at": self._at(),
            "revised_at": self._at(),
            "source": "page",
            "state": "counted",
            "test": False,
        } | more
        if type_ == "response.excluded":
            data |= {
                "excluded": data["state"] == "excluded",
                "reason": "a test",
                "by": "Lea",
                "at": self._at(),
            }
        known = self.versions.get(response_id, 0)
        type_ = type_ or ("response.revised" if known else "response.recorded")
        return self._event(type_, "responses", customer_id, data, response_id, replay=replay, version=version)

    def unconfirmed(
        self, customer_id: str, score: int, invitation_id: str, account: dict[str, Any] | None = None
    ) -> Event:
        data = {
            "invitation_id": invitation_id,
            "customer_id": customer_id,
            "program_id": str(uuid.UUID(int=7)),
            "program_name": "After an order",
            "touchpoint": "order",
            "channel": "email",
            "account": account,
            "score": score,
            "band": "detractor" if score <= 6 else "passive",
            "clicked_at": self._at(),
        }
        return self._event("response.unconfirmed", "responses", customer_id, data, "u" + invitation_id)

    def message(self, customer_id: str, text: str) -> Event:
        data = {
            "message_id": str(uuid.uuid4()),
            "customer_id": customer_id,
            "account_id": None,
            "channel": "sms",
            "text": text,
            "at": self._at(),
        }
        return self._event("message.received", "deliveries", customer_id, data, data["message_id"] or "")

    def _at(self) -> str:
        return instant(self.clock.now())

    def _event(
        self,
        type_: str,
        topic: str,
        key: str,
        data: dict[str, Any] | None,
        aggregate: str,
        *,
        replay: bool = False,
        version: int | None = None,
    ) -> Event:
        from shared.events import catalog

        if data is not None:
            catalog.check(catalog.event_type(type_), data)
        self.versions[aggregate] = version or self.versions.get(aggregate, 0) + 1
        return Event(
            id=str(uuid.uuid4()),
            type=type_,
            topic=topic,
            key=key,
            version=self.versions[aggregate],
            occurred_at=self.clock.now(),
            data=data,
            replay=replay,
        )


def account(
    name: str = "Globex", manager: str | None = None, version: int = 1, **more: Any
) -> dict[str, Any]:
    """An account block, its id made from its name."""
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "version": version,
        "name": name,
        "tier": "gold",
        "annual_value": "12000.00",
        "manager_email": manager,
    } | more


def new_id() -> str:
    return str(uuid.uuid4())


def at(clock: ManualClock, **delta: float) -> datetime:
    return clock.now() + timedelta(**delta)


__all__ = ["PASSWORD", "Browser", "Followup", "Tx", "account", "at", "new_id"]
