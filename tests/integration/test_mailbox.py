"""The mailbox: takes messages as a provider does, shows them as a phone does, and reports back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from shared.channels import Message
from shared.channels.mailbox import verify
from shared.clock import ManualClock
from shared.db import Database
from shared.ids import SystemIds
from shared.mailbox.app import create_app
from shared.mailbox.pages import linked, one_click_url, preview, reachable
from shared.mailbox.poster import Poster
from shared.settings import Settings

PHONE = "+4915112345678"
HTML = "<html><head><title>x</title></head><body><a href='http://127.0.0.1/a/t?s=3'>3</a></body></html>"


class Hearback(ThreadingHTTPServer):
    """Whoever the webhooks are posted to, and who says who is logged in."""

    status = 204
    me: dict[str, Any] | None = None
    got: list[tuple[str, dict[str, str], bytes]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hearback

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        body = json.dumps(self.server.me or {}).encode()
        self.send_response(200 if self.server.me else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        return None


@pytest.fixture
def hearback() -> Iterator[Hearback]:
    server = Hearback(("127.0.0.1", 0), _Handler)
    server.got = []
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ours(settings: Settings, hearback: Hearback) -> Settings:
    return replace(settings, survey_url=hearback.url, public_url="https://hear.example")


@pytest.fixture
def app(ours: Settings, clock: ManualClock, ids: SystemIds) -> Flask:
    return create_app(ours, clock=clock, ids=ids, webhooks=False)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def send(client: FlaskClient, ours: Settings) -> Callable[..., Any]:
    key = ours.key("mailbox-send").hex()

    def hand_over(to: str = "ann@example.org", channel: str = "email", **more: Any) -> Any:
        message = Message("d1", channel, to, "How likely? https://hear.example/a/tok", "Ann", **more)
        return client.post(
            "/mailbox/api/send", json=asdict(message), headers={"Authorization": f"Bearer {key}"}
        )

    return hand_over


def posted(app: Flask, hearback: Hearback) -> list[dict[str, Any]]:
    """Posts what is due; what arrived, in order."""
    hearback.got.clear()
    found: Poster = app.extensions["mailbox_poster"]
    found.step()
    return [json.loads(body) for _, _, body in hearback.got]


def test_a_message_is_taken_with_the_key_only(client: FlaskClient, send: Callable[..., Any]) -> None:
    assert send().status_code == 202
    assert client.post("/mailbox/api/send", json={}).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert client.post("/mailbox/api/send", json={}, headers=wrong).status_code == 401


@pytest.mark.parametrize(("to", "channel"), [("0151 234", "sms"), ("nobody", "email"), ("a@b@c", "email")])
def test_an_address_that_is_none_is_refused(send: Callable[..., Any], to: str, channel: str) -> None:
    assert send(to, channel).status_code == 422


def test_a_provider_does_not_dedupe(client: FlaskClient, send: Callable[..., Any]) -> None:
    assert send().json["id"] != send().json["id"]
    found = client.get("/mailbox/api/messages?to=ANN@example.org").json
    assert found and [one["delivery_id"] for one in found["messages"]] == ["d1", "d1"]


def test_a_delivery_is_reported_once_signed_and_with_its_own_id(
    app: Flask, hearback: Hearback, send: Callable[..., Any], ours: Settings, clock: ManualClock
) -> None:
    send()
    (report,) = posted(app, hearback)
    assert (report["type"], report["delivery_id"], report["to"]) == ("delivered", "d1", "ann@example.org")
    path, headers, body = hearback.got[0]
    assert path == "/webhooks/mailbox"
    verify(ours, headers["X-Mailbox-Timestamp"], headers["X-Mailbox-Signature"], body, clock.now())
    assert posted(app, hearback) == []


def test_a_report_is_posted_until_it_is_taken(
    app: Flask, hearback: Hearback, send: Callable[..., Any], clock: ManualClock
) -> None:
    send()
    hearback.status = 503
    ids = {report["id"] for report in posted(app, hearback)}
    assert posted(app, hearback) == []  # not again at once
    for seconds in (1, 2, 4):
        clock.advance(timedelta(seconds=seconds))
        ids |= {report["id"] for report in posted(app, hearback)}
        assert len(hearback.got) == 1
    hearback.status = 200
    clock.advance(timedelta(seconds=8))
    assert {report["id"] for report in posted(app, hearback)} == ids and len(ids) == 1
    clock.advance(timedelta(hours=1))
    assert posted(app, hearback) == []


def test_a_webhook_whose_poster_died_is_taken_over(
    app: Flask, hearback: Hearback, send: Callable[..., Any], clock: ManualClock
) -> None:
    from shared.mailbox import store
    from shared.mailbox.poster import LEASE

    send()
    poster: Poster = app.extensions["mailbox_poster"]
    with poster.db.transaction() as tx:
        assert len(store.due_webhooks(tx, 10, LEASE)) == 1
    assert posted(app, hearback) == []
    clock.advance(LEASE)
    assert len(posted(app, hearback)) == 1


def test_addresses_that_say_so_bounce_or_complain(
    app: Flask, hearback: Hearback, send: Callable[..., Any], clock: ManualClock
) -> None:
    send("ann.bounce@example.org")
    assert [report["type"] for report in posted(app, hearback)] == ["bounced"]
    send("complain@example.org")
    send("ann@bounce.example")
    assert [report["type"] for report in posted(app, hearback)] == ["delivered", "delivered"]
    clock.advance(timedelta(seconds=1))
    assert [report["type"] for report in posted(app, hearback)] == ["complained"]


def test_a_text_is_answered_as_the_customer_would(
    app: Flask, client: FlaskClient, hearback: Hearback, send: Callable[..., Any]
) -> None:
    send(PHONE, "sms", sender_name="Northwind")
    posted(app, hearback)
    assert client.post("/mailbox/api/reply", json={"from": PHONE, "text": "3 too slow"}).status_code == 201
    (report,) = posted(app, hearback)
    assert report["type"] == "inbound" and report["from"] == PHONE and report["text"] == "3 too slow"
    assert report["to"] == "Northwind"
    found = client.get("/mailbox/api/messages", query_string={"to": PHONE}).json
    assert found and [one["direction"] for one in found["messages"]] == ["out", "in"]
    page = client.get(f"/mailbox/sms/{PHONE}").text
    assert "3 too slow" in page and 'href="https://hear.example/a/tok"' in page


def test_a_form_of_another_site_cannot_answer(client: FlaskClient) -> None:
    plain = client.post("/mailbox/api/reply", data=json.dumps({"from": PHONE, "text": "9"}))
    assert plain.status_code == 422
    assert client.post(f"/mailbox/sms/{PHONE}", data={"text": "9"}).status_code == 403


def test_a_text_is_answered_on_the_page(
    app: Flask, client: FlaskClient, hearback: Hearback, send: Callable[..., Any]
) -> None:
    send(PHONE, "sms")
    posted(app, hearback)
    token = csrf(client.get(f"/mailbox/sms/{PHONE}").text)
    answer = client.post(f"/mailbox/sms/{PHONE}", data={"csrf_token": token, "text": " 10 "})
    assert answer.status_code == 303
    assert [report["text"] for report in posted(app, hearback)] == ["10"]


def test_lists_go_on_where_they_ended(client: FlaskClient, send: Callable[..., Any]) -> None:
    sent = [send().json["id"] for _ in range(5)]
    got: list[str] = []
    cursor = ""
    while True:
        page = client.get(f"/mailbox/api/messages?limit=2&cursor={cursor}").json
        assert page
        got += [one["id"] for one in page["messages"]]
        cursor = page["next"] or ""
        if not cursor:
            break
    assert got == sent
    later = send().json["id"]
    page = client.get(f"/mailbox/api/messages?cursor={page['last']}").json
    assert page and [one["id"] for one in page["messages"]] == [later]


def test_filters_that_are_none_are_refused(client: FlaskClient) -> None:
    assert client.get("/mailbox/api/messages?channel=pigeon").status_code == 422
    assert client.get("/mailbox/api/messages?limit=1000").status_code == 422
    assert client.get("/mailbox/api/messages?cursor=x").status_code == 422


def test_since_when_a_message_came_can_be_asked(
    client: FlaskClient, send: Callable[..., Any], clock: ManualClock
) -> None:
    send()
    clock.advance(timedelta(minutes=5))
    id = send().json["id"]
    found = client.get("/mailbox/api/messages?since=2026-03-03T10:04:00Z").json
    assert found and [one["id"] for one in found["messages"]] == [id]
    assert found["messages"][0]["at"] == "2026-03-03T10:05:00Z"


def test_mails_are_listed_newest_first_and_by_address(client: FlaskClient, send: Callable[..., Any]) -> None:
    send(subject="First")
    send("bob@example.org", subject="Second")
    page = client.get("/mailbox").text
    assert page.index("Second") < page.index("First") and "2 unread" in page
    page = client.get("/mailbox?address=bob").text
    assert "Second" in page and "First" not in page
    assert "No mail to" in client.get("/mailbox?address=nobody").text


def test_a_mail_is_shown_without_any_power(client: FlaskClient, send: Callable[..., Any]) -> None:
    id = send(html=HTML + "<script>alert(1)</script>").json["id"]
    page = client.get(f"/mailbox/messages/{id}")
    assert 'sandbox="allow-popups allow-popups-to-escape-sandbox"' in page.text
    assert "frame-src 'self'" in page.headers["Content-Security-Policy"]
    body = client.get(f"/mailbox/messages/{id}/body")
    policy = body.headers["Content-Security-Policy"]
    assert (
        "sandbox allow-popups" in policy and "allow-scripts" not in policy and "default-src 'none'" in policy
    )
    assert '<head><base target="_blank">' in body.text


def test_text_and_headers_are_shown_too(client: FlaskClient, send: Callable[..., Any]) -> None:
    headers = {"List-Unsubscribe": "<https://hear.example/u/x>"}
    id = send(html=HTML, headers=headers, sender_name="Northwind").json["id"]
    assert "How likely?" in client.get(f"/mailbox/messages/{id}?view=text").text
    page = client.get(f"/mailbox/messages/{id}?view=headers").text
    assert "&lt;https://hear.example/u/x&gt;" in page and "X-Delivery" in page
    assert "mail-narrow" in client.get(f"/mailbox/messages/{id}?width=phone").text
    assert client.get("/mailbox/messages/nonsense").status_code == 404


def test_one_click_unsubscribes_as_a_mail_program_does(
    client: FlaskClient, send: Callable[..., Any], hearback: Hearback
) -> None:
    headers = {
        "List-Unsubscribe": "<mailto:x@example.org>, <https://hear.example/u/tok>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }
    id = send(headers=headers).json["id"]
    token = csrf(client.get(f"/mailbox/messages/{id}").text)
    client.post(f"/mailbox/messages/{id}/unsubscribe", data={"csrf_token": token})
    path, sent, body = hearback.got[-1]
    assert (path, body) == ("/u/tok", b"List-Unsubscribe=One-Click")
    assert sent["Content-Type"] == "application/x-www-form-urlencoded"
    assert "Unsubscribed as a mail program does it" in client.get(f"/mailbox/messages/{id}").text


def test_one_click_leads_nowhere_else(client: FlaskClient, send: Callable[..., Any], ours: Settings) -> None:
    headers = {
        "List-Unsubscribe": "<https://elsewhere.example/u/tok>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }
    id = send(headers=headers).json["id"]
    token = csrf(client.get(f"/mailbox/messages/{id}").text)
    assert client.post(f"/mailbox/messages/{id}/unsubscribe", data={"csrf_token": token}).status_code == 422
    assert reachable(ours, "https://hear.example.evil/u/tok") is None
    assert one_click_url({"List-Unsubscribe": "<https://hear.example/u/tok>"}) is None


def test_a_mail_can_be_marked_as_spam(
    app: Flask, client: FlaskClient, send: Callable[..., Any], hearback: Hearback
) -> None:
    id = send().json["id"]
    posted(app, hearback)
    token = csrf(client.get(f"/mailbox/messages/{id}").text)
    client.post(f"/mailbox/messages/{id}/complain", data={"csrf_token": token})
    assert [report["type"] for report in posted(app, hearback)] == ["complained"]


ELSEWHERE = {"REMOTE_ADDR": "10.0.0.9"}


@pytest.mark.parametrize(
    ("me", "cookie", "status"),
    [
        (None, None, 303),
        (None, "x", 303),
        ({"role": "agent", "scopes": []}, "x", 403),
        ({"role": "lead", "scopes": []}, "x", 200),
        ({"role": "admin", "scopes": []}, "x", 200),
        ({"role": "key", "scopes": ["mailbox:read"]}, "x", 200),
    ],
)
def test_from_elsewhere_it_needs_a_login(
    client: FlaskClient, hearback: Hearback, me: dict[str, Any] | None, cookie: str | None, status: int
) -> None:
    hearback.me = me
    if cookie:
        client.set_cookie("hearback_session", cookie)
    for url in ("/mailbox", "/mailbox/sms"):
        assert client.get(url, environ_overrides=ELSEWHERE).status_code == status
    api = client.get("/mailbox/api/messages", environ_overrides=ELSEWHERE)
    assert api.status_code == {303: 401}.get(status, status)


def test_the_thread_posts_within_a_moment(
    ours: Settings, ids: SystemIds, hearback: Hearback, clock: ManualClock
) -> None:
    app = create_app(ours, clock=clock, ids=ids)
    poster: Poster = app.extensions["mailbox_poster"]
    key = ours.key("mailbox-send").hex()
    message = asdict(Message("d1", "email", "ann@example.org", "words"))
    began = datetime.now(UTC)
    app.test_client().post("/mailbox/api/send", json=message, headers={"Authorization": f"Bearer {key}"})
    while not hearback.got and datetime.now(UTC) - began < timedelta(seconds=5):
        threading.Event().wait(0.005)
    poster.stop()
    assert len(hearback.got) == 1
    poster.db.close()


def test_after_its_days_a_message_is_forgotten_and_so_is_a_webhook_given_up(
    app: Flask, client: FlaskClient, send: Callable[..., Any], ours: Settings, hearback: Hearback
) -> None:
    hearback.status = 503
    assert send(to="old@example.org").status_code == 202
    clock = ManualClock(datetime.now(UTC) + timedelta(days=13, hours=23))
    later = Poster(ours, Database(ours.database_urls["log"], clock, SystemIds(), name="test"))
    later.forget()
    assert "old@example.org" in client.get("/mailbox/api/messages").text
    later.step()
    clock.advance(timedelta(hours=2))
    later.forget()
    assert "old@example.org" not in client.get("/mailbox/api/messages").text
    with later.db.transaction() as tx:
        assert tx.value("SELECT count(*) FROM mailbox.webhook") == 0


def test_links_in_plain_text_end_where_the_sentence_does() -> None:
    assert linked("see https://x.example/a?b=1. <b>").count("</a>") == 1
    assert 'href="https://x.example/a?b=1"' in linked("see https://x.example/a?b=1. <b>")
    assert "&lt;b&gt;" in linked("see https://x.example/a. <b>")


def test_a_preview_is_one_line_without_addresses() -> None:
    assert preview("How likely?\n0 https://x.example/a\n1 https://x.example/b") == "How likely? 0 1"
    assert preview("Or tap: https://x.example/a STOP to opt out", "…") == "Or tap: … STOP to opt out"
    assert preview("word " * 100).endswith(" …")


def csrf(html: str) -> str:
    found = re.search(r'name="csrf_token" value="([0-9a-f]+)"', html)
    assert found
    return found[1]
