"""The pages and the API of changes and themes, and where a customer's "did it help?" arrives."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest

from services.followup.commands import notices, themes
from shared.clock import ManualClock
from shared.web import capability
from tests.support.followup import Browser, Followup, new_id

WORDS = {
    "title": "Saturdays <&>",
    "was_wrong": "Too late.",
    "is_different": "On Saturdays.",
    "language": "en",
}


@pytest.fixture
def lead(followup: Followup) -> Browser:
    followup.staff("lea@acme.example", "lead")
    return followup.browser("lea@acme.example")


def theme_of(followup: Followup, name: str = "Delivery late") -> str:
    return str(followup.one("SELECT id FROM theme WHERE name = %s", name)["id"])


def answer(followup: Followup, comment: str, score: int = 8, **customer: Any) -> tuple[str, str]:
    who, response = new_id(), new_id()
    followup.apply(
        followup.customer(who, **customer),
        followup.response(who, score, response_id=response, comment=comment),
    )
    return who, response


def tie(followup: Followup, response: str) -> None:
    with followup.db.transaction() as tx:
        themes.tie(tx, theme_of(followup), [response], None)


def test_a_lead_writes_finds_tells_and_withdraws(followup: Followup, lead: Browser) -> None:
    assert "No change yet" in lead.get("/followup/changes").text
    empty = lead.post("/followup/changes/new", {"title": "Kept words"}, form_on="/followup/changes/new")
    assert empty.status_code == 422
    assert "Choose at least one theme" in empty.text and "Kept words" in empty.text
    saved = lead.post(
        "/followup/changes/new", {**WORDS, "theme_ids": theme_of(followup)}, form_on="/followup/changes/new"
    )
    assert saved.status_code == 303
    here = saved.location
    assert "Nobody to tell" in lead.get(here).text

    answer(followup, "Nothing to do with it")
    _, late = answer(followup, "It came <late> on Monday")
    found = lead.get(f"{here}/answers?q=LATE").text
    assert "It came &lt;late&gt; on Monday" in found and "Nothing to do with it" not in found
    lead.post(f"{here}/answers", {"response": late, "theme": theme_of(followup), "q": "late"}, form_on=here)
    page = lead.get(here).text
    assert "can be told to 1 customer<" in page
    assert "It came &lt;late&gt; on Monday" in page and "Carla Customer" in page
    assert "Saturdays &lt;&amp;&gt;" in page
    assert "It came &lt;late&gt; on Monday" in lead.get(f"{here}/mail?language=de").text

    confirm = lead.get(f"{here}/publish").text
    assert "cannot be called back" in confirm and "Tell 1 customer" in confirm
    stale = lead.post(f"{here}/publish", {"version": "1", "expected": "5"}, form_on=here)
    assert stale.location == f"{here}/publish"
    assert "audience has changed" in lead.get(stale.location).text
    for _ in range(2):
        assert lead.post(f"{here}/publish", {"version": "1", "expected": "1"}, form_on=here).location == here
    assert len(followup.all("SELECT 1 FROM notice")) == 1
    told = lead.get(here).text
    assert "was told to 0 of 1 customer" in told and "Waits to be sent" in told

    _, before = answer(followup, "It was late in February, too", name="Ben Before")
    tie(followup, before)
    assert "Tell 1 more customer" in lead.get(here).text
    more = lead.get(f"{here}/publish").text
    assert "Tell 1 customer more?" in more and "Ben Before" in more
    lead.post(f"{here}/publish", {"more": "1", "expected": "1"}, form_on=here)
    assert len(followup.all("SELECT 1 FROM notice")) == 2
    assert lead.get(f"{here}/publish").status_code == 303

    assert "still waiting" in lead.get(f"{here}/withdraw").text
    lead.post(f"{here}/withdraw", form_on=here)
    assert "the change was withdrawn first" in lead.get(here).text
    assert "Withdrawn" in lead.get("/followup/changes?state=withdrawn").text


def test_after_telling_only_those_are_counted_who_can_be_reached(followup: Followup, lead: Browser) -> None:
    nowhere: dict[str, Any] = {"may_email": False, "may_sms": False, "email": None, "phone": None}
    for customer in ({}, nowhere):
        tie(followup, answer(followup, "Late", **customer)[1])
    here = lead.post(
        "/followup/changes/new", {**WORDS, "theme_ids": theme_of(followup)}, form_on="/followup/changes/new"
    ).location
    lead.post(f"{here}/publish", {"expected": "1"}, form_on=here)
    assert "Published. 1 customer will hear of it now." in lead.get(here).text

    for customer in ({}, nowhere):
        tie(followup, answer(followup, "Late before", **customer)[1])
    lead.post(f"{here}/publish", {"more": "1", "expected": "1"}, form_on=here)
    assert "On their way: 1 customer." in lead.get(here).text
    tie(followup, answer(followup, "Late before, too", **nowhere)[1])
    lead.post(f"{here}/publish", {"more": "1", "expected": "0"}, form_on=here)
    assert "nobody more who can be reached" in lead.get(here).text
    assert len(followup.all("SELECT 1 FROM notice")) == 5


def test_an_uncertain_notice_waits_for_a_person(followup: Followup, lead: Browser) -> None:
    _, late = answer(followup, "Late")
    tie(followup, late)
    change = lead.post(
        "/followup/changes/new", {**WORDS, "theme_ids": theme_of(followup)}, form_on="/followup/changes/new"
    ).location
    lead.post(f"{change}/publish", form_on=change)
    notice = followup.one("SELECT * FROM notice")
    with followup.db.transaction() as tx:
        tx.execute("UPDATE delivery SET state = 'uncertain' WHERE id = %s", (notice["delivery_id"],))
        notices.uncertain(tx, notice["delivery_id"])

    assert "may or may not have left" in lead.get("/followup/changes").text
    assert "Send again" in lead.get(f"{change}?show=uncertain").text
    lead.post(f"{change}/notices/{notice['id']}/again", form_on=change)
    lead.post(f"{change}/notices/{notice['id']}/again", form_on=change)

    assert followup.one("SELECT state FROM notice")["state"] == "queued"
    assert len(followup.all("SELECT 1 FROM delivery WHERE kind = 'notice'")) == 2


def test_agents_and_viewers_have_no_business_here(followup: Followup) -> None:
    for role in ("agent", "viewer"):
        followup.staff(f"{role}@acme.example", role)
        browser = followup.browser(f"{role}@acme.example")
        for path in ("/followup/changes", "/followup/changes/new", "/followup/themes"):
            assert browser.get(path).status_code == 403
    assert Browser(followup.app).get("/followup/changes").status_code == 303


def test_unknown_changes_and_damaged_cursors_are_no_server_errors(followup: Followup, lead: Browser) -> None:
    for path in (
        "nonsense",
        new_id(),
        f"{new_id()}/edit",
        f"{new_id()}/answers",
        f"{new_id()}/publish",
        "x/mail",
    ):
        assert lead.get(f"/followup/changes/{path}").status_code == 404
    assert lead.get("/followup/changes?cursor=WyJhIiwiYiJd").status_code == 422
    assert lead.get("/followup/changes?cursor=%%%").status_code == 422


def test_themes_page(followup: Followup, lead: Browser) -> None:
    assert "Delivery late" in lead.get("/followup/themes").text
    lead.post("/followup/themes", {"name": "Opening hours"}, form_on="/followup/themes")
    twice = lead.post("/followup/themes", {"name": "opening hours"}, form_on="/followup/themes")
    assert twice.status_code == 409 and "This theme is there already" in twice.text
    theme = theme_of(followup, "Opening hours")
    taken = lead.post(f"/followup/themes/{theme}", {"name": "Price"}, form_on="/followup/themes")
    assert taken.status_code == 409 and "Another theme has this name already" in taken.text
    lead.post(f"/followup/themes/{theme}", {"name": "When we are open"}, form_on="/followup/themes")
    lead.post(f"/followup/themes/{theme}/retire", form_on="/followup/themes")
    assert "Bring back" in lead.get("/followup/themes").text
    lead.post(f"/followup/themes/{theme}/restore", form_on="/followup/themes")
    assert "Bring back" not in lead.get("/followup/themes").text


def test_the_api_does_what_the_pages_do(followup: Followup) -> None:
    client, key = followup.app.test_client(), followup.key("changes:read", "changes:write")
    _, late = answer(followup, "Late")
    theme = theme_of(followup)
    tied = client.post(f"/followup/api/themes/{theme}/answers", json={"response_ids": [late]}, headers=key)
    assert tied.status_code == 204
    once = {**key, "Idempotency-Key": "one"}
    made = client.post("/followup/api/changes", json={**WORDS, "theme_ids": [theme]}, headers=once)
    again = client.post("/followup/api/changes", json={**WORDS, "theme_ids": [theme]}, headers=once)
    assert made.status_code == again.status_code == 201
    assert made.json == again.json and made.json
    here = made.headers["Location"]
    assert client.get(here, headers=key).json == made.json
    patched = client.patch(here, json={"title": "Sundays", "version": 1}, headers=key)
    assert patched.status_code == 200 and patched.json and patched.json["title"] == "Sundays"
    assert client.patch(here, json={"title": "x", "version": 1}, headers=key).status_code == 409
    people = client.get(f"{here}/audience", headers=key).json
    assert people and (people["total"], people["reachable"]) == (1, 1)
    assert people["customers"][0]["response_id"] == late
    refused = client.post(f"{here}/publish", json={"expected": 3}, headers=key)
    assert refused.status_code == 409 and refused.json and refused.json["slug"] == "audience-changed"
    for _ in range(2):
        published = client.post(
            f"{here}/publish", json={"version": 2, "expected": 1}, headers={**key, "Idempotency-Key": "two"}
        )
        assert published.status_code == 200, published.json
        assert published.json and published.json["counts"]["queued"] == 1
        assert published.json["published_by"] == "a program"
    listed = client.get("/followup/api/changes?state=published&limit=1", headers=key).json
    assert (
        listed and [change["title"] for change in listed["changes"]] == ["Sundays"] and listed["next"] is None
    )
    sent = client.get(f"{here}/notices?state=queued", headers=key).json
    assert sent and [notice["quote"] for notice in sent["notices"]] == ["Late"]
    withdrawn = client.post(f"{here}/withdraw", headers=key).json
    assert withdrawn and withdrawn["state"] == "withdrawn"
    assert len(followup.published("change.published")) == 1


def test_the_api_says_what_is_wrong(followup: Followup) -> None:
    client, key = followup.app.test_client(), followup.key("changes:read")
    assert client.get("/followup/api/changes").status_code == 401
    body = {**WORDS, "theme_ids": [theme_of(followup)]}
    assert client.post("/followup/api/changes", json=body, headers=key).status_code == 403
    both = followup.key("changes:read", "changes:write")
    wrong = client.post("/followup/api/changes", json={**body, "title": "", "colour": "red"}, headers=both)
    assert wrong.status_code == 422
    assert wrong.content_type == "application/problem+json"
    empty = client.post("/followup/api/changes", json={**body, "title": " "}, headers=both)
    assert empty.json and {error["field"] for error in empty.json["errors"]} == {"title"}
    assert client.get(f"/followup/api/changes/{new_id()}", headers=both).status_code == 404
    assert client.get("/followup/api/changes?state=lost", headers=both).status_code == 422


def test_pages_of_a_list_follow_each_other(followup: Followup) -> None:
    client, key = followup.app.test_client(), followup.key("changes:read", "changes:write")
    for number in range(5):
        body = {**WORDS, "title": f"Change {number}", "theme_ids": [theme_of(followup)]}
        assert client.post("/followup/api/changes", json=body, headers=key).status_code == 201
    titles: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = client.get(
            "/followup/api/changes", query_string={"limit": 2, "cursor": cursor}, headers=key
        ).json
        assert page
        titles += [change["title"] for change in page["changes"]]
        cursor = page["next"]
    assert titles == [f"Change {number}" for number in (4, 3, 2, 1, 0)]


class TestDidItHelp:
    """POST /followup/n, as survey's trail page sends it."""

    @pytest.fixture
    def notice(self, followup: Followup, lead: Browser) -> str:
        _, late = answer(followup, "Late")
        tie(followup, late)
        change = lead.post(
            "/followup/changes/new",
            {**WORDS, "theme_ids": theme_of(followup)},
            form_on="/followup/changes/new",
        ).location
        lead.post(f"{change}/publish", form_on=change)
        row = followup.one("SELECT id, delivery_id FROM notice")
        with followup.db.transaction() as tx:
            notices.sent(tx, row["id"], row["delivery_id"], "email", tx.now)
        return str(row["id"])

    @staticmethod
    def leave(followup: Followup, notice: str) -> str:
        with followup.app.app_context():
            return capability.make("notice-answer", {"notice": notice})

    def test_counts_by_script_and_by_form(self, followup: Followup, notice: str) -> None:
        client, leave = followup.app.test_client(), self.leave(followup, notice)
        done = client.post("/followup/n", data={"capability": leave, "helped": "yes"})
        assert done.status_code == 204
        assert followup.one("SELECT helped FROM notice")["helped"] is True
        trail = f"/a/abcdefghijklmnopqrstuv?n={notice}"
        form = client.post("/followup/n", data={"capability": leave, "helped": "no", "next": trail})
        assert (form.status_code, form.location) == (303, trail)
        assert followup.one("SELECT helped FROM notice")["helped"] is False

    def test_leads_nowhere_else(self, followup: Followup, notice: str) -> None:
        client, leave = followup.app.test_client(), self.leave(followup, notice)
        for elsewhere in (
            "https://evil.example/a/x",
            "//evil.example/a/x",
            "/a/../followup/inbox",
            "/a/x\r\nX: y",
        ):
            done = client.post("/followup/n", data={"capability": leave, "helped": "yes", "next": elsewhere})
            assert done.status_code == 204

    def test_a_browser_gets_a_button_to_say_it_again_while_the_database_is_slow(
        self, followup: Followup, notice: str
    ) -> None:
        leave, trail = self.leave(followup, notice), f"/a/abcdefghijklmnopqrstuv?n={notice}"
        sent = {"capability": leave, "helped": "no", "next": trail}
        client, german = followup.app.test_client(), {"Accept": "text/html", "Accept-Language": "de"}
        with followup.db.transaction() as tx:
            tx.execute("LOCK TABLE notice IN ACCESS EXCLUSIVE MODE")
            page = client.post("/followup/n", data=sent, headers=german)
            by_script = client.post("/followup/n", data=sent, headers={"Accept": "application/json"})
        assert (page.status_code, page.headers["Retry-After"]) == (503, "2")
        assert by_script.status_code == 503 and by_script.json is not None
        assert 'lang="de"' in page.text and "Noch einmal" in page.text
        fields = {k: unescape(v) for k, v in re.findall(r'name="(\w+)" value="([^"]*)"', page.text)}
        assert fields == sent
        assert client.post("/followup/n", data=fields, headers=german).location == trail
        assert followup.one("SELECT helped FROM notice")["helped"] is False

    def test_an_old_page_is_exchanged_for_a_new_one_that_asks_the_same(
        self, followup: Followup, notice: str, clock: ManualClock
    ) -> None:
        sent = {
            "capability": self.leave(followup, notice),
            "helped": "yes",
            "next": "/a/abcdefghijklmnopqrst",
        }
        clock.advance(timedelta(days=2))
        done = followup.app.test_client().post("/followup/n", data=sent, headers={"Accept": "text/html"})
        assert (done.status_code, done.location) == (303, f"{sent['next']}?n={notice}&helped=yes")

    def test_needs_a_leave_that_is_ours_and_fresh(
        self, followup: Followup, notice: str, clock: ManualClock
    ) -> None:
        client, leave = followup.app.test_client(), self.leave(followup, notice)
        for data in ({}, {"helped": "yes"}, {"capability": leave + "x", "helped": "yes"}):
            assert client.post("/followup/n", data=data).status_code == 422
        assert client.post("/followup/n", data={"capability": leave, "helped": "maybe"}).status_code == 422
        assert client.get("/followup/n").status_code == 405
        clock.advance(timedelta(days=1, seconds=2))
        assert client.post("/followup/n", data={"capability": leave, "helped": "yes"}).status_code == 410
        assert followup.one("SELECT helped FROM notice")["helped"] is None
