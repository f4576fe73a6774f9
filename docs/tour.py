"""Takes the pictures of the README's tour from a running demo: `make demo`, then `make tour`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shared.clock import SystemClock  # noqa: E402 - the project's folder has to be known first
from shared.db import Database  # noqa: E402
from shared.demo.play import session_headers  # noqa: E402
from shared.ids import SystemIds  # noqa: E402
from shared.settings import Settings, load  # noqa: E402
from tests.support.browser import chromium  # noqa: E402

IMAGES = ROOT / "docs" / "images"
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 780}


def main() -> None:
    settings = load()
    url = f"http://127.0.0.1:{settings.port}"
    with chromium() as browser:
        with _visit(browser, settings, DESK) as page:
            _picture(page, f"{url}/reporting/?days=90", "reports")
            _picture(page, f"{url}/followup/inbox", "inbox")
            page.goto(f"{url}/followup/changes")
            _picture(
                page,
                url + str(page.locator("a[href^='/followup/changes/0']").first.get_attribute("href")),
                "change",
            )
        with _visit(browser, settings, PHONE) as page:
            _picture(page, f"{url}/mailbox/messages/{_invitation(settings)}/body", "mail-phone")
            score = page.get_by_role("link", name=re.compile(r"^9\b")).first.get_attribute("href")
            _picture(page, str(score), "answer-phone")
            told, customer = _a_round_loop(settings)
            _picture(page, told, "trail-phone")
        with _visit(browser, settings, DESK) as page:
            _picture(page, f"{url}/survey/customers/{customer}", "customer")


def _invitation(settings: Settings) -> str:
    """The newest question by mail."""
    with _database(settings, "log") as db, db.transaction() as tx:
        found = tx.value(
            "SELECT id FROM mailbox.message WHERE channel = 'email' AND html LIKE '%?s=9%'"
            " AND html LIKE '%How likely%' ORDER BY seq DESC LIMIT 1"
        )
    return str(_there(found, "there is no question in the mailbox"))


def _there(found: Any, missing: str) -> Any:
    if not found:
        raise SystemExit(f"For the tour {missing}: run `make demo` first.")
    return found


def _a_round_loop(settings: Settings) -> tuple[str, str]:
    """The trail's address and the id of a customer who was called back, told, and said that it helped."""
    with _database(settings, "followup") as db, db.transaction() as tx:
        row = tx.one(
            "SELECT n.customer_id, c.email FROM notice n JOIN customer c ON c.id = n.customer_id"
            " WHERE n.helped AND c.email IS NOT NULL AND c.language = 'en' ORDER BY n.sent_at LIMIT 1"
        )
    row = _there(row, "nobody was told and said that it helped")
    with _database(settings, "log") as db, db.transaction() as tx:
        html = tx.value(
            "SELECT html FROM mailbox.message WHERE recipient = %s AND html LIKE '%%helped=yes%%'"
            " ORDER BY seq DESC LIMIT 1",
            (row["email"],),
        )
    return re.findall(r'href="([^"]+/a/[\w-]+)', html)[0], str(row["customer_id"])


@contextmanager
def _database(settings: Settings, name: str) -> Iterator[Database]:
    found = Database(settings.database_urls[name], SystemClock(), SystemIds(), name="tour")
    try:
        yield found
    finally:
        found.close()


@contextmanager
def _visit(browser: Browser, settings: Settings, size: dict[str, int]) -> Iterator[Page]:
    """A lead's browser."""
    with _database(settings, "followup") as db, db.transaction() as tx:
        lead = tx.one("SELECT id, epoch FROM staff WHERE role = 'lead' AND NOT disabled LIMIT 1")
    lead = _there(lead, "there is no lead")
    cookie = session_headers(settings, SystemClock(), lead["id"], lead["epoch"])["Cookie"]
    name, value = cookie.split("=", 1)
    context = browser.new_context(viewport=size, device_scale_factor=1)  # type: ignore[arg-type]
    context.add_cookies([{"name": name, "value": value, "url": f"http://127.0.0.1:{settings.port}"}])
    yield context.new_page()
    context.close()


def _picture(page: Page, address: str, name: str) -> None:
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"tour-{name}.png")


if __name__ == "__main__":
    main()
