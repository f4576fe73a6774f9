"""What a customer does with a mail: clicks a score, adds words, says whether a change helped."""

from __future__ import annotations

import re
from html import unescape

from shared.simulate.http import Client, Fields, Page, Refused


def click(customer: Client, html: str, score: int) -> Page:
    """Opens the link of `score` and confirms it as the page does at the first human input."""
    page = customer.open(link(customer, html, score))
    return customer.submit(page.form("pending"), {"gesture": "pointerdown", "ms": "1200"})


def say(customer: Client, page: Page, **fields: str) -> Page:
    """Sends `comment` or `callback` from the answer page and returns the page it leads to."""
    given: Fields = {name: value for name, value in fields.items() if value}
    return customer.submit(page.form("comment"), given) if given else page


def tell_helped(customer: Client, html: str, helped: bool) -> Page:
    """Opens a notice's link for yes or no, and confirms it."""
    answer = "yes" if helped else "no"
    page = customer.open(customer.base + _path(html, rf"helped={answer}", f"helped: {answer}"))
    return customer.submit(page.form("helped"), {"helped": answer})


def link(customer: Client, html: str, score: int) -> str:
    """The address behind a score of a mail."""
    return customer.base + _path(html, rf"\?s={score}$", f"score {score}")


def _path(html: str, pattern: str, what: str) -> str:
    """The path of the first link that matches; its host is left out, so that one's own address is asked."""
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', html)]
    found = next((link for link in links if re.search(pattern, link)), None)
    if found is None:
        raise Refused(f"The mail has no link for {what}.")
    return "/" + found.split("/", 3)[3]
