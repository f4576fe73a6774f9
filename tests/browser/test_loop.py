"""The whole loop as people walk it, in Chromium, on an installation started by the real command."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect

from tests.support.browser import chromium
from tests.support.kafka import Broker
from tests.support.machine import Machine

PASSWORD = "lanterns over quiet water"
CUSTOMERS = """external id,email,phone,name,account,account manager,tier,annual value,language
C-1,ada@brightworks.example,+4915200000001,Ada Abbott,Brightworks,mina@hearback.example,gold,60000,en
C-2,ben@brightworks.example,,Ben Barlow,Brightworks,mina@hearback.example,gold,60000,en
C-3,,+4915200000003,Carla Conrad,Conrad & Co,mina@hearback.example,silver,18000,de
"""
WORDS = "Two days late again, and nobody told us."


class Visitor:
    """One person's browser, who notices when a page is broken."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.page: Page = context.new_page()
        self.url = url
        self.wrong: list[str] = []
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))

    def open(self, path: str) -> Page:
        self.page.goto(path if path.startswith("http") else self.url + path)
        self.look()
        return self.page

    def press(self, name: str | re.Pattern[str]) -> None:
        """Presses a button or follows a link, and looks at where it leads."""
        button = self.page.get_by_role("button", name=name, exact=True)
        button.or_(self.page.get_by_role("link", name=name, exact=True)).first.click()
        self.page.wait_for_load_state()
        self.look()

    def look(self) -> None:
        """No error in the console, nothing beside the screen, nothing axe finds."""
        assert self.wrong == [], f"{self.page.url}: {self.wrong}"
        wide = self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        assert not wide, f"{self.page.url} scrolls sideways"
        found = Axe().run(self.page)
        assert found.violations_count == 0, f"{self.page.url}\n{found.generate_report()}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """An installation on the log that the test names, the embedded one unless it says so."""
    environment = {}
    if request.param == "kafka":
        broker: Broker = request.getfixturevalue("broker")
        environment = {"HEARBACK_LOG": "kafka", "HEARBACK_KAFKA_BOOTSTRAP": broker.bootstrap}
    found = Machine(env=environment)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("machine", "width"), [("embedded", 1280), ("embedded", 390), ("kafka", 1280)], indirect=["machine"]
)
def test_the_loop_goes_round_from_first_login_to_dashboard(
    browser: Browser, machine: Machine, tmp_path: Path, width: int
) -> None:
    said = machine.up()
    password = re.search(r"one-time password\s+(\S+)", said)
    assert password is not None
    size: ViewportSize = {"width": width, "height": 844}
    staff = Visitor(browser.new_context(viewport=size), machine.url)
    ada = Visitor(browser.new_context(viewport=size, has_touch=width == 390), machine.url)

    _first_login(staff, password.group(1))
    _set_up(staff, tmp_path)
    _ask(staff)
    _answer_by_mail(staff, ada)
    _answer_by_text(staff)
    _call_back(staff)
    expect(ada.open(ada.page.url).get_by_text("Mina Meyer").first).to_be_visible()
    _tell(staff)
    _say_it_helped(staff, ada)
    _measure(staff)


def _first_login(staff: Visitor, password: str) -> None:
    page = staff.open("/")
    page.get_by_label("E-mail address").fill("admin")
    page.get_by_label("Password").fill(password)
    staff.press("Log in")
    page.get_by_label("Your name").fill("Mina Meyer")
    page.get_by_label("Your e-mail address").fill("mina@hearback.example")
    page.get_by_label("One-time password").fill(password)
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("New password again").fill(PASSWORD)
    page.get_by_role("button", name="Save password").click()
    # The page that waits for survey to hear of it is a 503, which the console tells.
    expect(page).to_have_url(re.compile("/survey/welcome"), timeout=30_000)
    staff.wrong = [said for said in staff.wrong if "503" not in said]
    staff.look()


def _set_up(staff: Visitor, folder: Path) -> None:
    page = staff.page
    page.get_by_label("Company name").fill("Harbour & Pine")
    page.get_by_label("Postal address").fill("14 Quay Street, Bristol")
    page.get_by_label("Sender’s name").fill("Harbour & Pine")
    page.get_by_label("Sender’s address").fill("hello@harbourandpine.example")
    page.get_by_label("Replies go to").fill("care@harbourandpine.example")
    page.get_by_label("Time zone").fill("Europe/London")
    staff.press("Save and go on")
    file = folder / "customers.csv"
    file.write_text(CUSTOMERS)
    page.get_by_label("CSV file").set_input_files(file)
    staff.press("Import this file")
    expect(page.locator("main")).to_contain_text(
        re.compile(r"3 (new|customers|created)", re.I), timeout=30_000
    )
    staff.look()
    staff.open("/survey/welcome?step=test")
    page.get_by_label("Your e-mail address").fill("mina@hearback.example")
    staff.press("Send the test message")
    expect(page.locator("#tests")).to_contain_text("arrived", timeout=30_000)


def _ask(staff: Visitor) -> None:
    page = staff.open("/survey/welcome?step=ask")
    staff.press("Choose whom to ask")
    expect(page.locator("h1")).to_contain_text("3 customers will be asked")
    staff.press("Ask 3 customers")
    expect(page.locator("main")).to_contain_text("3", timeout=30_000)


def _mail(staff: Visitor, address: str) -> Page:
    """The newest mail to `address`, opened in the mailbox; its frame is what the customer sees."""
    page = staff.page
    for _ in range(60):
        page.goto(f"{staff.url}/mailbox?address={address}")
        if page.locator(".mails li").count():
            break
        page.wait_for_timeout(500)
    staff.look()
    page.locator(".mails .row-link").first.click()
    page.wait_for_load_state()
    staff.look()
    return page


def _link(staff: Visitor, address: str, name: str | re.Pattern[str]) -> str:
    frame = _mail(staff, address).frame_locator("iframe.mail-frame")
    return str(frame.get_by_role("link", name=name).first.get_attribute("href"))


def _answer_by_mail(staff: Visitor, ada: Visitor) -> None:
    page = ada.open(_link(staff, "ada@brightworks.example", re.compile(r"^2\b")))
    page.mouse.wheel(0, 40)
    expect(page.locator("#said")).to_have_class(re.compile("good"), timeout=15_000)
    page.locator("#comment").fill(WORDS)
    page.locator("#send").click()
    expect(page.locator("#trail")).to_contain_text(WORDS, timeout=15_000)
    expect(page.locator("#trail")).to_contain_text("Mina Meyer", timeout=30_000)
    ada.look()


def _answer_by_text(staff: Visitor) -> None:
    page = staff.open("/mailbox/sms/+4915200000003")
    page.get_by_label("Answer as the customer").fill("9 sehr freundlich")
    staff.press("Send")
    expect(page.locator(".texts")).to_contain_text("9 sehr freundlich")


def _call_back(staff: Visitor) -> None:
    page = staff.page
    for _ in range(60):
        page.goto(staff.url + "/followup/inbox")
        if page.get_by_text(WORDS).count():
            break
        page.wait_for_timeout(500)
    staff.look()
    expect(page.locator("h1").first).to_contain_text("1 customer")
    page.get_by_text(WORDS).first.click()
    page.wait_for_load_state()
    if "/followup/tasks/" not in page.url:
        staff.open(str(page.locator("a[href^='/followup/tasks/']").first.get_attribute("href")))
    staff.look()
    page.get_by_label(re.compile("^What was said")).fill("Apologised; will check the next delivery.")
    staff.press("Reached")
    if not page.locator("#resolve").is_visible():
        page.get_by_text("Resolve", exact=True).first.click()
    page.locator("#resolve").get_by_label("What caused it").fill("Delivery late")
    page.locator("#resolve").get_by_label("Solved").check()
    page.locator("#resolve").get_by_role("button", name="Resolve").click()
    page.wait_for_load_state()
    staff.look()


def _tell(staff: Visitor) -> None:
    page = staff.open("/followup/changes/new")
    page.get_by_label("Name of the change").fill("Saturday deliveries")
    page.get_by_label("What was wrong").fill("Orders came late, and nobody told you.")
    page.get_by_label("What is different now").fill("We deliver on Saturdays, and text you before.")
    page.get_by_label("Delivery late").check()
    staff.press("Save draft and see whom it reaches")
    expect(page.locator("h1")).to_contain_text("1 customer")
    expect(page.locator("main")).to_contain_text("Ada Abbott")
    staff.press(re.compile("^Tell 1 customer"))
    staff.press("Tell 1 customer")
    for _ in range(60):
        page.reload()
        if page.get_by_text("delivered").count():
            break
        page.wait_for_timeout(500)
    staff.look()


def _say_it_helped(staff: Visitor, ada: Visitor) -> None:
    link = _link(staff, "ada@brightworks.example", re.compile("^Yes"))
    page = ada.open(link)
    expect(page.locator("#trail")).to_contain_text("Saturday deliveries")
    page.keyboard.press("Tab")
    expect(page.locator("form.help")).to_have_count(0, timeout=15_000)
    ada.look()


def _measure(staff: Visitor) -> None:
    page = staff.page
    for _ in range(60):
        page.goto(staff.url + "/reporting/")
        if re.search(r"It helped\s*1\b", page.locator("main").inner_text()):
            break
        page.wait_for_timeout(500)
    staff.look()
    text = page.locator("main").inner_text()
    for figure, count in (
        ("Asked", 3),
        ("Delivered", 3),
        ("Answered", 2),
        ("Callback task", 1),
        ("Contacted in time", 1),
        ("Resolved", 1),
        ("Told what changed", 1),
        ("It helped", 1),
    ):
        assert re.search(rf"{figure}\s*{count}\b", text), f"{figure} is not {count}:\n{text}"
    staff.open("/survey/customers")
    staff.press("Ada Abbott")
    expect(page.locator("main")).to_contain_text(WORDS)
    expect(page.locator("main")).to_contain_text("Saturday deliveries")
