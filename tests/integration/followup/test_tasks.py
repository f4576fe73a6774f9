"""Working on tasks, on pages and over the API: attempts, notes, handing over, resolving, conflicts."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from werkzeug.test import TestResponse

from tests.support.followup import Browser, Followup, account, new_id

WORDS = "Third delivery in a row that came on a Saturday."


def hidden(page: str) -> dict[str, str]:
    """The version and the moment a task's forms carry."""
    found = dict(re.findall(r'name="(version|seen)" value="([^"]*)"', page))
    assert set(found) == {"version", "seen"}
    return found


@pytest.fixture
def ann(followup: Followup) -> Browser:
    followup.staff("ann@acme.example", name="Ann Berger")
    followup.staff("ben@acme.example", name="Ben Carter")
    followup.staff("lea@acme.example", "lead", name="Lea Lindt")
    return followup.browser("ann@acme.example")


@pytest.fixture
def task_id(followup: Followup, ann: Browser) -> str:
    """Ann's task: Carla of Globex gave a 2."""
    globex, carla = account(manager="ann@acme.example"), new_id()
    followup.apply(
        followup.customer(carla, globex), followup.response(carla, 2, account=globex, comment=WORDS)
    )
    return str(followup.tasks()[0]["id"])


def test_the_inbox_says_how_many_wait_and_shows_the_most_urgent_words(
    followup: Followup, ann: Browser, task_id: str
) -> None:
    page = ann.get("/followup/inbox").text
    assert "1 customer is waiting" in page and WORDS in page and "tel:+4915112345678" in page
    followup.clock.advance(timedelta(days=2))
    ann = followup.browser("ann@acme.example")
    assert ">overdue</span></h1>" in ann.get("/followup/inbox").text
    assert WORDS in ann.get("/followup/inbox?view=overdue").text
    assert WORDS not in ann.get("/followup/inbox?view=unowned").text


def test_the_most_urgent_comes_first(followup: Followup, ann: Browser) -> None:
    followup.apply(
        followup.response(new_id(), 6, account=account("One", "ann@acme.example"), comment="earlier")
    )
    followup.clock.advance(timedelta(hours=1))
    followup.apply(
        followup.response(new_id(), 0, account=account("Two", "ann@acme.example"), comment="later")
    )
    page = ann.get("/followup/inbox").text
    assert 0 < page.index("earlier") < page.index("later")


def test_an_attempt_in_time_keeps_the_promise_reached_or_not(
    followup: Followup, ann: Browser, task_id: str
) -> None:
    page = ann.get(f"/followup/tasks/{task_id}").text
    reply = ann.post(
        f"/followup/tasks/{task_id}/attempts",
        {**hidden(page), "channel": "phone", "reached": "no", "note": "Voicemail."},
    )
    assert reply.status_code == 303
    (task,) = followup.tasks()
    assert task["first_contact_at"] == followup.clock.now() and task["contacted_at"] is None
    assert task["call_by"] > task["due_at"] - timedelta(seconds=1)
    (event,) = followup.published("task.attempted")
    assert event["data"]["first_contact_at"] and event["data"]["contacted_at"] is None
    page = ann.get(f"/followup/tasks/{task_id}").text
    assert "Ann Berger tried by phone, not reached" in page and "in time" in page and "Voicemail." in page
    followup.clock.advance(timedelta(hours=2))
    ann.post(f"/followup/tasks/{task_id}/attempts", {**hidden(page), "channel": "phone", "reached": "yes"})
    (again,) = followup.tasks()
    assert again["contacted_at"] == followup.clock.now() and again["call_by"] is None
    assert again["first_contact_at"] == task["first_contact_at"]


def test_resolving_needs_a_theme_and_an_outcome_and_keeps_what_was_typed(
    followup: Followup, ann: Browser, task_id: str
) -> None:
    page = ann.get(f"/followup/tasks/{task_id}").text
    wrong = ann.post(
        f"/followup/tasks/{task_id}/resolve", {**hidden(page), "theme": " ", "outcome_note": "We talked."}
    )
    assert wrong.status_code == 422 and "We talked." in wrong.text and 'id="f-theme-error"' in wrong.text
    done = ann.post(
        f"/followup/tasks/{task_id}/resolve",
        {**hidden(page), "theme": "Saturday  delivery", "outcome": "solved", "outcome_note": "We talked."},
    )
    assert done.status_code == 303
    (event,) = followup.published("task.resolved")
    assert (event["data"]["theme"], event["data"]["outcome"]) == ("Saturday delivery", "solved")
    # The same theme in other letters is the same theme.
    followup.apply(followup.response(new_id(), 1, account=account("Two", "ann@acme.example")))
    other = next(t["id"] for t in followup.tasks() if t["state"] == "open")
    page = ann.get(f"/followup/tasks/{other}").text
    ann.post(
        f"/followup/tasks/{other}/resolve",
        {**hidden(page), "theme": "SATURDAY delivery", "outcome": "solved"},
    )
    assert len(followup.all("SELECT * FROM theme WHERE name_key = 'saturday delivery'")) == 1
    page = ann.get(f"/followup/tasks/{task_id}").text
    assert (
        ann.post(f"/followup/tasks/{task_id}/reopen", {**hidden(page), "why": "It came back"}).status_code
        == 303
    )
    assert followup.published("task.reopened")[0]["data"]["reopened"] is True


def test_a_task_is_handed_over_with_the_reason_and_leaves_ones_sight(
    followup: Followup, ann: Browser, task_id: str
) -> None:
    page = ann.get(f"/followup/tasks/{task_id}").text
    reply = ann.post(
        f"/followup/tasks/{task_id}/assign",
        {**hidden(page), "to": followup.people["ben@acme.example"], "why": "They speak Danish"},
    )
    assert reply.headers["Location"] == "/followup/inbox"
    assert ann.get(f"/followup/tasks/{task_id}").status_code == 404
    ben = followup.browser("ben@acme.example")
    assert "They speak Danish" in ben.get(f"/followup/tasks/{task_id}").text
    (mail,) = [mail for mail in followup.mails() if mail["data"]["template"] == "assigned"]
    assert (mail["to"], mail["data"]["by"]) == ("ben@acme.example", "Ann Berger")


def test_two_people_on_one_task_lose_nothing_they_typed(
    followup: Followup, ann: Browser, task_id: str
) -> None:
    lea = followup.browser("lea@acme.example")
    mine = hidden(ann.get(f"/followup/tasks/{task_id}").text)
    hers = hidden(lea.get(f"/followup/tasks/{task_id}").text)
    followup.clock.advance(timedelta(minutes=5))
    lea.post(
        f"/followup/tasks/{task_id}/attempts",
        {**hers, "channel": "phone", "reached": "yes", "note": "All is well."},
    )
    followup.clock.advance(timedelta(minutes=1))
    reply = ann.post(
        f"/followup/tasks/{task_id}/attempts",
        {**mine, "channel": "phone", "reached": "no", "note": "My long note."},
    )
    assert reply.status_code == 409
    assert (
        "Lea Lindt was faster" in reply.text
        and "All is well." in reply.text
        and "My long note." in reply.text
    )
    assert len(followup.all("SELECT 1 FROM task_entry WHERE kind = 'attempted'")) == 1
    # All the same: the page's own form carries the new version and everything typed.
    again = dict(
        re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', reply.text.split("/attempts")[1])
    )
    assert again["note"] == "My long note."
    assert ann.post(f"/followup/tasks/{task_id}/attempts", again).status_code == 303
    assert len(followup.all("SELECT 1 FROM task_entry WHERE kind = 'attempted'")) == 2


def test_words_typed_on_a_task_that_was_closed_or_handed_on_meanwhile_are_kept(
    followup: Followup, ann: Browser, task_id: str
) -> None:
    lea = followup.browser("lea@acme.example")
    mine = hidden(ann.get(f"/followup/tasks/{task_id}").text)
    form = hidden(lea.get(f"/followup/tasks/{task_id}").text)
    lea.post(f"/followup/tasks/{task_id}/resolve", {**form, "theme": "Late", "outcome": "solved"})
    reply = ann.post(
        f"/followup/tasks/{task_id}/attempts",
        {**mine, "channel": "phone", "reached": "no", "note": "My note."},
    )
    assert (
        reply.status_code == 409
        and "My note." in reply.text
        and f"/followup/tasks/{task_id}/notes" in reply.text
    )
    form = hidden(lea.get(f"/followup/tasks/{task_id}").text)
    lea.post(f"/followup/tasks/{task_id}/reopen", form)
    form = hidden(lea.get(f"/followup/tasks/{task_id}").text)
    lea.post(f"/followup/tasks/{task_id}/assign", {**form, "to": followup.people["ben@acme.example"]})
    reply = ann.post(f"/followup/tasks/{task_id}/notes", {"text": "My other note."})
    assert reply.status_code == 404 and "My other note." in reply.text and WORDS not in reply.text


def test_who_is_calling_is_shown_to_the_others(followup: Followup, ann: Browser, task_id: str) -> None:
    lea = followup.browser("lea@acme.example")
    assert ann.post(f"/followup/tasks/{task_id}/start").status_code == 303
    assert "Ann Berger</strong> is on this right now" in lea.get(f"/followup/tasks/{task_id}").text
    assert "Ann Berger is on it" in lea.get("/followup/inbox").text
    state = lea.get(f"/followup/tasks/{task_id}/state").get_json()
    assert state["on_it"] == "Ann Berger"
    refused = lea.post(f"/followup/tasks/{task_id}/start")
    assert refused.status_code == 409 and "Ann Berger is on this right now" in refused.text
    followup.clock.advance(timedelta(minutes=31))
    assert lea.post(f"/followup/tasks/{task_id}/start").status_code == 303


def test_please_dont_call_cannot_be_missed(followup: Followup, ann: Browser) -> None:
    globex, carla = account(manager="ann@acme.example"), new_id()
    followup.apply(
        followup.customer(carla, globex), followup.response(carla, 2, account=globex, callback="dont")
    )
    page = ann.get("/followup/inbox").text
    assert "Please don’t call" in page and 'class="call-bar' not in page
    page = ann.get(f"/followup/tasks/{followup.tasks()[0]['id']}").text
    assert 'class="banner banner-dont"' in page and "Write to carla@customer.example" in page


def test_perhaps_unhappy_can_be_taken_off_the_list_and_put_back(followup: Followup, ann: Browser) -> None:
    carla, invitation = new_id(), new_id()
    followup.apply(
        followup.customer(carla),
        followup.unconfirmed(carla, 2, invitation, account(manager="ann@acme.example")),
    )
    assert "Carla Customer" in ann.get("/followup/inbox?view=unhappy").text
    ben = followup.browser("ben@acme.example")
    assert "Carla Customer" not in ben.get("/followup/inbox?view=unhappy").text
    assert ben.post(f"/followup/unconfirmed/{invitation}/dismiss").status_code == 404
    assert ann.post(f"/followup/unconfirmed/{invitation}/dismiss").status_code == 303
    assert "Nobody is perhaps unhappy" in ann.get("/followup/inbox?view=unhappy").text
    assert ann.post(f"/followup/unconfirmed/{invitation}/restore").status_code == 303
    assert "1 customer is perhaps unhappy" in ann.get("/followup/inbox?view=unhappy").text


def test_lists_page_by_cursor(followup: Followup, ann: Browser) -> None:
    for n in range(35):
        followup.apply(
            followup.response(new_id(), 3, account=account(f"A{n}", "ann@acme.example"), comment=f"w{n:02}")
        )
        followup.clock.advance(timedelta(minutes=1))
    page = ann.get("/followup/inbox").text
    following = re.search(r'href="([^"]*cursor=[^"]*)"', page)
    assert following
    rest = ann.get(following[1].replace("&amp;", "&")).text
    seen = re.findall(r'class="card-words">(w\d\d)', page) + re.findall(r'class="card-words">(w\d\d)', rest)
    assert seen == [f"w{n:02}" for n in range(35)]
    assert ann.get("/followup/inbox?cursor=nonsense").status_code == 422


# The API.


def call(
    followup: Followup, method: str, path: str, headers: dict[str, str], body: Any = None
) -> TestResponse:
    return followup.app.test_client().open(
        f"/followup/api/tasks{path}", method=method, headers=headers, json=body
    )


def test_programs_do_all_that_the_page_does(followup: Followup, task_id: str) -> None:
    key = followup.key("tasks:read", "tasks:write")
    listed = call(followup, "GET", "?state=open&owner=" + followup.people["ann@acme.example"], key)
    assert [task["id"] for task in listed.get_json()["tasks"]] == [task_id]
    assert call(followup, "GET", "?owner=none", key).get_json()["tasks"] == []
    task = call(followup, "GET", f"/{task_id}", key).get_json()
    assert task["comment"] == WORDS and task["answers"][0]["phone"] and task["due_at"].endswith("Z")
    reply = call(followup, "POST", f"/{task_id}/attempts", key, {"channel": "phone", "reached": True})
    assert reply.status_code == 201 and reply.get_json()["contacted_at"]
    assert call(followup, "POST", f"/{task_id}/notes", key, {"text": "By a program"}).status_code == 201
    reply = call(followup, "POST", f"/{task_id}/assign", key, {"to": None})
    assert reply.status_code == 200 and reply.get_json()["owner"] is None
    reply = call(followup, "POST", f"/{task_id}/resolve", key, {"outcome": "solved", "theme": "Late"})
    assert reply.get_json()["state"] == "resolved"
    assert (
        call(followup, "POST", f"/{task_id}/attempts", key, {"channel": "phone", "reached": True}).status_code
        == 409
    )
    assert call(followup, "POST", f"/{task_id}/reopen", key, {}).get_json()["state"] == "open"
    assert (
        "/followup/api/tasks/{task_id}/attempts"
        in followup.app.test_client().get("/followup/api/openapi.json").text
    )


def test_a_write_sent_twice_with_one_key_happens_once(followup: Followup, task_id: str) -> None:
    key = followup.key("tasks:write") | {"Idempotency-Key": "a1"}
    body = {"channel": "phone", "reached": False}
    first = call(followup, "POST", f"/{task_id}/attempts", key, body)
    second = call(followup, "POST", f"/{task_id}/attempts", key, body)
    assert first.status_code == second.status_code == 201 and first.get_json() == second.get_json()
    assert len(followup.all("SELECT 1 FROM task_entry WHERE kind = 'attempted'")) == 1
    assert call(followup, "POST", f"/{task_id}/attempts", key, body | {"reached": True}).status_code == 409


def test_a_stale_version_is_a_conflict(followup: Followup, task_id: str) -> None:
    key = followup.key("tasks:write", "tasks:read")
    version = call(followup, "GET", f"/{task_id}", key).get_json()["version"]
    body = {"channel": "phone", "reached": False, "version": version}
    assert call(followup, "POST", f"/{task_id}/attempts", key, body).status_code == 201
    reply = call(followup, "POST", f"/{task_id}/attempts", key, body)
    assert reply.status_code == 409 and reply.get_json()["slug"] == "changed-meanwhile"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("attempts", {"channel": "pigeon", "reached": True}, "channel"),
        ("attempts", {"channel": "phone"}, "reached"),
        ("attempts", {"channel": "phone", "reached": True, "colour": 1}, "colour"),
        ("notes", {"text": ""}, "text"),
        ("resolve", {"outcome": "fine", "theme": "x"}, "outcome"),
        ("resolve", {"outcome": "solved"}, "theme"),
        ("resolve", {"outcome": "solved", "theme_id": "x"}, "theme"),
        ("assign", {"to": "x"}, "to"),
    ],
)
def test_bad_input_is_named_by_field(
    followup: Followup, task_id: str, path: str, body: dict[str, Any], field: str
) -> None:
    reply = call(followup, "POST", f"/{task_id}/{path}", followup.key(), body)
    assert reply.status_code == 422 and reply.content_type == "application/problem+json"
    assert field in [error["field"] for error in reply.get_json()["errors"]]


def test_a_key_needs_the_scope(followup: Followup, task_id: str) -> None:
    assert call(followup, "GET", f"/{task_id}", followup.key("tasks:write")).status_code == 403
    reply = call(followup, "POST", f"/{task_id}/notes", followup.key("tasks:read"), {"text": "x"})
    assert reply.status_code == 403
    assert call(followup, "GET", "", {"Authorization": "Bearer hbk_unknown"}).status_code == 401
