"""Survey's customers in tests: the app with people logged in, keys, imports, and what is in the outbox."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Flask, Response
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from services.survey import addresses, handlers, importer
from services.survey.app import create_app
from services.survey.commands import imports
from services.survey.edge import opt_out_fingerprints
from services.survey.queries import imports as import_queries
from shared.clock import ManualClock
from shared.db import Database, Row
from shared.events.envelope import Event
from shared.events.outbox import event_id
from shared.ids import SystemIds, hash_token
from shared.settings import Settings
from shared.web import session

_CSRF = re.compile(r'name="csrf_token" value="([0-9a-f]+)"')


class Browser:
    """A browser of one person; keeps cookies, sends the forms' token along."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self.client.get(path, headers={"Accept": "text/html"}, **kwargs)

    def post(self, path: str, data: Mapping[str, Any] | None = None) -> TestResponse:
        found = _CSRF.search(self.get("/survey/customers").text)
        assert found
        return self.client.post(
            path, data={**(data or {}), "csrf_token": found[1]}, headers={"Accept": "text/html"}
        )


class Api:
    """A program with an API key."""

    def __init__(self, client: FlaskClient, key: str) -> None:
        self.client = client
        self.headers = {"Authorization": f"Bearer {key}"}

    def __call__(self, method: str, path: str, **kwargs: Any) -> TestResponse:
        headers = {**self.headers, **kwargs.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **kwargs)


class Survey:
    """One survey service with its database and its clock."""

    def __init__(self, settings: Settings, clock: ManualClock) -> None:
        self.settings = settings
        self.clock = clock
        self.db = Database(settings.database_urls["survey"], clock, SystemIds(), name="test")
        self.app: Flask = create_app(settings, clock=clock)
        self.fingerprints: addresses.Fingerprints = opt_out_fingerprints(settings)

    def close(self) -> None:
        self.db.close()
        self.app.extensions["hearback"].db.close()

    def staff(self, role: str = "admin", email: str | None = None) -> str:
        """Somebody with a login; returns their id."""
        staff_id = str(uuid.uuid4())
        email = email or f"{role}-{staff_id[:8]}@us.example"
        data = {
            "id": staff_id,
            "email": email,
            "name": email.split("@")[0],
            "role": role,
            "disabled": False,
            "epoch": 0,
        }
        self.apply("staff.changed", "staff", staff_id, 1, data)
        return staff_id

    def browser(self, role: str = "admin", email: str | None = None) -> Browser:
        """A browser of somebody who is logged in."""
        staff_id = self.staff(role, email)
        client = self.app.test_client()
        with self.app.test_request_context():
            response = Response()
            session.start(response, staff_id, 0)
        name, _, value = response.headers["Set-Cookie"].split(";")[0].partition("=")
        client.set_cookie(name, value)
        return Browser(client)

    def api(self, *scopes: str) -> Api:
        """A client with a key of these scopes (by default both of customers)."""
        key = SystemIds().token()
        key_id = str(uuid.uuid4())
        data = {
            "id": key_id,
            "name": "script",
            "hash": hash_token(key).hex(),
            "disabled": False,
            "created_by": None,
            "scopes": list(scopes or ("customers:read", "customers:write")),
        }
        self.apply("apikey.changed", "staff", key_id, 1, data)
        return Api(self.app.test_client(), key)

    def apply(
        self,
        type_: str,
        topic: str,
        key: str,
        version: int,
        data: Mapping[str, Any] | None,
        *,
        replay: bool = False,
    ) -> None:
        """What the consumer would do with an event."""
        event = Event(
            event_id(topic, key, version), type_, topic, key, version, self.clock.now(), data, replay
        )
        with self.db.transaction() as tx:
            handlers.apply(tx, [event])

    def import_(self, text: str | bytes, region: str | None = None, name: str = "customers.csv") -> Row:
        """Imports a file in this process; the run with its `errors` as (line, column, reason)."""
        data = text.encode() if isinstance(text, str) else text
        with self.db.transaction() as tx:
            run_id = imports.begin(tx, name, "test", region)
            run = imports.claim_new(tx, run_id, len(data))
        importer.Importer(self.db, run, lambda: iter([data]), self.fingerprints).run()
        return self.run(run_id)

    def run(self, run_id: str) -> Row:
        with self.db.transaction() as tx:
            run = import_queries.get(tx, run_id)
            errors = import_queries.errors(tx, run_id)[0]
        return run | {"errors": [(e["line"], e["column_name"], e["reason"]) for e in errors]}

    def all(self, sql: str, args: Sequence[Any] = ()) -> list[Row]:
        with self.db.transaction() as tx:
            return tx.all(sql, args)

    def one(self, sql: str, args: Sequence[Any] = ()) -> Row:
        rows = self.all(sql, args)
        assert len(rows) == 1, rows
        return rows[0]

    def customer(self, **by: Any) -> Row:
        """The one customer with these columns."""
        where = " AND ".join(f"{name} = %s" for name in by)
        return self.one(f"SELECT * FROM customer WHERE {where}", list(by.values()))

    def events(self, type_: str | None = None, *, forget: bool = True) -> list[Row]:
        """What is in the outbox, oldest first, data decoded; and empties it."""
        with self.db.transaction() as tx:
            rows = tx.all(
                "SELECT * FROM outbox WHERE %s::text IS NULL OR type = %s ORDER BY id", (type_, type_)
            )
            if forget:
                tx.execute("DELETE FROM outbox")
        return [row | {"data": None if row["data"] is None else json.loads(row["data"])} for row in rows]
