"""The account manager's pages in Chromium: at both widths, light and dark, by keyboard, without script."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from services.followup.commands import attempts, keys, staff
from services.followup.domain.by import By
from shared.clock import ManualClock
from shared.settings import Settings
from tests.support.browser import chromium, serving
from tests.support.followup import PASSWORD, Followup, account, new_id

LONG = "Third delivery in a row that came on a Saturday when nobody is here. " * 3


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def followup(settings: Settings, clock: ManualClock) -> Iterator[Followup]:
    """Three customers wait: one overdue, one who must not be called, one whom nobody owns."""
    service = Followup(settings, clock)
    service.apply(service.company())
    service.staff("ann@acme.example", name="Ann Berger")
    service.staff("lea@acme.example", "lead", name="Lea Lindt")
    service.staff("root@acme.example", "admin", name="Ada Adams")
    globex, carla = account(manager="ann@acme.example"), new_id()
    clock.advance(-timedelta(days=2))
    service.apply(service.customer(carla, globex), service.response(carla, 0, account=globex, comment=LONG))
    clock.advance(timedelta(days=2))
    initech, jürgen = account("Initech GmbH & Co. KG", "ann@acme.example"), new_id()
    service.apply(
        service.customer(jürgen, initech, name="Dr. Jürgen Müller-Lüdenscheidt", phone="+4930123456"),
        service.response(jürgen, 3, account=initech, callback="dont", comment="supercalifragilistic" * 8),
        service.response(new_id(), 6),
        service.unconfirmed(new_id(), 2, new_id(), initech),
        service.message(carla, "Are you going to call or not?"),
    )
    with service.db.transaction() as tx:
        task = tx.value("SELECT id FROM task WHERE account_id = %s", (globex["id"],))
        attempts.note(tx, By(None, "Lea Lindt"), task, text="Their contract ends in April.")
        keys.create(tx, name="Warehouse", scopes=["tasks:read"], created_by=None)
    yield service
    service.db.close()
    service.app.extensions["hearback"].db.close()


@pytest.fixture
def base(followup: Followup) -> Iterator[str]:
    with serving(followup.app) as url:
        yield url


def log_in(
    browser: Browser,
    base: str,
    email: str = "ann@acme.example",
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
    script: bool = True,
) -> tuple[BrowserContext, Page, list[str]]:
    """A page on which this person has logged in, and the list in which its troubles are noted."""
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
        java_script_enabled=script,
        base_url=base,
        bypass_csp=False,
    )
    page = context.new_page()
    troubles: list[str] = []
    page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto("/followup/login?next=/followup/password")
    page.get_by_label("E-mail address").fill(email)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/followup/password")
    return context, page, troubles


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_is_accessible_and_fits(
    browser: Browser, base: str, followup: Followup, width: int, scheme: Any
) -> None:
    context, page, troubles = log_in(browser, base, "root@acme.example", width=width, scheme=scheme)
    tasks = [f"/followup/tasks/{task['id']}" for task in followup.tasks()]
    person = f"/followup/staff/{followup.people['ann@acme.example']}"
    for path in (
        "/followup/inbox",
        *tasks,
        "/followup/inbox?view=unhappy",
        "/followup/inbox?view=mine",
        "/followup/inbox?view=closed",
        "/followup/staff",
        person,
        "/followup/keys",
        "/followup/password",
    ):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        found = Axe().run(page)
        assert found.violations_count == 0, f"{path}\n{found.generate_report()}"
    page.set_viewport_size({"width": 320, "height": 700})
    for path in ("/followup/inbox", *tasks):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
    assert troubles == []
    context.close()


def test_list_and_task_stand_side_by_side_on_wide_screens_only(browser: Browser, base: str) -> None:
    context, page, _ = log_in(browser, base)
    page.goto("/followup/inbox")
    expect(page.get_by_role("heading", level=1)).to_have_text("3 customers are waiting, 1 of them overdue")
    # The most urgent customer's own words are read first, and their phone is at hand.
    expect(page.locator(".cards .card").first).to_contain_text("Third delivery in a row")
    expect(page.locator(".pane-detail a[href^='tel:']").first).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.locator(".pane-detail")).to_be_hidden()
    expect(page.locator(".call-bar a")).to_be_in_viewport()
    context.close()


def test_the_inbox_works_by_keyboard(browser: Browser, base: str) -> None:
    context, page, _ = log_in(browser, base)
    page.goto("/followup/inbox")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator(".cards a.row-link").nth(1)).to_be_focused()
    page.keyboard.press("k")
    expect(page.locator(".cards a.row-link").nth(0)).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/followup/tasks/*")
    expect(page.get_by_text("The customer asked not to be called.")).to_be_visible()
    context.close()


@pytest.mark.parametrize("script", [True, False])
def test_a_call_is_recorded_and_the_task_resolved(
    browser: Browser, base: str, followup: Followup, script: bool
) -> None:
    context, page, troubles = log_in(browser, base, width=390, script=script)
    page.goto("/followup/inbox")
    page.locator(".cards a.row-link").first.click()
    page.get_by_label("What was said").fill("They want it on Mondays.")
    page.get_by_role("button", name="Reached", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Recorded: reached.")).to_be_visible()
    expect(page.get_by_text("They want it on Mondays.")).to_be_visible()
    # Once reached, resolving is what comes next: it stands open.
    page.get_by_label("What caused it").fill("Saturday delivery")
    page.get_by_label("Promised; we will fix it").check()
    page.get_by_role("button", name="Resolve", exact=True).click()
    expect(page.get_by_role("button", name="Reopen")).to_be_visible()
    (event,) = followup.published("task.resolved")
    assert event["data"]["theme"] == "Saturday delivery" and event["data"]["contacted_at"]
    assert troubles == []
    context.close()


def test_calling_tells_colleagues_and_an_open_page_hears_of_changes(
    browser: Browser, base: str, followup: Followup
) -> None:
    first, ann, _ = log_in(browser, base)
    second, lea, _ = log_in(browser, base, "lea@acme.example")
    task = followup.tasks()[0]["id"]
    ann.goto(f"/followup/tasks/{task}")
    lea.goto(f"/followup/tasks/{task}")
    # There is no phone here: the browser, giving up on the call, takes the next navigation with it.
    ann.evaluate(
        "document.addEventListener('click', (e) => e.target.closest('[href^=tel]') && e.preventDefault())"
    )
    with ann.expect_response("**/start") as started:
        ann.locator(".pane-detail a[href^='tel:']").click()
    assert started.value.status == 200
    # Coming back to a tab asks at once; otherwise it asks every ten seconds.
    lea.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(lea.get_by_text("Ann Berger is on this right now.")).to_be_visible()
    with ann.expect_navigation():
        ann.get_by_role("button", name="Not reached").click()
    lea.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(lea.get_by_text("Somebody acted on this task since you opened it.")).to_be_visible()
    lea.get_by_label("What was said").fill("I called them too.")
    lea.get_by_role("button", name="Reached", exact=True).click()
    expect(lea.get_by_role("heading", level=1)).to_have_text("Ann Berger was faster")
    assert Axe().run(lea).violations_count == 0
    lea.get_by_role("button", name="Record this attempt all the same").click()
    expect(lea.get_by_text("I called them too.")).to_be_visible()
    first.close()
    second.close()


def test_a_half_written_note_survives_leaving_the_page(browser: Browser, base: str) -> None:
    context, page, _ = log_in(browser, base)
    page.goto("/followup/inbox")
    page.locator(".cards a.row-link").first.click()
    page.get_by_label("What was said").fill("Half a sentence")
    page.goto("/followup/inbox?view=mine")
    page.go_back()
    page.reload()
    expect(page.get_by_label("What was said")).to_have_value("Half a sentence")
    context.close()


def test_the_first_administrator_says_who_they_are(
    browser: Browser, base: str, settings: Settings, followup: Followup
) -> None:
    with followup.db.transaction() as tx:
        tx.execute("DELETE FROM delivery")
        tx.execute("UPDATE task SET owner_id = NULL")
        tx.execute("DELETE FROM staff")
        made = staff.ensure_admin(tx)
    assert made
    context = browser.new_context(base_url=base, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto("/followup/login")
    page.get_by_label("E-mail address").fill(made[0])
    page.get_by_label("Password").fill(made[1])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Welcome. Who are you?")
    page.get_by_label("Your name").fill("Ada Adams")
    page.get_by_label("Your e-mail address").fill("ada@acme.example")
    page.get_by_label("One-time password").fill(made[1])
    page.get_by_label("New password", exact=True).fill("ada@acme.example")
    page.get_by_label("New password again").fill("ada@acme.example")
    page.get_by_role("button", name="Save password").click()
    expect(page.locator(".summary")).to_be_focused()
    expect(page.get_by_label("Your name")).to_have_value("Ada Adams")
    assert Axe().run(page).violations_count == 0
    page.get_by_label("One-time password").fill(made[1])
    page.get_by_label("New password", exact=True).fill("three unrelated words")
    page.get_by_label("New password again").fill("three unrelated words")
    page.get_by_role("button", name="Save password").click()
    page.goto("/followup/staff")
    expect(page.get_by_role("heading", level=1)).to_have_text("1 person can log in")
    context.close()
