"""Who may do what, over every route there is: refused by default, and somebody else's task is not there."""

from __future__ import annotations

import pytest

from shared.web.access import declared
from tests.support.followup import Browser, Followup, account, new_id


def routes(followup: Followup, containing: str) -> list[tuple[str, str]]:
    found = []
    for rule in followup.app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            if containing in rule.rule:
                found.append((method, rule.rule))
    return found


def test_every_route_refuses_a_stranger(followup: Followup) -> None:
    client = followup.app.test_client()
    tried = 0
    for rule in followup.app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            access = declared(followup.app, rule.endpoint, method)
            assert access is not None, rule
            if access.kind in ("public", "operator"):
                continue
            path = rule.rule
            for argument in rule.arguments:
                for form in (f"<uuid:{argument}>", f"<{argument}>", f"<path:{argument}>"):
                    path = path.replace(form, new_id())
            reply = client.open(path, method=method)
            assert reply.status_code in (303, 401), (method, path, reply.status_code)
            if reply.status_code == 303:
                assert reply.headers["Location"].startswith("/followup/login"), path
            tried += 1
    assert tried > 30


def test_somebody_elses_task_is_not_there_on_any_route(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    followup.staff("ben@acme.example")
    followup.apply(
        followup.response(
            new_id(), 2, account=account(manager="ben@acme.example"), comment="Ben's secret words"
        )
    )
    task_id = str(followup.tasks()[0]["id"])
    ann = followup.browser("ann@acme.example")
    bodies: dict[str, dict[str, object]] = {
        "attempts": {"channel": "phone", "reached": True},
        "notes": {"text": "x"},
        "assign": {"to": None},
        "resolve": {"outcome": "solved", "theme": "x"},
        "reopen": {},
    }
    token = _token(ann)
    tried = 0
    for method, rule in routes(followup, "task_id>"):
        path = rule.replace("<uuid:task_id>", task_id).replace("<task_id>", task_id)
        name = path.rsplit("/", 1)[1]
        if "/api/" in path:
            body = bodies.get(name) if method == "POST" else None
            reply = ann.client.open(path, method=method, json=body, headers={"X-CSRF-Token": token})
        elif method == "GET":
            reply = ann.get(path)
        else:
            form = {key: "" if value is None else str(value) for key, value in bodies.get(name, {}).items()}
            reply = ann.post(path, {**form, "reached": "yes", "version": "1"})
        assert reply.status_code == 404, (method, path, reply.status_code)
        assert "secret words" not in reply.text
        tried += 1
    assert tried >= 14
    for path in ("/followup/inbox", "/followup/inbox?view=closed", "/followup/api/tasks"):
        assert "secret words" not in ann.get(path).text
    assert len(followup.all("SELECT 1 FROM task_entry WHERE kind <> 'opened'")) == 0


def test_unowned_tasks_are_everybodys(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    followup.apply(followup.response(new_id(), 2, comment="Nobody owns me"))
    ann = followup.browser("ann@acme.example")
    assert "Nobody owns me" in ann.get("/followup/inbox").text
    assert ann.get(f"/followup/tasks/{followup.tasks()[0]['id']}").status_code == 200
    assert ann.client.get("/followup/api/tasks").get_json()["tasks"]


@pytest.mark.parametrize("path", ["/followup/inbox", "/followup/api/tasks"])
def test_viewers_see_reports_only(followup: Followup, path: str) -> None:
    followup.staff("vic@acme.example", "viewer")
    assert followup.browser("vic@acme.example").get(path).status_code == 403


def test_a_form_without_its_token_does_nothing(followup: Followup) -> None:
    followup.staff("root@acme.example", "admin")
    browser = followup.browser("root@acme.example")
    reply = browser.client.post(
        "/followup/staff", data={"name": "X", "email": "x@y.example", "role": "admin"}
    )
    assert reply.status_code == 403
    assert len(followup.all("SELECT 1 FROM staff")) == 1


def _token(browser: Browser) -> str:
    page = browser.get("/followup/password").text
    return page.split('<meta name="csrf-token" content="')[1].split('"')[0]
