"""Preferences: GET shows, POST changes at once, and an opt-out waits for what is on its way."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from itertools import islice

import pytest

from services.survey.commands import permits, preferences, tokens
from services.survey.commands.permits import Request
from shared.channels import UncertainError
from shared.web import service_auth
from tests.support.asking import Asking, preference_link, trail_link


def test_opening_the_page_changes_nothing(survey: Asking) -> None:
    path = preference_link(survey.invited())
    survey.events()
    assert "We may write e-mails to you." in survey.page(path).text
    assert survey.events() == []


def test_one_click_of_the_mail_program_opts_out_of_mail(survey: Asking) -> None:
    message = survey.invited(email="ann@example.com", phone="+4930123456")
    path = "/" + message.headers["List-Unsubscribe"].strip("<>").split("/", 3)[3]
    reply = survey.http.post(path, data={"List-Unsubscribe": "One-Click"})
    assert reply.status_code == 200
    row = survey.customer(email="ann@example.com")
    assert row["email_opt_out_at"] is not None and row["sms_opt_out_at"] is None
    assert survey.one("SELECT source FROM opt_out")["source"] == "one-click"


def test_a_mail_programs_click_may_come_in_pieces(survey: Asking) -> None:
    path = preference_link(survey.invited())
    reply = survey.http.post(
        path,
        input_stream=io.BytesIO(b"List-Unsubscribe=One-Click"),
        content_type="application/x-www-form-urlencoded",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
    )
    assert reply.status_code == 200
    assert survey.one("SELECT email_opt_out_at FROM customer")["email_opt_out_at"]


def test_each_channel_is_chosen_by_itself_and_can_come_back(survey: Asking) -> None:
    path = preference_link(survey.invited(email="ann@example.com", phone="+4930123456", language="de"))
    reply = survey.http.post(path, data={"action": "stop_all"}, headers={"Accept": "text/html"})
    assert reply.status_code == 303
    page = survey.page(reply.headers["Location"]).text
    assert "Sie erhalten keine Nachrichten mehr von uns." in page and "on_its_way" not in page
    survey.http.post(path, data={"action": "start_sms"}, headers={"Accept": "text/html"})
    row = survey.customer(email="ann@example.com")
    assert row["email_opt_out_at"] is not None and row["sms_opt_out_at"] is None
    survey.http.post(path, data={"action": "start_everything"}, headers={"Accept": "text/html"})
    assert survey.customer(email="ann@example.com")["email_opt_out_at"] is not None


def test_an_unknown_link_is_a_friendly_page(survey: Asking) -> None:
    assert survey.page("/u/nothing").status_code == 404
    assert survey.http.post("/u/nothing", data={"action": "stop_all"}).status_code == 404


def test_links_have_one_purpose_each(survey: Asking) -> None:
    message = survey.invited()
    assert survey.page(preference_link(message).replace("/u/", "/a/")).status_code == 404
    assert survey.page(trail_link(message).replace("/a/", "/u/")).status_code == 404


def test_an_opt_out_waits_for_a_message_on_its_way_and_says_so_when_it_remains(survey: Asking) -> None:
    path = preference_link(survey.invited())
    customer = str(survey.one("SELECT id FROM customer")["id"])
    request = Request(survey.db.ids.new(), "notice", survey.db.ids.new(), customer)
    with survey.db.transaction() as tx:
        assert permits.take(tx, [request], "http://x", survey.fingerprints)[0]
    began = time.monotonic()
    reply = survey.http.post(path, data={"action": "stop_email"}, headers={"Accept": "text/html"})
    assert 1.8 < time.monotonic() - began < 4
    assert "already on its way" in survey.page(reply.headers["Location"]).text
    reply = survey.http.post(path, data={"List-Unsubscribe": "One-Click"})
    assert reply.status_code == 200 and "already on its way" in reply.text


def test_a_message_that_the_provider_may_still_take_counts_as_on_its_way_for_a_minute(survey: Asking) -> None:
    path = preference_link(survey.invited())
    survey.provider.refuse = UncertainError("no answer in time")
    survey.clock.advance(timedelta(days=40))
    survey.ask()
    survey.send()
    survey.clock.advance(timedelta(seconds=50))
    assert "already on its way" in survey.http.post(path, data={"List-Unsubscribe": "One-Click"}).text
    survey.clock.advance(timedelta(seconds=11))
    assert survey.http.post(path, data={"List-Unsubscribe": "One-Click"}).text == ""


def test_an_opt_out_ends_its_wait_when_the_message_is_settled(survey: Asking) -> None:
    from services.survey.commands import settle

    path = preference_link(survey.invited())
    customer = str(survey.one("SELECT id FROM customer")["id"])
    request = Request(survey.db.ids.new(), "notice", survey.db.ids.new(), customer)
    with survey.db.transaction() as tx:
        permits.take(tx, [request], "http://x", survey.fingerprints)

    def later() -> None:
        time.sleep(0.4)
        with survey.db.transaction() as tx:
            settle.notices(tx, [settle.Result(request.id, "handed", "p")], survey.fingerprints)

    thread = threading.Thread(target=later)
    thread.start()
    reply = survey.http.post(path, data={"action": "stop_email"}, headers={"Accept": "text/html"})
    thread.join()
    assert "late" not in reply.headers["Location"]


def test_many_opt_outs_at_once_leave_threads_to_those_who_say_what_became_of_the_messages(
    survey: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six customers opt out while their messages are on the way; a web process has four threads."""
    monkeypatch.setattr(preferences, "WAIT", 60.0)
    customers = [survey.add() for _ in range(6)]
    requests = [Request(survey.db.ids.new(), "notice", survey.db.ids.new(), one) for one in customers]
    with survey.db.transaction() as tx:
        assert len(permits.take(tx, requests, "http://x", survey.fingerprints)[0]) == 6
        minted = tokens.mint(tx, [(one, one, ("invitation", None), "email") for one in customers], "")
    paths = [minted[one]["preferences"] for one in customers]

    def opt_out(path: str) -> str:
        return str(survey.app.test_client().post(path, data={"List-Unsubscribe": "One-Click"}).text)

    def settle(request: Request) -> int:
        body = {"results": [{"id": request.id, "result": "handed", "provider_id": "p"}]}
        headers = service_auth.header(survey.settings, "permits", survey.clock)
        path = "/survey/internal/permits/settle"
        return int(survey.app.test_client().post(path, json=body, headers=headers).status_code)

    with ThreadPoolExecutor(4) as web:
        answers = [web.submit(opt_out, path) for path in paths]
        told = [answer.result() for answer in islice(as_completed(answers, 30), 4)]
        assert all("already on its way" in text for text in told)
        assert {web.submit(settle, request).result(30) for request in requests} == {204}
        # Those who waited hear that nothing comes any more.
        assert [answer.result(30) for answer in answers].count("") == 2
    rows = survey.all("SELECT email_opt_out_at FROM customer")
    assert all(row["email_opt_out_at"] for row in rows)


def test_a_permit_and_an_opt_out_at_once_never_miss_each_other(survey: Asking) -> None:
    """Whoever comes second sees the other: either there is no permit, or the opt-out knows of it."""
    for _ in range(20):
        customer = survey.add()
        request = Request(survey.db.ids.new(), "notice", survey.db.ids.new(), customer)
        together = threading.Barrier(2)
        granted: list[bool] = []

        def take(request: Request = request, together: threading.Barrier = together) -> None:
            together.wait()
            with survey.db.transaction() as tx:
                granted.append(bool(permits.take(tx, [request], "http://x", survey.fingerprints)[0]))  # noqa: B023

        thread = threading.Thread(target=take)
        thread.start()
        together.wait()
        from services.survey.commands import opt_out

        with survey.db.transaction() as tx:
            opt_out.opt_out(tx, customer, "email", "link", survey.fingerprints)
        remains = preferences.wait(survey.db, customer, ("email",), limit=0)
        thread.join()
        assert granted == [remains] or (granted == [False] and not remains)
