"""The company's settings: defaults, versions, events, the page, and the first login's steps."""

from __future__ import annotations

import threading
from pathlib import Path

from services.survey.commands import company
from services.survey.queries.company import company as read
from tests.support.customers import Survey

FORM = {
    "name": "Acme GmbH",
    "postal_address": "Street 1\nBerlin",
    "colour": "#112233",
    "sender_name": "Acme",
    "sender_email": "hello@acme.example",
    "reply_to": "reply@acme.example",
    "language": "de",
    "time_zone": "europe/berlin",
    "first_contact_hours": "4",
    "fallback_owner": "",
    "hours": "1",
    "mon_from": "08:00",
    "mon_until": "16:00",
}


def test_defaults_are_announced_once_and_each_change_counts_up(survey: Survey) -> None:
    for _ in range(2):
        with survey.db.transaction() as tx:
            company.ensure(tx)
    for name in ("Acme", "Acme", "Ajax"):
        with survey.db.transaction() as tx:
            company.change(tx, {"name": name})
    events = survey.events("company.changed")
    assert [(event["version"], event["data"]["name"]) for event in events] == [
        (1, "Your company"),
        (2, "Acme"),
        (3, "Ajax"),
    ]


def test_two_who_save_at_once_both_count(survey: Survey) -> None:
    start = threading.Barrier(2)

    def save(field: str) -> None:
        start.wait()
        with survey.db.transaction() as tx:
            company.change(tx, {field: "x"})

    threads = [threading.Thread(target=save, args=(field,)) for field in ("name", "sender_name")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = survey.events("company.changed")
    assert [event["version"] for event in events] == [1, 2, 3]
    assert (events[-1]["data"]["name"], events[-1]["data"]["sender_name"]) == ("x", "x")


def test_the_page_saves_and_says_what_is_wrong_without_losing_what_was_typed(survey: Survey) -> None:
    admin = survey.browser("admin")
    assert admin.post("/survey/settings", FORM).status_code == 303
    with survey.db.transaction() as tx:
        row = read(tx)
    assert (row["name"], row["time_zone"], row["business_hours"]) == (
        "Acme GmbH",
        "Europe/Berlin",
        {"mon": ["08:00", "16:00"]},
    )
    wrong = {
        **FORM,
        "name": "Kept typing",
        "sender_email": "nope",
        "mon_until": "07:00",
        "first_contact_hours": "x",
    }
    page = admin.post("/survey/settings", wrong)
    assert page.status_code == 422
    for text in (
        "Kept typing",
        "nope",
        "is not an e-mail address",
        "it closes at 07:00",
        "Not a valid integer",
    ):
        assert text in page.text
    with survey.db.transaction() as tx:
        assert read(tx)["name"] == "Acme GmbH"


def test_settings_are_for_administrators(survey: Survey) -> None:
    for role in ("agent", "lead", "viewer"):
        browser = survey.browser(role)
        assert browser.get("/survey/settings").status_code == 403
        assert browser.get("/survey/welcome").status_code == 403


def test_the_steps_lead_on_and_come_back_to_where_one_was(survey: Survey, tmp_path: Path) -> None:
    admin = survey.browser("admin", "ada@us.example")
    first = admin.get("/survey/welcome")
    assert "Who is asking?" in first.text
    saved = admin.post("/survey/welcome/company", {**FORM, "fallback_owner": "ada@us.example"})
    assert saved.headers["Location"] == "/survey/welcome?step=import"
    assert "Whom do you want to hear?" in admin.get("/survey/welcome").text
    survey.import_("id,email\n1,ann@example.com\n")
    assert "See it as your customers will" in admin.get("/survey/welcome").text
    assert admin.post("/survey/welcome/test", {"email": "nope"}).status_code == 422
    assert (
        admin.post("/survey/welcome/test", {"email": "ada@us.example", "phone": "+49 30 1234567"}).status_code
        == 303
    )
    tests = survey.all("SELECT channel FROM invitation WHERE test ORDER BY channel")
    assert [row["channel"] for row in tests] == ["email", "sms"]
    assert "1 customer can be asked" in admin.get("/survey/welcome").text
    assert admin.post("/survey/welcome/done").status_code == 303
    assert survey.one("SELECT setup_done_at FROM company")["setup_done_at"] is not None


def test_the_api_reads_and_changes_settings(survey: Survey) -> None:
    admin = survey.browser("admin").client
    assert admin.get("/survey/api/company").json["name"] == "Your company"  # type: ignore[index]
    lead = survey.browser("lead").client
    assert lead.patch("/survey/api/company", json={"name": "x"}).status_code == 403
