"""Survey and followup together: a notice under a real permit, read, delivered, answered; and one refused."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from werkzeug.serving import make_server

from services.followup import notice_sender
from services.followup.commands import changes, themes
from services.followup.domain.by import By
from services.followup.domain.change import Draft
from services.followup.notice_sender import NoticeSender
from services.followup.permits import SurveyPermits
from services.survey import handlers as survey_handlers
from shared.channels import Message, TransportError
from shared.db import Database, Row
from shared.errors import Unavailable
from shared.events.envelope import Event
from shared.ids import SystemIds
from shared.roles import RoleContext
from shared.settings import Settings
from tests.support.asking import Asking, Provider, preference_link, score_link, trail_link
from tests.support.followup import Followup


class Both:
    """A survey that listens, a followup that sends, and events that travel when told to."""

    def __init__(self, survey: Asking, followup: Followup, sender: NoticeSender, provider: Provider) -> None:
        self.survey, self.followup, self.sender, self.provider = survey, followup, sender, provider
        self.read: set[str] = set()

    def travel(self) -> None:
        """What each has published reaches the other, until nothing is new."""
        while True:
            here = self._new(self.survey.db)
            there = self._new(self.followup.db)
            if not here and not there:
                return
            for event in here:
                if event.topic in ("customers", "responses", "deliveries", "settings", "invitations"):
                    self.followup.apply(event)
            for event in there:
                if event.topic in survey_handlers.TOPICS:
                    with self.survey.db.transaction() as tx:
                        survey_handlers.apply(tx, [event])

    def _new(self, db: Database) -> list[Event]:
        with db.transaction() as tx:
            rows = tx.all("SELECT * FROM outbox ORDER BY id")
        fresh = [row for row in rows if row["event_id"] not in self.read]
        self.read |= {row["event_id"] for row in fresh}
        return [_event(row) for row in fresh]

    def unhappy(self, comment: str) -> str:
        """A customer who was asked by mail, clicked 3 and wrote; returns their id."""
        message = self.survey.invited(name="Ann Customer", language="de")
        self.survey.submit(score_link(message, 3))
        self.survey.submit(trail_link(message), comment=comment)
        self.travel()
        return str(
            self.survey.one("SELECT customer_id FROM delivery WHERE id = %s", [message.delivery_id])[
                "customer_id"
            ]
        )

    def publish(self) -> None:
        followup = self.followup
        theme = followup.one("SELECT id FROM theme WHERE name = 'Delivery late'")["id"]
        with followup.db.transaction() as tx:
            themes.tie(tx, theme, [row["id"] for row in tx.all("SELECT id FROM response")], None)
            draft = Draft("Saturdays", "Too late.", "On Saturdays.", "en", None, (theme,))
            changes.publish(tx, changes.create(tx, draft, By(None, "Lea")), By(None, "Lea"))

    def send(self) -> list[Message]:
        before = len(self.provider.messages)
        while self.sender.step():
            pass
        self.travel()
        return self.provider.messages[before:]

    def notice(self) -> Row:
        return self.followup.one("SELECT * FROM notice")


def _event(row: Row) -> Event:
    data = None if row["data"] is None else json.loads(row["data"])
    return Event(
        row["event_id"],
        row["type"],
        row["topic"],
        row["key"],
        row["version"],
        row["occurred_at"],
        data,
        row["replay"],
    )


@pytest.fixture
def both(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    survey = Asking(settings)
    clock = survey.clock
    server = make_server("127.0.0.1", 0, survey.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    there = replace(settings, survey_url=f"http://127.0.0.1:{server.server_port}")
    followup = Followup(there, clock)
    provider = Provider()
    monkeypatch.setattr(notice_sender, "transport", lambda _settings, _channel: provider)
    sender = NoticeSender(RoleContext(there, "followup", clock, SystemIds(), followup.db))
    try:
        yield Both(survey, followup, sender, provider)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        survey.close()
        followup.db.close()
        followup.app.extensions["hearback"].db.close()


def test_the_loop_closes(both: Both) -> None:
    both.unhappy("Drei Tage zu spät")
    both.publish()

    (message,) = both.send()

    assert "„Drei Tage zu spät“" in message.text
    assert message.subject.startswith("Sie haben es gesagt")
    notice, permit = both.notice(), both.survey.one("SELECT * FROM delivery WHERE kind = 'notice'")
    assert (permit["id"], permit["state"]) == (notice["delivery_id"], "handed")

    assert both.survey.report(message, "delivered").status_code < 300
    both.travel()
    assert both.notice()["delivered_at"] is not None

    link = re.search(r"https?://[^/]+(/a/\S+&helped=yes)", message.text)
    assert link
    page = both.survey.page(link[1]).text
    assert "On Saturdays." in page
    assert both.notice()["helped"] is None, "a page that is only opened answers nothing"
    form = re.search(r'<form class="help".*?</form>', page, re.DOTALL)
    assert form
    fields = {name: unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', form[0])}
    done = both.followup.app.test_client().post("/followup/n", data={**fields, "helped": "yes"})
    assert done.status_code == 303 and done.location.startswith("/a/")
    both.travel()
    assert both.notice()["helped"] is True
    assert "Das freut uns" in both.survey.page(done.location).text


def test_an_opt_out_that_followup_has_not_heard_of_still_wins(both: Both) -> None:
    both.unhappy("Zu spät")
    both.publish()
    invitation = both.survey.provider.messages[-1]
    done = both.survey.http.post(preference_link(invitation), data={"List-Unsubscribe": "One-Click"})
    assert done.status_code < 400

    assert both.send() == []

    assert (both.notice()["state"], both.notice()["skip_reason"]) == ("skipped", "opted_out")


def test_a_word_to_survey_that_arrives_late_does_not_close_the_next_permit(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.unhappy("Drei Tage zu spät")
    both.publish()
    said: list[tuple[str, Any]] = []
    post = SurveyPermits._post

    def noted(self: SurveyPermits, path: str, body: Any) -> Any:
        said.append((path, body))
        return post(self, path, body)

    monkeypatch.setattr(SurveyPermits, "_post", noted)
    both.provider.refuse = TransportError("not now", permanent=False)
    assert both.send() == []
    path, returned = said[-1]
    assert returned["results"][0]["result"] == "returned"
    both.survey.clock.advance(timedelta(seconds=10))
    both.provider.refuse = None
    taken = both.provider.send

    def send(message: Message) -> str:
        # The call that followup gave up hung somewhere, and reaches survey only now.
        post(both.sender.survey, path, returned)
        permit = both.survey.one("SELECT state FROM delivery WHERE id = %s", [message.delivery_id])
        assert permit["state"] == "claimed"
        return taken(message)

    monkeypatch.setattr(both.provider, "send", send)
    assert len(both.send()) == 1
    assert both.survey.one("SELECT state FROM delivery WHERE kind = 'notice'")["state"] == "handed"


def test_when_survey_forgot_about_the_answer_nothing_is_sent(both: Both) -> None:
    both.unhappy("Zu spät")
    both.publish()
    with both.survey.db.transaction() as tx:
        tx.execute("DELETE FROM response")

    assert both.send() == []

    assert (both.notice()["state"], both.notice()["skip_reason"]) == ("skipped", "no_invitation")
    assert both.survey.one("SELECT state FROM delivery WHERE kind = 'notice'")["state"] == "failed"


def test_a_permit_whose_answer_got_lost_is_given_back_after_a_long_silence_of_surveys(
    both: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.unhappy("Zu spät")
    both.publish()
    post = SurveyPermits._post
    asked: list[str] = []

    def lost(self: SurveyPermits, path: str, body: Any) -> Any:
        asked.append(path)
        if len(asked) == 1:
            post(self, path, body)
        raise Unavailable("Survey does not answer; messages wait.")

    monkeypatch.setattr(SurveyPermits, "_post", lost)
    for _ in range(20):  # survey is away for longer than it believes that a sender lives
        assert both.send() == []
        both.survey.clock.advance(timedelta(seconds=5))
    both.survey.sender.step()
    assert both.survey.one("SELECT state FROM delivery WHERE kind = 'notice'")["state"] == "uncertain"
    monkeypatch.setattr(SurveyPermits, "_post", post)
    both.survey.clock.advance(timedelta(seconds=5))
    assert len(both.send()) == 1
    both.survey.clock.advance(timedelta(seconds=5))
    both.send()
    states = [row["state"] for row in both.survey.all("SELECT state FROM delivery WHERE kind = 'notice'")]
    assert states == ["handed"]
