"""Asking and answering in tests: messages land in a list, customers click and write."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

from werkzeug.test import TestResponse

from services.survey.commands import ask, clock, company, customers, programs
from services.survey.commands.sender import make_sender
from services.survey.domain.rows import Row as CustomerRow
from shared.channels import Message, UncertainError
from shared.channels.mailbox import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from shared.clock import ManualClock
from shared.db import Row
from shared.settings import Settings
from tests.support.customers import Survey
from tests.support.postgres import FreshDatabases, TestPostgres

START = datetime(2026, 3, 3, 10, 0, tzinfo=UTC)


class Provider:
    """Takes messages; raises `refuse` instead when it is set."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.refuse: Exception | None = None

    def send(self, message: Message) -> str:
        if isinstance(self.refuse, UncertainError):  # it took the message, and nobody knows
            self.messages.append(message)
        if self.refuse is not None:
            raise self.refuse
        self.messages.append(message)
        return f"p{len(self.messages)}"


class Asking(Survey):
    """A survey with a company, a program, a sender and a provider (or, `by_settings`, those chosen there)."""

    def __init__(self, settings: Settings, *, by_settings: bool = False) -> None:
        clock = ManualClock(START)
        super().__init__(settings, clock)
        self.provider = Provider()
        ways = None if by_settings else (lambda channel: self.provider)
        self.sender = make_sender(settings, self.db, clock, ways)
        self.http = self.app.test_client()
        self.counter = 0
        self.begin()

    def begin(self) -> None:
        """The company and its first program, and nothing told yet."""
        with self.db.transaction() as tx:
            company.change(tx, {"name": "Example Ltd", "time_zone": "Europe/Berlin", "contact_limit": 3})
            self.program = programs.ensure_default(tx)
        self.events()

    def reset(self) -> None:
        """Empties every table and begins anew, which is quicker than another database."""
        with self.db.transaction() as tx:
            tables = tx.all(
                "SELECT format('%I', tablename) AS name FROM pg_tables"
                " WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            )
            tx.execute("TRUNCATE " + ", ".join(row["name"] for row in tables) + " CASCADE")
        self.provider.messages.clear()
        self.provider.refuse = None
        self.clock.set(START)
        self.begin()

    def add(self, **values: Any) -> str:
        """A customer with an address made up for them, unless `email` or `phone` is given; returns their
        id.
        """
        self.counter += 1
        if "email" not in values and "phone" not in values:
            values["email"] = f"c{self.counter}@example.com"
        with self.db.transaction() as tx:
            found = customers.upsert(tx, [CustomerRow(values)], self.fingerprints)[0]
        assert found.customer_id, found.reason
        return found.customer_id

    def ask(self, audience: Mapping[str, Any] | None = None, **options: Any) -> Row:
        """Asks everybody, or an audience, to the end."""
        with self.db.transaction() as tx:
            run = ask.start(
                tx,
                str(self.program["id"]),
                {"all": True} if audience is None else audience,
                "test",
                **options,
            )
        while run["state"] == "running":
            with self.db.transaction() as tx:
                run = ask.step(tx, str(run["id"]))
        return run

    def send(self) -> list[Message]:
        """Lets the sender work until it is idle; what left just now."""
        before = len(self.provider.messages)
        for _ in range(20):
            with self.db.transaction() as tx:
                waiting = tx.value(
                    "SELECT count(*) FROM delivery WHERE state = 'queued' AND not_before <= %s", (tx.now,)
                )
            if not waiting:
                break
            self.sender.step()
        return self.provider.messages[before:]

    def invited(self, **values: Any) -> Message:
        """One new customer, asked; the message they got."""
        customer_id = self.add(**values)
        self.ask({"customers": [customer_id]})
        return self.send()[-1]

    def page(self, path: str) -> TestResponse:
        return self.http.get(path, headers={"Accept": "text/html"})

    def submit(
        self, path: str, *, page: str | None = None, json: bool = False, **fields: str
    ) -> TestResponse:
        """Opens the page (or takes `page`) and sends its form with its hidden fields, as a browser does."""
        hidden = form_of(page if page is not None else self.page(path).text)
        accept = "application/json" if json else "text/html"
        return self.http.post(path.split("?")[0], data={**hidden, **fields}, headers={"Accept": accept})

    def webhook(
        self, event: Mapping[str, Any], *, at: str | None = None, key: str = "mailbox-webhook"
    ) -> TestResponse:
        """A signed webhook of the mailbox."""
        raw = json.dumps(event).encode()
        stamp = at or str(int(self.clock.now().timestamp()))
        headers = {TIMESTAMP_HEADER: stamp, SIGNATURE_HEADER: sign(self.settings.key(key), stamp, raw)}
        return self.http.post(
            "/webhooks/mailbox", data=raw, headers={**headers, "Content-Type": "application/json"}
        )

    def text(self, phone: str, words: str, event_id: str | None = None) -> TestResponse:
        """A customer's text message arrives."""
        self.counter += 1
        event = {"id": event_id or f"in{self.counter}", "type": "inbound", "from": phone, "text": words}
        return self.webhook({**event, "at": self.clock.now().isoformat()})

    def report(self, message: Message, state: str, event_id: str | None = None) -> TestResponse:
        """The provider reports what became of a message."""
        self.counter += 1
        event = {"id": event_id or f"ev{self.counter}", "type": state, "delivery_id": message.delivery_id}
        return self.webhook({**event, "to": "", "text": "", "at": self.clock.now().isoformat()})

    def due(self) -> None:
        """Lets the clock role do what is due."""
        while clock.due_step(self.db):
            pass

    def response(self) -> Row:
        """The one answer there is."""
        return self.one("SELECT * FROM response")


def form_of(html: str) -> dict[str, str]:
    """The hidden fields of the answer form."""
    form = re.search(r'<form id="a".*?</form>', html, re.DOTALL)
    assert form, html
    return {
        name: unescape(value)
        for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form[0])
    }


def score_link(message: Message, score: int) -> str:
    """The path behind one score of a mail."""
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', message.html)]
    return "/" + next(link for link in links if link.endswith(f"?s={score}")).split("/", 3)[3]


def trail_link(message: Message) -> str:
    """The path of the answer page, from a mail or a text."""
    found = re.search(r"https?://[^/]+(/a/[\w-]+)", message.text)
    assert found
    return found[1]


def preference_link(message: Message) -> str:
    """The path of the preference page."""
    found = re.search(r"https?://[^/]+(/u/[\w-]+)", message.text)
    assert found
    return found[1]


def task(response: Row, **changes: Any) -> tuple[str, int, dict[str, Any]]:
    """What followup says of the task of an answer: (id, version, data), open and due a day later."""
    task_id = str(uuid.uuid4())
    data = {
        "task_id": task_id, "state": "open", "account_id": None, "customer_id": response["customer_id"],
        "customer_ids": [response["customer_id"]], "response_ids": [response["id"]], "owner_id": None,
        "owner_name": None, "owner_email": None, "opened_at": "2026-03-03T10:00:00Z",
        "due_at": "2026-03-04T22:00:00Z", "call_by": None,
        "first_contact_at": None, "contacted_at": None, "dont_call": False,
        "call_please": False, "lowest_score": 3, "theme_id": None, "theme": None, "outcome": None,
        "resolved_at": None, "escalated_at": None, "withdrawn_reason": None, "reopened": False,
        "at": "2026-03-03T10:00:00Z",
    }  # fmt: skip
    return task_id, 1, data | changes


def told_of_a_change(survey: Asking, helped: bool | None = None) -> str:
    """Followup tells the one customer who answered of a change; returns the notice's id."""
    response, change_id, notice_id = survey.response(), str(uuid.uuid4()), str(uuid.uuid4())
    at = "2026-03-03T09:00:00Z"
    survey.apply("change.published", "changes", change_id, 1, {
        "change_id": change_id, "title": "Saturday delivery", "was_wrong": "Nobody was home.",
        "is_different": "We deliver on Saturdays now.", "language": "en", "themes": [], "published_at": at,
        "published_by": "Lea", "audience_count": 1, "withdrawn_at": None,
    })  # fmt: skip
    survey.apply("notice.sent", "notices", str(response["customer_id"]), 1, {
        "notice_id": notice_id, "change_id": change_id, "customer_id": response["customer_id"],
        "response_id": response["id"], "channel": "email", "delivery_id": str(uuid.uuid4()), "quote": None,
        "sent_at": at, "reason": None, "helped": helped, "helped_at": None, "at": at,
    })  # fmt: skip
    return notice_id


@contextmanager
def asking(postgres: TestPostgres, home: Path) -> Iterator[Asking]:
    """A survey for a module's tests, each of which `reset`s it."""
    urls = FreshDatabases(postgres)
    survey = Asking(
        Settings(home=home, secret="a secret of the tests, 32 characters or more", database_urls=urls)
    )
    try:
        yield survey
    finally:
        survey.close()
        urls.drop()
