"""The frame in a browser: readable everywhere, usable without script, and a little quicker with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from flask import Flask, make_response, redirect, render_template_string, request
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from werkzeug.serving import make_server

from shared.channels import Message
from shared.clock import ManualClock
from shared.errors import Conflict
from shared.ids import SystemIds
from shared.mailbox.app import create_app as create_mailbox
from shared.settings import Settings
from shared.web import Service, allow, create_service, finish, flash, public, session

ADA = "01890000-0000-7000-8000-000000000001"
PAGE = """
{% extends "hearback/base.html" %}
{% block title %}Customers{% endblock %}
{% block crumbs %}{{ ui.crumbs([("Customers", "/survey/customers"), ("Ada Byron", none)]) }}{% endblock %}
{% block heading %}<div><h1>7 customers are waiting, 2 of them overdue</h1><p>Yours.</p></div>
<div class="actions">{{ ui.link_button("Import customers", "#", "main", icon_name="upload") }}
{{ ui.link_button("ada.with.a.long.name@a-company-with-a-long-name.example", "mailto:") }}</div>
{% endblock %}
{% block main %}
{{ ui.tabs([("Waiting (7)", "#", true), ("Done", "#", false)]) }}
{{ ui.errors({"name": "Enter a name"}) }}
<p class="warning">{{ icon("telephone-x") }}<span>Please don't call.</span></p>
<ul class="rows" data-list>{% for score in (2, 8, 10) %}
<li><div class="line">{{ ui.band(score) }}<span class="muted">Ada</span></div>
<a class="row-link" href="#r{{ score }}">Words {{ score }}</a></li>{% endfor %}</ul>
<div class="stats">{{ ui.stat("NPS", 32|nps, "± 6 · n 412", "#") }}{{ ui.stat("Asked", 1204|number) }}</div>
<div class="table-wrap"><table class="table table-cards"><thead><tr><th scope="col">Who</th>
<th scope="col" class="number">Value, EUR</th></tr></thead><tbody><tr><th scope="row">Ada</th>
<td class="number" data-label="Value">{{ 12000|money }}</td></tr></tbody></table></div>
{{ ui.progress(3, 10, "3 of 10 lines", "2 s left") }}{{ ui.quote("Too slow", "Ada") }}
<form method="post">{{ csrf_field() }}
{{ ui.field("name", "Name", "", error="Enter a name", hint="As customers know it") }}
{{ ui.field("note", "Note", "", type="textarea", draft="note-1") }}
{{ ui.field("kind", "Kind", "a", type="radios", options=[("a", "A"), ("b", "B")]) }}
{{ ui.field("yes", "Yes", true, type="checkbox") }}
{{ ui.field("zone", "Zone", "UTC", type="select", options=["UTC"]) }}
{{ ui.button("Save", "main") }}{{ ui.button("Delete", "danger") }}{{ ui.button("Skip", "quiet") }}</form>
<div id="count"{% if n < 3 %} data-live="0.1"{% endif %}><p>{{ n }} done</p></div>
{{ ui.pager("#") }}{{ ui.empty("Nobody is waiting", "Call a happy one?", "#", "Show them") }}
{% endblock %}
{% block aside %}<h2>Ada</h2><dl class="facts"><dt>Tier</dt><dd>{{ ui.tag("Gold") }}
{{ ui.tag("overdue", "urgent") }} {{ ui.tag("soon", "soon") }} {{ ui.tag("kept", "good") }}</dd></dl>
{% endblock %}
{% block scripts %}<script type="module" src="{{ asset('live.js') }}"></script>{% endblock %}
"""


@pytest.fixture
def app(settings: Settings, clock: ManualClock, ids: SystemIds) -> Flask:
    app = create_service("survey", settings, clock=clock, ids=ids, package="services.survey")
    polls = {"n": 0}

    @app.get("/survey/log-in")
    @public
    def log_in() -> Any:
        response = make_response(redirect("/survey/customers"))
        session.start(response, ADA, 0)
        return response

    @app.route("/survey/customers", methods=["GET", "POST"])
    @allow()
    def customers() -> Any:
        if request.method == "POST":
            if request.form["note"] == "too early":
                raise Conflict("Somebody else was faster.")
            flash("Saved.")
            return redirect("/survey/customers", 303)
        polls["n"] += 1 if request.headers.get("X-Fragment") == "count" else 0
        return render_template_string(PAGE, n=polls["n"])

    here: Service = app.extensions["hearback"]
    with here.db.transaction() as tx:
        tx.execute(
            "INSERT INTO staff (id, version, email, name, role)"
            " VALUES (%s, 1, 'ada@example.org', 'Ada', 'admin')",
            (ADA,),
        )
    return finish(app)


def serving(app: Flask) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def url(app: Flask) -> Iterator[str]:
    yield from serving(app)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--no-sandbox"]
        quiet += ["--disable-component-update", "--disable-sync"]
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, url: str) -> Page:
    page = context.new_page()
    page.goto(f"{url}/survey/log-in")
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_frame_and_its_parts_are_readable_at_every_width(page: Page, scheme: Any) -> None:
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.emulate_media(color_scheme=scheme)
    for width in (1280, 1000, 390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        page.reload()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        if width != 1000:
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
    assert troubles == []


def test_on_a_phone_every_target_is_large_enough_for_a_thumb(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, summary, input:not([type=hidden]), select, .btn")]
        .filter(e => e.checkVisibility() && !e.matches("[type=checkbox], [type=radio]"))
        .filter(e => e.getBoundingClientRect().height < 43.5).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert small == []


def test_without_script_the_menu_opens_and_forms_are_sent(chromium: Browser, url: str) -> None:
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(f"{url}/survey/log-in")
    page.get_by_text("Menu").click()
    expect(page.get_by_role("link", name="Reports")).to_be_visible()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved.")).to_be_visible()
    context.close()


def test_a_draft_survives_until_its_form_is_sent(page: Page) -> None:
    page.get_by_label("Note").fill("half a thought")
    page.reload()
    expect(page.get_by_label("Note")).to_have_value("half a thought")
    expect(page.get_by_text("Your draft from before is back.")).to_be_visible()
    page.get_by_role("button", name="Save").click()
    page.wait_for_load_state()
    expect(page.get_by_label("Note")).to_have_value("")
    page.get_by_label("Note").fill("too early")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Somebody else was faster.")).to_be_visible()
    page.goto(page.url)
    expect(page.get_by_label("Note")).to_have_value("too early")


def test_keys_lead_to_the_search_and_through_a_list(page: Page) -> None:
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "Words 8"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.textContent") == "Words 2"
    page.keyboard.press("/")
    page.keyboard.type("j/k")
    assert page.locator("#bar-q").input_value() == "j/k"


def test_what_came_back_wrong_has_the_focus(page: Page) -> None:
    assert page.evaluate("document.activeElement.className") == "summary"


def test_a_part_that_is_live_is_fetched_until_it_is_done(page: Page) -> None:
    page.get_by_text("3 done").wait_for(timeout=5000)
    assert page.locator("#count").get_attribute("data-live") is None


def test_the_menu_closes_on_escape(page: Page) -> None:
    page.locator(".bar-gear summary").click()
    expect(page.get_by_role("link", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Keys")).to_be_hidden()


def test_a_mail_runs_nothing_and_its_links_open_elsewhere(
    context: BrowserContext, settings: Settings, clock: ManualClock, ids: SystemIds, url: str
) -> None:
    ours = replace(settings, public_url=url, survey_url=url)
    app = create_mailbox(ours, clock=clock, ids=ids, webhooks=False)
    evil = "<script>document.title='run'</script><img src=x onerror=\"document.body.innerHTML='run'\">"
    mail = Message(
        "d1", "email", "ann@example.org", "words", html=f"<p><a href='{url}/nowhere'>3</a></p>{evil}"
    )
    text = Message("s1", "sms", "+4915112345678", "How likely? Reply 0 to 10")
    key = {"Authorization": f"Bearer {ours.key('mailbox-send').hex()}"}
    for message in (mail, text):
        answer = app.test_client().post("/mailbox/api/send", json=asdict(message), headers=key)
        assert answer.status_code == 202
    page = context.new_page()
    for base in serving(app):
        page.goto(f"{base}/mailbox")
        page.get_by_text("(no subject)").click()
        frame = page.frame_locator("iframe")
        with context.expect_page() as opened:
            frame.get_by_role("link", name="3").click()
        assert opened.value.url == f"{url}/nowhere"
        assert opened.value.evaluate("1 + 1") == 2  # the new tab is free of the mail's sandbox
        assert "run" not in frame.locator("body").inner_text()
        for path in ("/mailbox", "/mailbox/sms", "/mailbox/sms/+4915112345678"):
            page.goto(base + path)
            for width in (1280, 320):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert Axe().run(page).violations_count == 0
        page.get_by_label("Answer as the customer").fill("3 too slow")
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".text-theirs").get_by_text("3 too slow")).to_be_visible()
        page.close()
