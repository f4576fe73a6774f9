"""A customer's browser and a script's API client, as far as a simulation needs them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, urlencode, urljoin

import urllib3

from shared.errors import HearbackError

Fields = dict[str, str]


class Refused(HearbackError):
    """The installation answered something else than was asked of it."""

    slug = "refused"
    http_status = 0


@dataclass(frozen=True, slots=True)
class Form:
    """A form of a page: where it goes, its hidden fields, and all its named buttons and inputs."""

    action: str
    hidden: Fields
    names: frozenset[str]


@dataclass(slots=True)
class Page:
    """What a customer sees: its address, its links, its forms."""

    url: str
    links: list[str] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)

    def form(self, name: str) -> Form:
        """The first form that has a field or button `name`. Raises `Refused` when the page has none."""
        for form in self.forms:
            if name in form.names:
                return form
        raise Refused("The answer page has no form for " + name + ".")


class _Parser(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page
        self.open: tuple[str, Fields, set[str]] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in values:
            self.page.links.append(urljoin(self.page.url, values["href"]))
        elif tag == "form":
            self.open = (urljoin(self.page.url, values.get("action", "")), {}, set())
        elif self.open and tag in ("input", "button", "textarea", "select") and "name" in values:
            self.open[2].add(values["name"])
            if values.get("type") == "hidden":
                self.open[1][values["name"]] = values.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form" and self.open:
            action, hidden, names = self.open
            self.page.forms.append(Form(action, hidden, frozenset(names)))
            self.open = None


def parse(url: str, html: str) -> Page:
    """The links and forms of `html`."""
    page = Page(url)
    _Parser(page).feed(html)
    return page


class Client:
    """HTTP to one installation: as a customer (pages, forms), or with a key or a session
    in `headers` (JSON).

    `base` has no trailing slash. Safe to share between threads.
    """

    def __init__(self, base: str, headers: Mapping[str, str], connections: int = 8) -> None:
        self.base = base
        self.headers = dict(headers)
        self.pool = urllib3.PoolManager(
            maxsize=connections,
            block=True,
            timeout=urllib3.Timeout(connect=5, read=60),
            retries=urllib3.Retry(total=3, status_forcelist=[503], allowed_methods=None, backoff_factor=0.5),
        )

    def open(self, url: str) -> Page:
        """GETs a page as a browser does."""
        return parse(url, self._send("GET", url, None, {"Accept": "text/html"}).decode())

    def submit(self, form: Form, fields: Mapping[str, str]) -> Page:
        """POSTs a form with its hidden fields and what was typed; follows where it leads."""
        body = urlencode({**form.hidden, **fields}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/html"}
        return parse(form.action, self._send("POST", form.action, body, headers).decode())

    def api(self, method: str, path: str, data: Any = None, *, once: str | None = None) -> Any:
        """Calls the API with the key; returns the JSON. `once` is the Idempotency-Key of a write."""
        headers = {"Accept": "application/json"}
        body = None
        if data is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(data).encode()
        if once:
            headers["Idempotency-Key"] = once
        return json.loads(self._send(method, self.base + path, body, headers) or b"null")

    def upload(self, path: str, body: bytes, content_type: str) -> Any:
        """POSTs a file with the key; returns the JSON."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        return json.loads(self._send("POST", self.base + path, body, headers))

    def pages(self, path: str, name: str) -> Iterator[dict[str, Any]]:
        """All items of a list that pages by cursor; `path` has a query already."""
        cursor = ""
        while True:
            answer = self.api("GET", path + (f"&cursor={cursor}" if cursor else ""))
            yield from answer[name]
            cursor = answer.get("next") or ""
            if not cursor:
                return

    def messages(self, since: str = "") -> Iterator[dict[str, Any]]:
        """What lies in the mailbox since an instant (RFC 3339; empty: everything)."""
        query = f"&since={quote(since)}" if since else ""
        yield from self.pages(f"/mailbox/api/messages?limit=100{query}", "messages")

    def news(self, cursor: str, since: str = "") -> tuple[list[dict[str, Any]], str]:
        """What has come to the mailbox behind `cursor` (empty: from the beginning), and the next cursor.

        By number, not by time: of messages that are handed over at once, one may be there before another that
        was begun earlier.
        """
        found: list[dict[str, Any]] = []
        while True:
            query = (f"&cursor={cursor}" if cursor else "") + (f"&since={quote(since)}" if since else "")
            answer = self.api("GET", f"/mailbox/api/messages?limit=100{query}")
            found += answer["messages"]
            cursor = answer["last"] or cursor
            if not answer["next"]:
                return found, cursor

    def _send(self, method: str, url: str, body: bytes | None, headers: Fields) -> bytes:
        headers = {**self.headers, **headers}
        try:
            response = self.pool.request(method, url, body=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise Refused(f"{self.base} does not answer: is it running? (`hearback status`)") from error
        if response.status >= 400:
            detail = response.data[:300].decode(errors="replace")
            refused = Refused(f"{method} {url.split('?')[0]} was answered with {response.status}: {detail}")
            refused.http_status = response.status
            raise refused
        return response.data
