"""Replicas and their rebuild: versions, strangers, and the same events again from what survey owns."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from services.survey import rebuild, roles
from services.survey.commands import answers, ask, company, erase, programs
from shared.roles import RoleContext
from tests.integration.customers.test_pages import task
from tests.support.customers import Survey


def test_a_lower_or_equal_version_is_ignored(survey: Survey) -> None:
    survey.import_("id\n1\n")
    customer = survey.customer(external_id="1")
    data: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "email": "a@us.example",
        "name": "New",
        "role": "lead",
        "disabled": True,
        "epoch": 2,
    }
    for version, name in ((3, "New"), (2, "Old"), (3, "Same")):
        survey.apply("staff.changed", "staff", data["id"], version, {**data, "name": name})
    assert survey.one("SELECT name, version FROM staff")["name"] == "New"
    task_id = task(survey, customer, "me@us.example", version=5)
    row = survey.one("SELECT data FROM task_replica")["data"]
    survey.apply("task.assigned", "tasks", task_id, 4, {**row, "owner_email": "old@us.example"})
    assert survey.one("SELECT owner_email FROM task_replica")["owner_email"] == "me@us.example"
    survey.apply("task.assigned", "tasks", task_id, 6, {**row, "owner_email": "new@us.example"})
    assert survey.one("SELECT owner_email FROM task_replica")["owner_email"] == "new@us.example"


def test_an_address_moves_from_one_login_to_another(survey: Survey) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    base = {"name": "x", "role": "lead", "disabled": False, "epoch": 0}
    survey.apply("staff.changed", "staff", one, 1, {**base, "id": one, "email": "a@us.example"})
    survey.apply("staff.changed", "staff", two, 1, {**base, "id": two, "email": "a@us.example"})
    assert survey.one("SELECT id FROM staff WHERE email = 'a@us.example'")["id"] == two


def test_what_survey_owns_is_published_again_with_the_same_ids(survey: Survey) -> None:
    survey.import_("id,email,account,tier\n1,ann@example.com,ACME,gold\n2,bob@example.com,,\n")
    with survey.db.transaction() as tx:
        company.change(tx, {"name": "Acme"})
        program = programs.ensure_default(tx)
        ask.step(tx, str(ask.start(tx, str(program["id"]), {"customers": ["1"]}, "me")["id"]))
        invitation = tx.value("SELECT id FROM invitation")
        answers.record_by_invitation(tx, invitation, answers.Form("n", None, score=3))
        ask.step(tx, str(ask.start(tx, str(program["id"]), {"customers": ["1"]}, "me")["id"]))
    first = {row["event_id"]: row for row in survey.events()}
    rebuild.republish(survey.db)
    again = survey.events()
    assert all(row["replay"] for row in again)
    latest = {row["event_id"] for row in again}
    assert latest <= set(first)
    for row in again:
        assert (row["data"], row["version"], row["key"]) == tuple(
            first[row["event_id"]][n] for n in ("data", "version", "key")
        )
    assert {row["type"] for row in again} == {
        "company.changed",
        "program.changed",
        "customer.changed",
        "response.recorded",
        "invitation.skipped",
    }
    rebuild.republish(survey.db, ["customers"])
    assert {row["type"] for row in survey.events()} == {"customer.changed"}


def test_clear_empties_replicas_and_locks_nobody_out(survey: Survey) -> None:
    survey.import_("id\n1\n")
    staff_id = survey.staff("lead")
    task(survey, survey.customer(external_id="1"), None)
    with survey.db.transaction() as tx:
        tx.execute(
            "INSERT INTO inbox (consumer, event_id, day) VALUES ('survey', %s, current_date)", (staff_id,)
        )
        rebuild.clear(tx)
    assert survey.all("SELECT 1 FROM task_replica") == []
    assert survey.all("SELECT 1 FROM inbox") == []
    assert [row["version"] for row in survey.all("SELECT version FROM staff")] == [0]
    assert len(survey.all("SELECT 1 FROM customer")) == 1


def test_compacted_topics_are_published_again_once_a_day(survey: Survey) -> None:
    survey.import_("id\n1\n")
    survey.events()
    roles.republish_step(survey.db)
    # What a new installation begins with: its company, and a program to ask with.
    assert [row["type"] for row in survey.events()] == ["company.changed", "program.changed"]
    survey.clock.advance(timedelta(hours=25))
    for _ in range(2):
        roles.republish_step(survey.db)
    assert sorted(row["type"] for row in survey.events() if row["replay"]) == [
        "company.changed",
        "customer.changed",
        "program.changed",
    ]


def test_every_role_can_be_made(survey: Survey) -> None:
    context = RoleContext(survey.settings, "survey", survey.clock, survey.db.ids, survey.db)
    assert {name: callable(make(context)) for name, make in roles.ROLES.items()} == {
        "relay": True,
        "consumer": True,
        "sender": True,
        "clock": True,
    }


def test_an_erasure_is_published_again_as_long_as_there_are_customers(survey: Survey) -> None:
    # A stale state may be behind it on the log, and on another log its customer may never have been erased.
    survey.import_("id\n1\n2\n")
    gone = survey.customer(external_id="1")
    with survey.db.transaction() as tx:
        assert erase.erase(tx, gone["id"], survey.fingerprints)
    [erased] = [row for row in survey.events() if row["data"] is None]
    survey.clock.advance(timedelta(days=400))
    for _ in range(2):  # the first only notes the day
        roles.republish_step(survey.db)
        survey.clock.advance(timedelta(hours=25))
    again = [row for row in survey.events() if row["topic"] == "customers" and row["replay"]]
    kept = survey.customer(external_id="2")
    assert [row["key"] for row in again if row["data"] is not None] == [kept["id"]]
    [once_more] = [row for row in again if row["data"] is None]
    for name in ("event_id", "key", "version", "type"):
        assert once_more[name] == erased[name]
