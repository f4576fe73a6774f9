"""The pages of customers and imports: who sees whom, the whole story, stopping messages, deleting."""

from __future__ import annotations

import io
import uuid
from datetime import timedelta
from typing import Any

import pytest

from services.survey import importer
from services.survey.commands import answers, ask, programs
from tests.support.customers import Survey


def task(survey: Survey, customer: dict[str, Any], owner: str | None, **more: Any) -> str:
    """A task of followup's as its event tells it."""
    task_id = str(uuid.uuid4())
    at = survey.clock.now().isoformat().replace("+00:00", "Z")
    data = {
        "task_id": task_id,
        "state": "open",
        "account_id": customer["account_id"],
        "customer_id": customer["id"],
        "customer_ids": [customer["id"]],
        "response_ids": [],
        "owner_id": None,
        "owner_name": owner,
        "owner_email": owner,
        "opened_at": at,
        "due_at": at,
        "call_by": None,
        "first_contact_at": None,
        "contacted_at": None,
        "dont_call": False,
        "call_please": False,
        "lowest_score": 3,
        "theme_id": None,
        "theme": None,
        "outcome": None,
        "resolved_at": None,
        "escalated_at": None,
        "withdrawn_reason": None,
        "reopened": False,
        "at": at,
    }
    survey.apply("task.opened", "tasks", task_id, more.pop("version", 1), {**data, **more})
    return task_id


def notice(survey: Survey, customer: dict[str, Any], change_id: str, **more: Any) -> None:
    """A notice of followup's as its event tells it."""
    at = survey.clock.now().isoformat().replace("+00:00", "Z")
    data = {
        "notice_id": str(uuid.uuid4()),
        "change_id": change_id,
        "customer_id": customer["id"],
        "response_id": None,
        "channel": "email",
        "delivery_id": None,
        "quote": None,
        "sent_at": at,
        "reason": None,
        "helped": None,
        "helped_at": None,
        "at": at,
    }
    survey.apply("notice.sent", "notices", customer["id"], 1, {**data, **more})


def test_an_agent_sees_customers_of_their_accounts_and_tasks_and_404_elsewhere(survey: Survey) -> None:
    survey.import_(
        "id,name,account,account manager\n1,Mine,ACME,me@us.example\n2,Tasked,Other,\n3,Unowned,Third,\n"
        "4,Theirs,Fourth,they@us.example\n5,Theirs too,Fifth,\n"
    )
    task(survey, survey.customer(external_id="2"), "me@us.example")
    task(survey, survey.customer(external_id="3"), None)
    task(survey, survey.customer(external_id="5"), "they@us.example")
    agent = survey.browser("agent", "me@us.example")
    page = agent.get("/survey/customers").text
    assert [name for name in ("Mine", "Tasked", "Unowned", "Theirs") if name in page] == [
        "Mine",
        "Tasked",
        "Unowned",
    ]
    for external_id, status in (("1", 200), ("2", 200), ("3", 200), ("4", 404), ("5", 404)):
        customer = survey.customer(external_id=external_id)["id"]
        assert agent.get(f"/survey/customers/{customer}").status_code == status
        assert agent.client.get(f"/survey/api/customers/{customer}").status_code == status
        stop = agent.post(f"/survey/customers/{customer}/messages", {"channel": "email", "do": "stop"})
        assert stop.status_code == (303 if status == 200 else 404)
    assert (
        "Theirs" not in agent.get("/survey/search?q=theirs").text.split("<main")[1].split("Nobody found")[-1]
    )
    for path in ("/survey/customers/import", "/survey/customers/new", f"/survey/customers/{customer}/delete"):
        assert agent.get(path).status_code == 403
    assert survey.browser("viewer").get("/survey/customers").status_code == 403


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("ann", ["1"]),
        ("LEE", ["1"]),
        ("acme", ["1", "2"]),
        ("bob acme", ["2"]),
        ("bob@example", ["2"]),
        ("+49 30 123", ["1"]),
        ("030 99", []),
        ("late deliv", ["3"]),
        ("müß", ["3"]),
        ("zzz", []),
        ("' OR 1=1 --", []),
        ("\\", ["1", "2", "3"]),
        ("&|!():*", ["1", "2", "3"]),
    ],
)
def test_search_finds_beginnings_of_words_of_name_address_account_and_comments(
    survey: Survey, q: str, found: list[str]
) -> None:
    survey.import_(
        "id,name,email,phone,account\n1,Ann Lee,ann@example.com,+4930123456,ACME\n"
        "2,Bob,bob@example.com,,ACME\n3,Müßig,cy@other.example,,\n"
    )
    with survey.db.transaction() as tx:
        program = programs.ensure_default(tx)
        ask.step(tx, str(ask.start(tx, str(program["id"]), {"customers": ["3"]}, "me")["id"]))
        invitation = tx.value("SELECT id FROM invitation")
        answers.record_by_invitation(
            tx,
            invitation,
            answers.Form("n1", None, score=3, comment="Late. Delivery was slow", set_comment=True),
        )
    rows = survey.api()("GET", "/survey/api/customers", query_string={"q": q}).json
    assert rows
    assert [row["external_id"] for row in rows["customers"]] == found


def test_one_hit_of_the_bar_opens_at_once(survey: Survey) -> None:
    survey.import_("id,name\n1,Ann\n2,Anton\n")
    lead = survey.browser("lead")
    assert (
        lead.get("/survey/search?q=anto").headers["Location"].endswith(survey.customer(external_id="2")["id"])
    )
    assert lead.get("/survey/search?q=an").status_code == 200
    assert "Nobody by these words" in lead.get("/survey/search?q=zed").text


def test_the_whole_story_is_told_in_both_directions(survey: Survey) -> None:
    survey.import_("id,name,email,account\n1,Ann,ann@example.com,ACME\n")
    customer = survey.customer(external_id="1")
    with survey.db.transaction() as tx:
        program = programs.ensure_default(tx)
        for _ in range(2):
            ask.step(tx, str(ask.start(tx, str(program["id"]), {"customers": ["1"]}, "me")["id"]))
        invitation = tx.value("SELECT id FROM invitation")
    for n, (score, comment) in enumerate(((3, None), (5, "Too <slow>"))):
        survey.clock.advance(timedelta(hours=1))
        with survey.db.transaction() as tx:
            form = answers.Form(f"n{n}", None, score=score, comment=comment, set_comment=comment is not None)
            answers.record_by_invitation(tx, invitation, form)
    survey.clock.advance(timedelta(hours=1))
    at = survey.clock.now().isoformat().replace("+00:00", "Z")
    task(
        survey,
        customer,
        "Joe",
        state="resolved",
        resolved_at=at,
        theme="Late",
        outcome="refunded",
        contacted_at=at,
        first_contact_at=at,
    )
    change = str(uuid.uuid4())
    survey.apply(
        "change.published",
        "changes",
        change,
        1,
        {
            "change_id": change,
            "title": "Saturday delivery",
            "was_wrong": "",
            "is_different": "",
            "language": "en",
            "themes": [],
            "published_at": at,
            "published_by": "Lea",
            "audience_count": 1,
            "withdrawn_at": None,
        },
    )
    notice(survey, customer, change, quote="Too <slow>", helped=True, helped_at=at)
    lead = survey.browser("lead")
    assert (
        lead.post(
            f"/survey/customers/{customer['id']}/messages", {"channel": "email", "do": "stop"}
        ).status_code
        == 303
    )
    page = lead.get(f"/survey/customers/{customer['id']}").text
    for text in (
        "About to be asked",
        "Not asked: asked lately",
        "Answered",
        "Changed their mind from 3 to",
        "Too &lt;slow&gt;",
        "is to call",
        "talked to them",
        "Resolved",
        "refunded",
        "Told by mail what changed",
        "Saturday delivery",
        "” helped",
        "No more mails, as they wish",
        "Became known to us",
        "they do not want messages from us",
    ):
        assert text in page, text
    told = ("” helped", "Told by mail", "Resolved", "talked to them", "is to call", "Changed their mind")
    places = [page.index(text) for text in (*told, "Became known to us")]
    assert places == sorted(places)
    assert (
        lead.post(
            f"/survey/customers/{customer['id']}/messages", {"channel": "email", "do": "start"}
        ).status_code
        == 303
    )
    assert survey.customer(external_id="1")["email_opt_out_at"] is None


def test_a_message_arrives_after_it_was_sent_though_both_are_of_one_instant(survey: Survey) -> None:
    survey.import_("id,name,email\n1,Ann,ann@example.com\n")
    with survey.db.transaction() as tx:
        program = programs.ensure_default(tx)
        ask.step(tx, str(ask.start(tx, str(program["id"]), {"customers": ["1"]}, "me")["id"]))
        tx.execute("UPDATE invitation SET state = 'sent', sent_at = %s", (tx.now,))
        tx.execute("UPDATE delivery SET state = 'delivered', settled_at = %s", (tx.now,))
    page = survey.browser("lead").get(f"/survey/customers/{survey.customer(external_id='1')['id']}").text
    assert page.index("The question arrived by mail") < page.index("Asked by mail")


def test_news_arrives_after_it_was_told_though_the_sender_noted_it_later(survey: Survey) -> None:
    survey.import_("id,name,email\n1,Ann,ann@example.com\n")
    customer = survey.customer(external_id="1")
    with survey.db.transaction() as tx:
        program = programs.ensure_default(tx)
        ask.step(tx, str(ask.start(tx, str(program["id"]), {"customers": ["1"]}, "me")["id"]))
        tx.execute("UPDATE delivery SET kind = 'notice', state = 'delivered', settled_at = %s", (tx.now,))
        delivery, later = str(tx.value("SELECT id FROM delivery")), tx.now + timedelta(milliseconds=20)
    notice(survey, customer, str(uuid.uuid4()), delivery_id=delivery, sent_at=later.isoformat())
    page = survey.browser("lead").get(f"/survey/customers/{customer['id']}").text
    assert page.index("The news arrived by mail") < page.index("Told by mail what changed")


def test_a_long_story_is_paged(survey: Survey) -> None:
    survey.import_("id,name,email\n1,Ann,ann@example.com\n")
    customer = survey.customer(external_id="1")
    with survey.db.transaction() as tx:
        for n in range(150):
            tx.execute(
                "INSERT INTO inbound VALUES (%s, %s, 'sms', %s, NULL, %s, 'message', %s)",
                (tx.ids.new(), str(n), customer["id"], f"text-{n}.", tx.now + timedelta(minutes=n)),
            )
    lead = survey.browser("lead")
    path, seen = f"/survey/customers/{customer['id']}", ""
    for _ in range(4):
        page = lead.get(path).text
        seen += page
        found = (
            page.split('rel="next"')[0].rsplit('href="', 1)[1].split('"')[0] if 'rel="next"' in page else None
        )
        if found is None:
            break
        path = found.replace("&amp;", "&")
    assert all(seen.count(f"text-{n}.") == 1 for n in range(150))


def test_a_customer_is_added_and_edited_by_hand(survey: Survey) -> None:
    lead = survey.browser("lead")
    wrong = lead.post("/survey/customers/new", {"name": "Ann", "email": "nope"})
    assert wrong.status_code == 422
    assert "is not an e-mail address" in wrong.text and 'value="Ann"' in wrong.text
    assert lead.post("/survey/customers/new", {"name": "Nobody"}).status_code == 422
    made = lead.post(
        "/survey/customers/new",
        {"name": "Ann", "email": "ann@example.com", "account": "ACME", "tier": "gold"},
    )
    assert made.status_code == 303
    path = made.headers["Location"] + "/edit"
    assert lead.post(path, {"name": "", "phone": "+49 30 1234567", "tier": "gold"}).status_code == 303
    row = survey.customer(email_key="ann@example.com")
    assert (row["name"], row["phone"], row["version"]) == (None, "+49301234567", 2)
    assert lead.post(path, {"email": "", "phone": ""}).status_code == 422


def test_deleting_says_what_goes_and_goes_everywhere(survey: Survey) -> None:
    survey.import_("id,name,email,phone\n1,Ann Secret,ann@secret.example,+4930777777\n")
    customer = survey.customer(external_id="1")
    with survey.db.transaction() as tx:
        program = programs.ensure_default(tx)
        ask.step(tx, str(ask.start(tx, str(program["id"]), {"customers": ["1"]}, "me")["id"]))
        invitation = tx.value("SELECT id FROM invitation")
        form = answers.Form("n", None, score=3, comment="Secret words", set_comment=True)
        answers.record_by_invitation(tx, invitation, form)
        tx.execute("UPDATE delivery SET address = 'ann@secret.example', data = '{\"x\": \"Secret\"}'")
    lead = survey.browser("lead")
    assert "1 answer" in lead.get(f"/survey/customers/{customer['id']}/delete").text
    survey.events()
    assert lead.post(f"/survey/customers/{customer['id']}/delete").status_code == 303
    tables = [
        row["relname"]
        for row in survey.all(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
    ]
    for table in tables:
        rows = str([dict(row) for row in survey.all(f"SELECT * FROM {table}")])
        for secret in ("Secret", "secret.example", "777777"):
            assert secret not in rows, table
    assert survey.one("SELECT customer_id FROM erased")["customer_id"] == customer["id"]
    assert [row["state"] for row in survey.all("SELECT state FROM delivery")] == ["refused"]
    (event,) = survey.events()
    assert (event["data"], event["version"]) == (None, customer["version"] + 1)
    # A late notice about them is not kept.
    notice = str(uuid.uuid4())
    at = survey.clock.now().isoformat().replace("+00:00", "Z")
    survey.apply(
        "notice.sent",
        "notices",
        customer["id"],
        1,
        {
            "notice_id": notice,
            "change_id": notice,
            "customer_id": customer["id"],
            "response_id": None,
            "channel": None,
            "delivery_id": None,
            "quote": "Secret words",
            "sent_at": at,
            "reason": None,
            "helped": None,
            "helped_at": None,
            "at": at,
        },
    )
    assert survey.all("SELECT 1 FROM notice_replica") == []


def test_a_file_is_imported_by_the_page_and_its_report_shown(survey: Survey) -> None:
    lead = survey.browser("lead")
    assert "Choose the CSV file" in lead.post("/survey/customers/import", {}).text
    sent = lead.post(
        "/survey/customers/import",
        {
            "file": (
                io.BytesIO(b"id,email,account,account manager\n1,nope,,\n2,b@example.com,A,joe@us.example\n"),
                "crm.csv",
            )
        },
    )
    assert sent.status_code == 303
    path = sent.headers["Location"]
    waiting = lead.get(path).text
    assert 'data-live="1"' in waiting and 'http-equiv="refresh"' in waiting and "Stop the import" in waiting
    importer.work(survey.db, survey.fingerprints)
    page = lead.get(path).text
    assert "1 customer imported, 1 line left out" in page
    assert "is not an e-mail address" in page and "joe@us.example" in page
    assert "data-live" not in page
    assert "2,email,is not an e-mail address" in lead.get(f"{path}/errors.csv").text
    assert "crm.csv" in lead.get("/survey/customers/import").text


def test_a_waiting_import_can_be_stopped_by_the_page(survey: Survey) -> None:
    lead = survey.browser("lead")
    sent = lead.post("/survey/customers/import", {"file": (io.BytesIO(b"id\n1\n"), "crm.csv")})
    assert lead.post(f"{sent.headers['Location']}/stop").status_code == 303
    assert not importer.work(survey.db, survey.fingerprints)
    assert survey.all("SELECT 1 FROM import_chunk") == []


def test_the_list_says_who_may_be_asked_and_why_not(survey: Survey) -> None:
    survey.import_("id,name,email\n1,Ann,ann@example.com\n2,Bob,\n")
    page = survey.browser("lead").get("/survey/customers").text
    assert "2 customers" in page
    assert "yes, by mail" in page
    assert "no: no address" in page
