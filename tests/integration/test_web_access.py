"""Who gets in: staff by their session, programs by their key, services by their header, and nobody else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, jsonify, make_response, redirect, render_template_string, request
from flask.testing import FlaskClient

from shared.clock import ManualClock
from shared.ids import SystemIds, hash_token
from shared.settings import Settings
from shared.web import (
    Service,
    actor,
    allow,
    body_limit,
    create_service,
    csp_nonce,
    finish,
    flash,
    public,
    rate_limit,
    service_auth,
    service_call,
    session,
)

ADA = "01890000-0000-7000-8000-000000000001"
KEY = "a-key-of-the-tests"
FORM = "<form method='post'>{{ csrf_field() }}</form>"


@pytest.fixture
def app(settings: Settings, clock: ManualClock, ids: SystemIds) -> Flask:
    app = create_service("survey", settings, clock=clock, ids=ids, package="services.survey")

    @app.get("/survey/login-for-test/<int:epoch>/<int:new>")
    @public
    def log_in(epoch: int, new: int) -> Any:
        response = make_response("in")
        session.start(response, ADA, epoch, must_change=bool(new))
        return response

    @app.route("/survey/page", methods=["GET", "POST"])
    @allow("agent", "lead")
    def page() -> Any:
        return render_template_string(FORM) + actor().name

    @app.get("/survey/framed")
    @allow()
    def framed() -> Any:
        return render_template_string(
            "{% extends 'hearback/base.html' %}{% block heading %}<h1>Seven</h1>{% endblock %}"
            "{% block main %}{{ ui.field('name', 'Name', '<b>', error='Enter a name') }}{% endblock %}"
        )

    @app.get("/survey/flash")
    @allow()
    def flashing() -> Any:
        flash("Told 42 customers.")
        return redirect("/survey/framed")

    @app.get("/survey/inline")
    @public
    def inline() -> Any:
        return f"<style nonce='{csp_nonce()}'>p {{ color: red }}</style>"

    @app.get("/survey/new-too")
    @allow(when_new=True)
    def new_too() -> str:
        return "yes"

    @app.route("/survey/api/things", methods=["GET", "POST"])
    @allow("lead", scope="things:write")
    def things() -> Any:
        who = actor()
        return jsonify(kind=who.kind, role=who.role, agent=who.is_agent)

    @app.post("/survey/internal/permits")
    @service_call(purpose="permits")
    def permits() -> Any:
        return jsonify(actor().kind)

    @app.route("/survey/open-form", methods=["GET", "POST"])
    @public
    def open_form() -> Any:
        return render_template_string(FORM)

    @app.post("/u/<token>")
    @public(csrf=False)
    def one_click(token: str) -> str:
        return "done"

    @app.get("/survey/limited")
    @public
    def limited() -> str:
        rate_limit("somebody", 2, 60)
        return "fine"

    @app.post("/survey/api/upload")
    @public(csrf=False)
    @body_limit(3_000_000)
    def upload() -> Any:
        return jsonify(len(request.get_data()))

    @app.post("/survey/api/small")
    @public(csrf=False)
    def small() -> Any:
        return jsonify(len(request.get_data()))

    return finish(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def staff(app: Flask) -> Callable[..., None]:
    here: Service = app.extensions["hearback"]

    def write(role: str = "lead", *, disabled: bool = False, epoch: int = 1, id: str = ADA) -> None:
        with here.db.transaction() as tx:
            tx.execute(
                "INSERT INTO staff (id, version, email, name, role, disabled, epoch)"
                " VALUES (%s, 1, %s, 'Ada', %s, %s, %s) ON CONFLICT (id) DO UPDATE"
                " SET role = excluded.role, disabled = excluded.disabled, epoch = excluded.epoch",
                (id, f"{id}@example.org", role, disabled, epoch),
            )

    return write


def log_in(client: FlaskClient, epoch: int = 1, new: int = 0) -> None:
    assert client.get(f"/survey/login-for-test/{epoch}/{new}").status_code == 200


def token_of(html: str) -> str:
    found = re.search(r'name="csrf_token" value="([0-9a-f]+)"', html)
    assert found
    return found[1]


def test_people_who_are_not_logged_in_are_led_to_the_login_and_back(client: FlaskClient) -> None:
    answer = client.get("/survey/page?a=1&b=2")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/followup/login?next=/survey/page%3Fa%3D1%26b%3D2"


def test_programs_that_are_not_logged_in_get_a_problem(client: FlaskClient) -> None:
    answer = client.get("/survey/api/things")
    assert (answer.status_code, answer.content_type) == (401, "application/problem+json")
    assert answer.json and answer.json["slug"] == "unauthenticated" and answer.json["status"] == 401
    assert "Bearer" in answer.headers["WWW-Authenticate"]


def test_staff_get_in_by_role(client: FlaskClient, staff: Callable[..., None]) -> None:
    staff("lead")
    log_in(client)
    assert client.get("/survey/page").text.endswith("Ada")
    staff("viewer")
    assert client.get("/survey/page").status_code == 403
    staff("agent")
    assert client.get("/survey/page").status_code == 200
    assert client.get("/survey/api/things").status_code == 403


def test_who_is_disabled_is_out_at_once(client: FlaskClient, staff: Callable[..., None]) -> None:
    staff()
    log_in(client)
    assert client.get("/survey/page").status_code == 200
    staff(disabled=True, epoch=2)
    assert client.get("/survey/page").headers["Location"].startswith("/followup/login")


def test_a_session_of_an_earlier_epoch_is_over(client: FlaskClient, staff: Callable[..., None]) -> None:
    staff(epoch=5)
    log_in(client, epoch=4)
    assert client.get("/survey/page").status_code == 303


def test_a_session_lasts_twelve_hours(
    client: FlaskClient, staff: Callable[..., None], clock: ManualClock
) -> None:
    staff()
    log_in(client)
    clock.advance(timedelta(hours=12, seconds=5))
    assert client.get("/survey/page").status_code == 303


def test_who_has_not_arrived_here_yet_gets_a_moment_not_a_refusal(
    client: FlaskClient, staff: Callable[..., None]
) -> None:
    log_in(client)
    answer = client.get("/survey/page")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert 'http-equiv="refresh"' in answer.text and "One moment" in answer.text
    staff(epoch=0)  # an epoch that this replica has not heard of yet is no refusal either
    assert client.get("/survey/page").status_code == 503
    staff(epoch=1)
    assert client.get("/survey/page").status_code == 200


def test_a_given_password_must_be_changed_before_anything_else(
    client: FlaskClient, staff: Callable[..., None]
) -> None:
    staff()
    log_in(client, new=1)
    assert client.get("/survey/page").headers["Location"] == "/followup/password"
    assert client.get("/survey/api/things").status_code == 403
    assert client.get("/survey/new-too").text == "yes"


def test_a_form_without_its_token_changes_nothing(client: FlaskClient, staff: Callable[..., None]) -> None:
    staff()
    log_in(client)
    assert client.post("/survey/page").status_code == 403
    assert client.post("/survey/page", data={"csrf_token": "f" * 64}).status_code == 403
    token = token_of(client.get("/survey/page").text)
    assert client.post("/survey/page", data={"csrf_token": token}).status_code == 200
    assert client.post("/survey/page", headers={"X-CSRF-Token": token}).status_code == 200
    crossing = {"X-CSRF-Token": token, "Sec-Fetch-Site": "cross-site"}
    assert client.post("/survey/page", headers=crossing).status_code == 403


def test_a_token_of_another_session_is_worth_nothing(
    app: Flask, client: FlaskClient, staff: Callable[..., None], clock: ManualClock
) -> None:
    staff()
    log_in(client)
    token = token_of(client.get("/survey/page").text)
    clock.advance(timedelta(seconds=5))
    other = app.test_client()
    log_in(other)
    assert other.post("/survey/page", data={"csrf_token": token}).status_code == 403


def test_a_form_before_login_is_bound_to_the_browser(
    app: Flask, client: FlaskClient, staff: Callable[..., None]
) -> None:
    token = token_of(client.get("/survey/open-form").text)
    assert client.post("/survey/open-form", data={"csrf_token": token}).status_code == 200
    # The visit's cookie may have been planted by a neighbour: it is no proof for what staff do.
    staff()
    log_in(client)
    assert client.post("/survey/page", data={"csrf_token": token}).status_code == 403
    assert app.test_client().post("/survey/open-form", data={"csrf_token": token}).status_code == 403


def test_a_post_from_a_mail_program_needs_no_token(client: FlaskClient) -> None:
    assert client.post("/u/anything", data={"List-Unsubscribe": "One-Click"}).text == "done"


@pytest.mark.parametrize(
    ("scopes", "disabled", "status"),
    [(["things:write"], False, 200), (["other"], False, 403), (["things:write"], True, 401)],
)
def test_a_key_may_do_what_its_scopes_say(
    app: Flask, client: FlaskClient, scopes: list[str], disabled: bool, status: int
) -> None:
    here: Service = app.extensions["hearback"]
    with here.db.transaction() as tx:
        tx.execute(
            "INSERT INTO apikey (id, version, name, hash, scopes, disabled)"
            " VALUES (%s, 1, 'crm', %s, %s, %s)",
            (ADA, hash_token(KEY), scopes, disabled),
        )
    header = {"Authorization": f"Bearer {KEY}"}
    answer = client.post("/survey/api/things", headers=header)
    assert answer.status_code == status
    if status == 200:
        assert answer.json == {"kind": "key", "role": "key", "agent": False}
        assert client.get("/survey/page", headers=header).status_code == 403
        me = client.get("/survey/api/me", headers=header).json
        assert me and me["scopes"] == scopes
    assert client.get("/survey/api/things", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_a_service_gets_in_by_its_header_for_its_purpose(
    client: FlaskClient, settings: Settings, clock: ManualClock
) -> None:
    url = "/survey/internal/permits"
    assert client.post(url).status_code == 401
    assert client.post(url, headers=service_auth.header(settings, "other", clock)).status_code == 401
    assert client.post(url, headers=service_auth.header(settings, "permits", clock)).json == "service"


def test_a_limit_says_when_to_come_back(client: FlaskClient, clock: ManualClock) -> None:
    assert [client.get("/survey/limited").status_code for _ in range(3)] == [200, 200, 429]
    assert 0 < int(client.get("/survey/limited").headers["Retry-After"]) <= 60
    clock.advance(timedelta(seconds=60))
    assert client.get("/survey/limited").status_code == 200


def test_a_body_may_be_as_large_as_its_route_says(client: FlaskClient) -> None:
    assert client.post("/survey/api/upload", data=b"x" * 2_000_000).json == 2_000_000
    answer = client.post("/survey/api/small", data=b"x" * 2_000_000)
    assert answer.status_code == 413 and answer.json and answer.json["slug"] == "too-large"


def test_the_frame_shows_what_the_role_may_use_and_nothing_else(
    client: FlaskClient, staff: Callable[..., None]
) -> None:
    staff("viewer")
    log_in(client)
    html = client.get("/survey/framed").text
    assert "Reports" in html
    assert not re.search(r"Inbox|Customers<|Programs|Settings<|/survey/search", html)
    staff("agent")
    html = client.get("/survey/framed").text
    assert "Inbox" in html and "/survey/search" in html and "Reports" not in html and "Keys" not in html
    staff("admin")
    html = client.get("/survey/framed").text
    assert "Keys" in html and "Staff" in html and "Log out" in html


def test_what_was_typed_is_escaped_and_its_error_is_tied_to_it(
    client: FlaskClient, staff: Callable[..., None]
) -> None:
    staff()
    log_in(client)
    html = client.get("/survey/framed").text
    assert 'value="&lt;b&gt;"' in html and 'aria-describedby="f-name-error"' in html


def test_a_sentence_for_the_next_page_is_shown_once(client: FlaskClient, staff: Callable[..., None]) -> None:
    staff()
    log_in(client)
    assert "Told 42 customers." in client.get("/survey/flash", follow_redirects=True).text
    assert "Told 42 customers." not in client.get("/survey/framed").text


def test_pages_forbid_what_they_do_not_need(client: FlaskClient) -> None:
    headers = client.get("/survey/open-form").headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store" and headers["X-Request-Id"]


def test_inline_styles_carry_a_nonce_of_their_own_page(client: FlaskClient) -> None:
    first, second = client.get("/survey/inline"), client.get("/survey/inline")
    nonce = re.search(r"nonce='([^']+)'", first.text)
    assert nonce and f"'nonce-{nonce[1]}'" in first.headers["Content-Security-Policy"]
    assert first.text != second.text


def test_a_static_file_is_compressed_and_kept_for_good(
    client: FlaskClient, staff: Callable[..., None]
) -> None:
    staff()
    log_in(client)
    page = client.get("/survey/framed")
    total = len(page.data)
    for url in set(re.findall(r'(?:href|src)="(/survey/static/[^"]+)"', page.text)):
        answer = client.get(url, headers={"Accept-Encoding": "gzip"})
        assert answer.status_code == 200 and "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["Content-Encoding"] == "gzip"
        total += len(answer.data)
    assert total < 100_000
    assert client.get("/survey/static/hearback.000000000000.css").status_code == 404
    assert client.get("/survey/static/../tables.sql").status_code == 404


def test_a_proxys_word_counts_only_when_told(settings: Settings, clock: ManualClock, ids: SystemIds) -> None:
    def seen(proxies: int) -> str:
        told = replace(settings, trusted_proxies=proxies)
        app = create_service("survey", told, clock=clock, ids=ids, package="services.survey")
        app.add_url_rule("/survey/seen", "seen", public(lambda: request.remote_addr or ""))
        return finish(app).test_client().get("/survey/seen", headers={"X-Forwarded-For": "203.0.113.9"}).text

    assert (seen(0), seen(1)) == ("127.0.0.1", "203.0.113.9")
