"""One origin for the three services: `/` leads each role to its first page, and paths find their service."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from werkzeug.test import Client

from services.survey.app import create_app
from services.survey.commands import company
from shared.clock import ManualClock
from shared.embedded.app import mounted
from shared.ids import SystemIds
from shared.settings import SERVICES, Settings
from shared.web import session


@pytest.fixture
def front(settings: Settings, clock: ManualClock) -> Client:
    return Client(mounted(settings, SERVICES, clock=clock))


def log_in(front: Client, settings: Settings, clock: ManualClock, role: str, *, known: bool = True) -> None:
    """Gives `front` the cookie of a staff member, whom survey knows or does not know yet."""
    app = create_app(settings, clock=clock, ids=SystemIds())
    here = app.extensions["hearback"]
    staff_id = here.ids.new()
    if known:
        with here.db.transaction() as tx:
            tx.execute(
                "INSERT INTO staff (id, version, email, name, role, epoch) VALUES (%s, 1, %s, 'X', %s, 1)",
                (staff_id, f"{role}@example.org", role),
            )
    with app.test_request_context("/"):
        response: Any = app.response_class()
        session.start(response, staff_id, 1)
    front.set_cookie(session.COOKIE, response.headers["Set-Cookie"].split(";")[0].split("=", 1)[1])
    here.db.close()


@pytest.mark.parametrize(
    ("role", "page"),
    [
        ("agent", "/followup/inbox"),
        ("lead", "/reporting/"),
        ("viewer", "/reporting/"),
        ("admin", "/survey/welcome"),
    ],
)
def test_leads_each_role_to_its_first_page(
    front: Client, settings: Settings, clock: ManualClock, role: str, page: str
) -> None:
    log_in(front, settings, clock, role)
    assert front.get("/").location == page


def test_leads_an_admin_to_the_report_once_the_set_up_is_over(
    front: Client, settings: Settings, clock: ManualClock, database: Any, ids: SystemIds
) -> None:
    log_in(front, settings, clock, "admin")
    with database("survey").transaction() as tx:
        company.ensure(tx)
        tx.execute(
            "INSERT INTO customer (id, version, external_id, created_at, updated_at)"
            " VALUES (%s, 1, 'c1', %s, %s)",
            (ids.new(), tx.now, tx.now),
        )
    # Customers alone are no set-up: a test message and the first ask are still to come.
    assert front.get("/").location == "/survey/welcome"
    with database("survey").transaction() as tx:
        tx.execute("UPDATE company SET setup_done_at = %s", (tx.now,))
    assert front.get("/").location == "/reporting/"


def test_leads_a_stranger_to_the_login(front: Client) -> None:
    reply = front.get("/")
    assert (reply.status_code, reply.location) == (303, "/followup/login")
    assert "no-store" in reply.headers["Cache-Control"]


def test_a_login_that_has_not_arrived_yet_waits_here_and_after_a_minute_in_the_inbox(
    front: Client, settings: Settings, clock: ManualClock
) -> None:
    log_in(front, settings, clock, "admin", known=False)
    waits = front.get("/")
    assert waits.status_code == 503 and 'http-equiv="refresh"' in waits.text
    clock.advance(timedelta(minutes=1))
    assert front.get("/").location == "/followup/inbox"


@pytest.mark.parametrize("service", SERVICES)
def test_paths_find_their_service(front: Client, service: str) -> None:
    reply = front.get(f"/{service}/readyz")
    assert reply.status_code == 200
    assert reply.json is not None and reply.json["service"] == service


def test_an_unknown_path_is_not_found(front: Client) -> None:
    for path in ("/nothing", "/nothing/here", "/.env", "//survey/readyz"):
        assert front.get(path).status_code in (404, 308), path
