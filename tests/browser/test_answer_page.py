"""Rule 6 in Chromium: a script that opens, scrolls and waits answers nothing; a person answers once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from shared.db import Database, Row
from tests.support.asking import Asking, asking, score_link, task, told_of_a_change, trail_link
from tests.support.browser import chromium, serving
from tests.support.postgres import TestPostgres


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def one_survey(postgres: TestPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    with asking(postgres, tmp_path_factory.mktemp("answer")) as service:
        yield service


@pytest.fixture(scope="module")
def base(one_survey: Asking) -> Iterator[str]:
    with serving(one_survey.app) as url:
        yield url


@pytest.fixture
def survey(one_survey: Asking) -> Asking:
    one_survey.reset()
    return one_survey


@pytest.fixture
def errors() -> list[str]:
    return []


@pytest.fixture
def open_page(browser: Browser, errors: list[str]) -> Iterator[Callable[..., Page]]:
    """Opens a page as a phone (390 px) or a desktop; anything on the console fails the test."""
    contexts: list[BrowserContext] = []

    def open_(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 390, "height": 780}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


def answers(survey: Asking) -> list[Row]:
    return survey.all("SELECT * FROM response_version ORDER BY version")


def wait_for_answers(survey: Asking, count: int) -> list[Row]:
    until = time.monotonic() + 8
    while len(answers(survey)) < count and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    return answers(survey)


def test_a_script_that_opens_scrolls_focuses_and_waits_answers_nothing(
    survey: Asking, base: str, open_page: Callable[..., Page]
) -> None:
    page = open_page(base + score_link(survey.invited(), 3), viewport={"width": 390, "height": 300})
    page.evaluate(
        """async () => {
            const wait = (ms) => new Promise((go) => setTimeout(go, ms));
            scrollTo(0, 400); await wait(100); scrollBy(0, -200);
            for (const element of document.querySelectorAll("button, textarea")) element.focus();
            for (const type of ["pointerdown", "touchstart", "keydown", "wheel"]) {
                document.body.dispatchEvent(new Event(type, { bubbles: true }));
            }
            for (let i = 0; i < 9; i++) {
                dispatchEvent(new PointerEvent("pointermove", { screenX: i * 9, screenY: i * 7 }));
            }
            document.dispatchEvent(new Event("visibilitychange"));
            await wait(1500);
        }"""
    )
    page.locator("#comment").scroll_into_view_if_needed()
    page.mouse.move(100, 100)  # one trusted move is what a resting pointer sends by itself
    page.wait_for_timeout(1200)
    page.reload()
    page.wait_for_timeout(500)
    page.close(run_before_unload=True)
    assert answers(survey) == []


def sweep(page: Page) -> None:
    for step in range(4):
        page.mouse.move(50 + 40 * step, 60 + 30 * step)


GESTURES: dict[str, Callable[[Page], None]] = {
    "a press of the mouse": lambda page: page.mouse.click(200, 20),
    "moves of the mouse": sweep,
    "the wheel": lambda page: page.mouse.wheel(0, 60),
    "a key": lambda page: page.keyboard.press("Tab"),
    "a finger": lambda page: page.touchscreen.tap(200, 20),
    "the button": lambda page: page.locator("#confirm button").click(),
}


@pytest.mark.parametrize("gesture", GESTURES)
def test_a_human_input_confirms_without_another_click(
    survey: Asking, base: str, open_page: Callable[..., Page], gesture: str
) -> None:
    page = open_page(base + score_link(survey.invited(), 8), has_touch=gesture == "a finger")
    assert "You gave us 8" in page.locator("h1").inner_text()
    assert answers(survey) == []
    GESTURES[gesture](page)
    rows = wait_for_answers(survey, 1)
    assert [row["score"] for row in rows] == [8]
    page.get_by_text("Saved. Thank you for telling us.").wait_for()
    if gesture != "the button":
        GESTURES[gesture](page)
    assert len(wait_for_answers(survey, 1)) == 1


def test_without_script_one_button_answers(survey: Asking, base: str, open_page: Callable[..., Page]) -> None:
    page = open_page(base + score_link(survey.invited(), 2), java_script_enabled=False)
    page.mouse.move(10, 10)
    page.mouse.wheel(0, 100)
    assert answers(survey) == []
    page.get_by_role("button", name="Yes, my answer is 2").click()
    assert [row["score"] for row in wait_for_answers(survey, 1)] == [2]
    page.get_by_label("What went wrong?").fill("Nobody came.")
    page.get_by_role("button", name="Send a word").click()
    assert survey.response()["comment"] == "Nobody came."
    page.get_by_role("button", name="Please call me").click()
    assert survey.response()["callback"] == "please"
    page.get_by_text("You asked us to call you.").wait_for()


def test_a_hidden_page_confirms_nothing(survey: Asking, base: str, open_page: Callable[..., Page]) -> None:
    page = open_page(base + score_link(survey.invited(), 3))
    page.evaluate("Object.defineProperty(document, 'visibilityState', { value: 'hidden' })")
    page.keyboard.press("Tab")
    page.mouse.click(200, 20)
    page.wait_for_timeout(1200)
    assert answers(survey) == []


def test_one_press_on_another_score_is_that_score_alone(
    survey: Asking, base: str, open_page: Callable[..., Page]
) -> None:
    page = open_page(base + score_link(survey.invited(), 3), has_touch=True)
    page.get_by_role("button", name="9 of 10").tap()
    page.get_by_text("Saved. Thank you for telling us.").wait_for()
    page.wait_for_timeout(1000)
    assert [row["score"] for row in answers(survey)] == [9]
    assert page.get_by_role("button", name="9 of 10").get_attribute("aria-pressed") == "true"


def test_words_and_a_wish_follow_and_nothing_typed_is_lost(
    survey: Asking, base: str, open_page: Callable[..., Page]
) -> None:
    page = open_page(base + score_link(survey.invited(), 3))
    page.get_by_label("What went wrong?").fill("Slow. Third time.")
    page.get_by_role("button", name="Send a word").click()
    page.locator("#trail blockquote").wait_for()
    page.get_by_role("button", name="Please don’t call me").click()
    page.get_by_text("We won’t.").wait_for()
    row = survey.response()
    assert (row["score"], row["comment"], row["callback"]) == (3, "Slow. Third time.", "dont")
    assert page.url.endswith(trail_link(survey.provider.messages[0]))


def test_an_answer_is_repeated_until_the_server_has_it(
    survey: Asking, base: str, open_page: Callable[..., Page], errors: list[str]
) -> None:
    page = open_page(base + score_link(survey.invited(), 3))
    lost: list[str | None] = []

    def lose(route: Any) -> None:
        if route.request.method == "POST" and len(lost) < 2:
            lost.append(route.request.post_data)
            if len(lost) == 1:
                route.abort()  # it never arrived
            else:
                route.fetch()  # it arrived, but the reply got lost
                route.abort()
        else:
            route.continue_()

    page.route("**/a/*", lose)
    page.keyboard.press("Tab")
    page.get_by_text("not been saved yet").wait_for()
    page.get_by_text("Saved. Thank you for telling us.").wait_for()
    assert len(lost) == 2
    assert [row["score"] for row in answers(survey)] == [3]
    errors.clear()


def test_the_promise_appears_by_itself(survey: Asking, base: str, open_page: Callable[..., Page]) -> None:
    page = open_page(base + score_link(survey.invited(time_zone="America/New_York"), 3))
    page.keyboard.press("Tab")
    page.get_by_text("We are looking who can take care").wait_for()
    survey.apply("task.opened", "tasks", *task(survey.response(), owner_name="Maria Lopez"))
    page.get_by_text("Maria Lopez has it and will call you by Wednesday, March 4, 5:00").wait_for()


@pytest.mark.parametrize("language", ["en", "de", "es"])
def test_the_page_fits_every_screen_and_weighs_little(
    survey: Asking, base: str, open_page: Callable[..., Page], language: str
) -> None:
    loaded: list[int] = []
    page = open_page(base + score_link(survey.invited(language=language), 6))
    page.on("response", lambda response: loaded.append(len(response.body())))
    page.reload(wait_until="networkidle")
    assert len(loaded) == 1 and loaded[0] < 20_000
    assert page.locator("html").get_attribute("lang") == language
    for width in (320, 390, 1280):
        page.set_viewport_size({"width": width, "height": 780})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.evaluate(
            "[...document.querySelectorAll('.row button')].map((b) => b.getBoundingClientRect().toJSON())"
        )
        assert all(size["width"] >= 44 and size["height"] >= 44 for size in sizes)


def test_did_it_help_is_answered_by_the_first_human_input(
    survey: Asking, base: str, open_page: Callable[..., Page]
) -> None:
    message = survey.invited()
    survey.submit(score_link(message, 3))
    notice_id = told_of_a_change(survey)
    sent: list[str] = []

    def take(route: Any) -> None:
        sent.append(route.request.post_data or "")
        route.fulfill(status=204)

    page = open_page(base + trail_link(message))
    page.route("**/followup/n", take)
    page.goto(base + trail_link(message) + f"?n={notice_id}&helped=yes")
    page.wait_for_timeout(500)
    assert sent == []
    page.keyboard.press("Tab")
    page.get_by_text("You told us that it helped.").wait_for()
    page.wait_for_timeout(2500)  # the trail is looked at again meanwhile, and followup's word is not here yet
    assert page.get_by_text("You told us that it helped.").count() == 1
    assert len(sent) == 1 and "helped=yes" in sent[0] and "capability=" in sent[0]


def test_did_it_help_is_said_again_until_it_is_taken(
    survey: Asking, base: str, open_page: Callable[..., Page], errors: list[str]
) -> None:
    message = survey.invited()
    survey.submit(score_link(message, 3))
    told_of_a_change(survey)
    sent: list[str] = []

    def take(route: Any) -> None:
        sent.append(route.request.post_data or "")
        route.fulfill(status=503 if len(sent) == 1 else 204)

    page = open_page(base + trail_link(message))
    page.route("**/followup/n", take)
    page.get_by_role("button", name="No, it did not").click()
    page.get_by_text("Your answer has not been saved yet.", exact=False).wait_for()
    page.get_by_text("You told us that it did not help.", exact=False).wait_for()
    assert len(sent) == 2 and sent[0] == sent[1] and page.url.split("?")[0] == base + trail_link(message)
    errors[:] = [error for error in errors if "503" not in error]  # which the browser notes by itself


def test_did_it_help_is_what_was_pressed_last_whatever_the_link_said(
    survey: Asking, base: str, open_page: Callable[..., Page], errors: list[str]
) -> None:
    message = survey.invited()
    survey.submit(score_link(message, 3))
    notice_id = told_of_a_change(survey)
    sent: list[str] = []

    def take(route: Any) -> None:
        sent.append("no" if "helped=no" in (route.request.post_data or "") else "yes")
        route.fulfill(status=503 if len(sent) < 3 else 204)

    page = open_page(base + trail_link(message))
    page.route("**/followup/n", take)
    page.goto(base + trail_link(message) + f"?n={notice_id}&helped=yes")
    page.get_by_role("button", name="No, it did not").click()
    page.get_by_text("Your answer has not been saved yet.", exact=False).wait_for()
    page.locator(".row button[value='4']").click()  # the trail is shown anew
    page.mouse.move(100, 100)
    page.keyboard.press("Tab")
    page.get_by_text("You told us that it did not help.", exact=False).wait_for()
    assert sent == ["no", "no", "no"]
    errors[:] = [error for error in errors if "503" not in error]


@contextmanager
def slow(survey: Asking) -> Iterator[None]:
    """The table of answers is locked."""
    other = Database(survey.db.url, survey.clock, survey.db.ids, name="slow")
    with other.transaction() as tx:
        tx.execute("LOCK TABLE response IN ACCESS EXCLUSIVE MODE")
        yield
    other.close()


def test_while_the_database_is_slow_the_page_keeps_the_words_and_tries_again_by_itself(
    survey: Asking, base: str, open_page: Callable[..., Page], errors: list[str]
) -> None:
    message = survey.invited()
    page = open_page(base + trail_link(message))
    with slow(survey):
        page.locator("#comment").fill("Nobody <b>called</b> back")
        page.locator(".row button[value='2']").click()
        page.get_by_text("Your answer has not been saved yet.", exact=False).wait_for()
        assert page.locator("#comment").input_value() == "Nobody <b>called</b> back"
    page.locator("#said.good").wait_for()
    row = survey.response()
    assert (row["score"], row["comment"], row["version"]) == (2, "Nobody <b>called</b> back", 1)
    errors[:] = [error for error in errors if "503" not in error]  # which the browser notes by itself


def test_without_script_a_slow_database_costs_a_press_on_a_button(
    survey: Asking, base: str, open_page: Callable[..., Page], errors: list[str]
) -> None:
    message = survey.invited()
    page = open_page(base + trail_link(message), java_script_enabled=False)
    page.locator("#comment").fill('Nobody <b>called</b> back\nfor "weeks"')
    with slow(survey):
        page.locator(".row button[value='2']").click()
        page.get_by_role("heading", name="One moment, please").wait_for()
        page.get_by_role("button", name="Try again").click()
        page.get_by_role("heading", name="One moment, please").wait_for()
        assert page.get_by_label("Your words").input_value() == 'Nobody <b>called</b> back\nfor "weeks"'
    page.get_by_role("button", name="Try again").click()
    page.locator("#said.good").wait_for()
    row = survey.response()
    assert (row["score"], row["comment"].splitlines(), row["version"]) == (
        2,
        ["Nobody <b>called</b> back", 'for "weeks"'],
        1,
    )
    with slow(survey):
        page.goto(base + trail_link(message))
        page.get_by_text("We cannot show this page just now.", exact=False).wait_for()
    page.locator(".row").wait_for()  # which comes by itself
    errors[:] = [error for error in errors if "503" not in error]
