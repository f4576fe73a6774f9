"""Logging in: the first administrator, one-time passwords, limits on guesses, and sessions that end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.followup.commands import login as logins
from services.followup.commands import staff
from shared.errors import Conflict, TooMany
from tests.support.followup import PASSWORD, Browser, Followup


def test_first_start_makes_one_administrator_who_must_say_who_they_are(followup: Followup) -> None:
    with followup.db.transaction() as tx:
        made = staff.ensure_admin(tx)
        assert made and staff.ensure_admin(tx) is None
    login, password = made
    assert login == "admin"
    browser = Browser(followup.app)
    reply = browser.log_in(login, password)
    assert reply.headers["Location"] == "/followup/password"
    # Nothing else can be used before.
    assert browser.get("/followup/staff").headers["Location"] == "/followup/password"
    page = browser.get("/followup/password").text
    assert "Log out" in page and not any(link in page for link in ('"/followup/inbox"', '"/survey/search"'))
    form = {
        "current": password,
        "new": PASSWORD,
        "again": PASSWORD,
        "name": "Ada",
        "email": "Ada@Acme.example",
    }
    wrong = browser.post("/followup/password", {**form, "email": ""})
    assert wrong.status_code == 422 and "not an e-mail address" in wrong.text
    assert browser.post("/followup/password", form).status_code == 303
    assert 'href="/followup/inbox"' in browser.get("/followup/staff").text
    row = followup.one("SELECT * FROM staff")
    assert (row["email"], row["name"], row["role"]) == ("ada@acme.example", "Ada", "admin")
    assert [e["data"]["email"] for e in followup.published("staff.changed")] == ["admin", "ada@acme.example"]
    assert all("password" not in str(e["data"]) for e in followup.published())


def test_a_wrong_password_and_an_unknown_name_read_the_same(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    texts = {
        Browser(followup.app).log_in(name, "wrong password").status_code
        for name in ("ann@acme.example", "x@y.z")
    }
    assert texts == {401}
    page = Browser(followup.app).log_in("ann@acme.example", "wrong password")
    assert "The e-mail address or the password is wrong." in page.text
    assert 'value="ann@acme.example"' in page.text


def test_guessing_is_stopped_for_a_while_and_the_right_password_clears_the_count(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    browser = Browser(followup.app)
    limit = logins.LIMITS["pair"]
    for _ in range(limit - 1):
        assert browser.log_in("ann@acme.example", "wrong").status_code == 401
    assert browser.log_in("ann@acme.example").status_code == 303
    other = Browser(followup.app)
    for _ in range(limit):
        assert other.log_in("ann@acme.example", "wrong").status_code == 401
    refused = other.log_in("ann@acme.example")
    assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
    assert "Try again in 15 minutes" in refused.text and "Capital letters" not in refused.text
    followup.clock.advance(timedelta(minutes=16))
    assert other.log_in("ann@acme.example").status_code == 303


def test_one_address_cannot_try_many_names(followup: Followup) -> None:
    with pytest.raises(TooMany):
        for n in range(100):
            try:
                logins.log_in(followup.db.transaction, login=f"p{n}", password="x", address="10.0.0.9")
            except TooMany:
                assert n == logins.LIMITS["address"]
                raise
            except Exception:
                continue


@pytest.mark.parametrize("how", ["disable", "role", "reset", "everywhere", "own password"])
def test_a_session_ends_at_once(followup: Followup, how: str) -> None:
    followup.staff("root@acme.example", "admin")
    ann = followup.staff("ann@acme.example", "lead")
    browser = followup.browser("ann@acme.example")
    assert browser.get("/followup/password").status_code == 200
    with followup.db.transaction() as tx:
        if how == "disable":
            staff.disable(tx, ann)
        elif how == "role":
            staff.change(tx, ann, name="Ann", role="agent")
        elif how == "reset":
            staff.reset_password(tx, b"k" * 32, ann)
        elif how == "everywhere":
            staff.log_out_everywhere(tx, ann)
        else:
            staff.set_own_password(tx, ann, current=PASSWORD, new=PASSWORD + "!", again=PASSWORD + "!")
    assert browser.get("/followup/password").headers["Location"].startswith("/followup/login")


def test_ones_own_session_goes_on_after_changing_the_password(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    browser = followup.browser("ann@acme.example")
    new = "another good battery"
    reply = browser.post("/followup/password", {"current": PASSWORD, "new": new, "again": new})
    assert reply.status_code == 303
    assert browser.get("/followup/password").status_code == 200


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"current": "wrong", "new": "another good battery", "again": "another good battery"}, "current"),
        ({"current": PASSWORD, "new": "short", "again": "short"}, "new"),
        ({"current": PASSWORD, "new": "another good battery", "again": "a typo"}, "again"),
        ({"current": PASSWORD, "new": PASSWORD, "again": PASSWORD}, "new"),
        ({"current": PASSWORD, "new": "ann@acme.example", "again": "ann@acme.example"}, "new"),
    ],
)
def test_a_password_that_will_not_do_is_refused_by_field(
    followup: Followup, form: dict[str, str], field: str
) -> None:
    followup.staff("ann@acme.example")
    reply = followup.browser("ann@acme.example").post("/followup/password", form)
    assert reply.status_code == 422
    assert f'id="f-{field}-error"' in reply.text


def test_the_last_administrator_stays(followup: Followup) -> None:
    root = followup.staff("root@acme.example", "admin")
    with pytest.raises(Conflict), followup.db.transaction() as tx:
        staff.disable(tx, root)
    with pytest.raises(Conflict), followup.db.transaction() as tx:
        staff.change(tx, root, name="Root", role="lead")
    second = followup.staff("two@acme.example", "admin")
    with followup.db.transaction() as tx:
        staff.disable(tx, root)
    with pytest.raises(Conflict), followup.db.transaction() as tx:
        staff.disable(tx, second)


def test_an_administrator_adds_a_person_and_sees_the_one_time_password_once(followup: Followup) -> None:
    followup.staff("root@acme.example", "admin")
    browser = followup.browser("root@acme.example")
    page = browser.post("/followup/staff", {"name": "Ben", "email": "ben@acme.example", "role": "agent"})
    assert page.status_code == 200
    password = page.text.split('<code id="secret">')[1].split("<")[0]
    ben = followup.one("SELECT id FROM staff WHERE email = 'ben@acme.example'")["id"]
    assert password not in browser.get(f"/followup/staff/{ben}").text
    reply = Browser(followup.app).log_in("ben@acme.example", password)
    assert reply.headers["Location"] == "/followup/password"
    again = browser.post("/followup/staff", {"name": "Ben", "email": "BEN@acme.example", "role": "agent"})
    assert again.status_code == 422 and "login already" in again.text
    mail = next(m for m in followup.mails() if m["to"] == "ben@acme.example")
    assert password not in str(mail["data"])


def test_a_key_is_shown_once_and_stored_hashed(followup: Followup) -> None:
    followup.staff("root@acme.example", "admin")
    browser = followup.browser("root@acme.example")
    page = browser.post("/followup/keys", {"name": "warehouse", "scopes": ["tasks:read"]})
    secret = page.text.split('<code id="secret">')[1].split("<")[0]
    assert secret.startswith("hbk_")
    row = followup.one("SELECT * FROM apikey")
    assert secret.encode() not in bytes(row["hash"])
    event = followup.published("apikey.changed")[0]
    assert event["data"]["scopes"] == ["tasks:read"] and secret not in str(event["data"])
    assert secret not in browser.get("/followup/keys").text
    browser.post(f"/followup/keys/{row['id']}/disable")
    assert [e["version"] for e in followup.published("apikey.changed")] == [1, 2]
    wrong = browser.post("/followup/keys", {"name": "x", "scopes": ["everything"]})
    assert wrong.status_code == 422


@pytest.mark.parametrize("role", ["agent", "lead", "viewer"])
def test_only_administrators_see_staff_and_keys(followup: Followup, role: str) -> None:
    followup.staff("ann@acme.example", role)
    browser = followup.browser("ann@acme.example")
    for path in ("/followup/staff", "/followup/keys"):
        assert browser.get(path).status_code == 403
