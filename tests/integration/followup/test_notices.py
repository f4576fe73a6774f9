"""Notices: sent once under survey's permits, whatever stops in between; delivered, answered, erased."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from services.followup.commands import changes, notices, themes
from services.followup.domain.by import By
from services.followup.domain.change import Draft
from services.followup.notice_sender import NoticeSender, sender_loop
from services.followup.staff_sender import make_sender
from shared.clock import ManualClock
from shared.db import Row
from shared.errors import Conflict, NotFound
from shared.events.envelope import Event
from shared.events.fields import instant
from shared.ids import SystemIds
from shared.roles import RoleContext
from shared.settings import Settings
from tests.support.followup import Followup, new_id
from tests.support.survey_stand_in import TRAIL, SurveyStandIn, survey_stand_in

LEAD = By(None, "Lea Lead")


class Sending:
    """One published change, its notices, and a sender that speaks to stand-ins."""

    def __init__(self, followup: Followup, survey: SurveyStandIn, settings: Settings) -> None:
        self.followup, self.survey, self.settings = followup, survey, settings
        self.theme = followup.one("SELECT id FROM theme WHERE name = 'Delivery late'")["id"]
        self.context = RoleContext(settings, "followup", followup.clock, SystemIds(), followup.db)
        self.sender = NoticeSender(self.context)

    def customer(self, comment: str | None = "Three days late", **more: Any) -> str:
        customer, response = new_id(), new_id()
        self.followup.apply(
            self.followup.customer(customer),
            self.followup.response(customer, 3, response_id=response, comment=comment, **more),
        )
        with self.followup.db.transaction() as tx:
            themes.tie(tx, self.theme, [response], None)
        return customer

    def publish(self, title: str = "Saturdays") -> str:
        draft = Draft(title, "Too late.", "On Saturdays.", "en", None, (self.theme,))
        with self.followup.db.transaction() as tx:
            change = changes.create(tx, draft, LEAD)
            changes.publish(tx, change, LEAD)
        return change

    def run(self) -> None:
        while self.sender.step():
            pass

    def later(self, **delta: float) -> None:
        self.followup.clock.advance(timedelta(**delta))
        self.run()

    def notice(self) -> Row:
        return self.followup.one("SELECT * FROM notice")

    def delivery(self, notice: Row | None = None) -> Row:
        return self.followup.one(
            "SELECT * FROM delivery WHERE id = %s", (notice or self.notice())["delivery_id"]
        )

    def events(self) -> list[str]:
        return [row["type"] for row in self.followup.published() if row["type"].startswith("notice.")]

    def reported(self, state: str, delivery_id: str | None = None, version: int = 1) -> Event:
        return self.reported_of(self.notice(), state, delivery_id, version)

    def reported_of(self, notice: Row, state: str, delivery_id: str | None = None, version: int = 1) -> Event:
        data = {
            "delivery_id": delivery_id or notice["delivery_id"],
            "kind": "notice",
            "ref_id": notice["id"],
            "customer_id": notice["customer_id"],
            "channel": "email",
            "state": state,
            "reason": None,
            "at": instant(self.followup.clock.now()),
        }
        return Event(
            new_id(), "delivery.reported", "deliveries", notice["customer_id"], version,
            self.followup.clock.now(), data,
        )  # fmt: skip

    def crash(self, point: str) -> None:
        """One step of a sender in a process of its own that is killed at `point`."""
        code = f"""
            from datetime import datetime
            from pathlib import Path
            from services.followup.notice_sender import NoticeSender
            from shared.clock import ManualClock
            from shared.db import Database
            from shared.ids import SystemIds
            from shared.roles import RoleContext
            from shared.settings import Settings
            clock = ManualClock(datetime.fromisoformat({self.followup.clock.now().isoformat()!r}))
            urls = {{"followup": {self.settings.database_urls["followup"]!r}}}
            here = {self.settings.survey_url!r}
            settings = Settings(home=Path("."), secret={self.settings.secret!r}, database_urls=urls,
                                survey_url=here, mailbox_url=here)
            db = Database(urls["followup"], clock, SystemIds())
            NoticeSender(RoleContext(settings, "followup", clock, SystemIds(), db)).step()
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "HEARBACK_CRASH_AT": point},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -9, done.stderr.decode()


@pytest.fixture
def sending(followup: Followup, settings: Settings, clock: ManualClock) -> Iterator[Sending]:
    with survey_stand_in(settings, clock) as (survey, there):
        yield Sending(followup, survey, there)


def test_sends_a_mail_with_the_customers_own_words(sending: Sending) -> None:
    customer = sending.customer("Three days late & <nobody> told me")
    sending.survey.language[customer] = "de"
    sending.publish()

    sending.run()

    (message,) = sending.survey.messages
    notice = sending.notice()
    assert (message["channel"], message["to"]) == ("email", "carla@customer.example")
    assert message["delivery_id"] == notice["delivery_id"]
    assert message["subject"] == "Sie haben es gesagt, wir haben es geändert: Saturdays"
    assert "Three days late & <nobody> told me" in message["text"]
    assert "Three days late &amp; &lt;nobody&gt; told me" in message["html"]
    assert "Carla &lt;Customer&gt;" in message["html"]
    for answer in ("yes", "no"):
        assert f"{TRAIL}?n={notice['id']}&helped={answer}" in message["text"]
        assert f"{TRAIL}?n={notice['id']}&amp;helped={answer}" in message["html"]
    assert message["headers"] == {
        "List-Unsubscribe": "<http://127.0.0.1:8080/u/unsubscribe>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }
    assert "1 Road" in message["text"] and "1 Road" in message["html"]
    assert (message["sender_email"], message["reply_to"]) == ("hello@acme.example", "hello@acme.example")


def test_notes_what_was_sent_and_settles_the_permit_at_once(sending: Sending) -> None:
    customer = sending.customer()
    change = sending.publish()

    sending.run()

    notice, delivery = sending.notice(), sending.delivery()
    assert (notice["state"], notice["channel"]) == ("sent", "email")
    assert (delivery["state"], delivery["provider_id"]) == ("handed", "m1")
    (event,) = sending.followup.published("notice.sent")
    assert event["key"] == customer
    assert event["data"]["change_id"] == change
    assert event["data"]["quote"] == "Three days late"
    assert [(one["id"], one["result"]) for one in sending.survey.settled] == [(delivery["id"], "handed")]
    assert sending.followup.all("SELECT * FROM permit_result") == []


def test_goes_out_as_a_text_message_where_the_customer_was_asked_by_one(sending: Sending) -> None:
    sending.customer("Zu spät " * 60, channel="sms")
    sending.publish(title="We deliver on Saturdays")

    sending.run()

    (message,) = sending.survey.messages
    assert message["channel"] == "sms"
    assert (message["subject"], message["html"]) == ("", "")
    assert f"{TRAIL}?n={sending.notice()['id']}" in message["text"]
    assert "STOP" in message["text"]
    assert sending.notice()["channel"] == "sms"
    assert sending.followup.published("notice.sent")[0]["data"]["channel"] == "sms"


def test_a_refused_permit_is_a_skip_with_its_reason(sending: Sending) -> None:
    customer = sending.customer()
    sending.survey.refuse[customer] = "opted_out"
    sending.publish()

    sending.run()

    assert sending.survey.messages == []
    assert (sending.notice()["state"], sending.notice()["skip_reason"]) == ("skipped", "opted_out")
    assert sending.delivery()["state"] == "refused"
    assert sending.followup.published("notice.skipped")[0]["data"]["reason"] == "opted_out"


def test_waits_while_survey_is_away_and_then_goes_out_once(sending: Sending) -> None:
    for _ in range(3):
        sending.customer()
    sending.publish()
    sending.survey.down = True
    sending.run()
    sending.later(minutes=10)
    assert sending.survey.messages == []
    states = sending.followup.all(
        "SELECT n.state, d.state AS delivery FROM notice n JOIN delivery d ON d.ref_id = n.id"
    )
    assert {(row["state"], row["delivery"]) for row in states} == {("queued", "queued")}

    sending.survey.down = False
    sending.later(seconds=6)
    sending.later(minutes=10)

    assert len({message["delivery_id"] for message in sending.survey.messages}) == 3
    assert len(sending.survey.messages) == 3
    assert sending.events() == ["notice.sent"] * 3


def test_a_permit_whose_answer_was_lost_is_asked_for_again(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.survey.lose_answers = 1
    sending.run()
    assert sending.survey.messages == []

    sending.later(seconds=6)

    assert len(sending.survey.messages) == 1
    assert sending.survey.settled[0]["result"] == "returned"
    assert sending.notice()["state"] == "sent"


def test_a_permit_that_survey_closed_unused_is_replaced(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    first = sending.notice()["delivery_id"]
    # Survey granted it, the answer was lost, and a minute later survey gave up on it.
    sending.survey.permits[first] = "uncertain"

    sending.run()
    sending.later(seconds=1)

    (message,) = sending.survey.messages
    assert message["delivery_id"] != first
    assert (sending.notice()["state"], sending.notice()["delivery_id"]) == ("sent", message["delivery_id"])
    assert sending.events() == ["notice.sent"]


def test_a_result_survey_could_not_be_told_is_told_later(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    survey = sending.survey
    answer = survey.answer

    def deaf(path: str, headers: Any, body: dict[str, Any]) -> tuple[int, Any]:
        return (503, {}) if path.endswith("/settle") else answer(path, headers, body)

    survey.answer = deaf  # type: ignore[method-assign]
    sending.run()
    assert sending.notice()["state"] == "sent"
    assert survey.settled == []

    survey.answer = answer  # type: ignore[method-assign]
    sending.later(seconds=1)

    assert [one["result"] for one in survey.settled] == ["handed"]
    assert len(survey.messages) == 1


def test_a_busy_provider_is_tried_again_later(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.survey.mailbox, sending.survey.retry_after = 503, "30"
    sending.run()
    assert sending.delivery()["state"] == "queued"

    sending.survey.mailbox = 202
    sending.later(seconds=20)
    assert sending.survey.messages == []
    sending.later(seconds=11)

    assert len(sending.survey.messages) == 1
    assert sending.notice()["state"] == "sent"


def test_a_message_the_provider_will_never_take_has_failed(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.survey.mailbox = 400

    sending.run()

    assert (sending.notice()["state"], sending.delivery()["state"]) == ("failed", "failed")
    assert sending.followup.published("notice.skipped")[0]["data"]["reason"] == "failed"
    assert [one["result"] for one in sending.survey.settled] == ["failed"]


def test_silence_after_the_hand_over_is_uncertain_and_never_sent_again_by_itself(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.survey.mailbox = 0

    sending.run()
    sending.survey.mailbox = 202
    sending.later(hours=5)

    assert len(sending.survey.messages) == 1
    assert (sending.notice()["state"], sending.delivery()["state"]) == ("uncertain", "uncertain")
    assert sending.events() == []
    assert [one["result"] for one in sending.survey.settled] == ["uncertain"]


@pytest.mark.parametrize("point", ["sender.after_hand_over", "sender.before_settle"])
def test_killed_after_the_hand_over_it_stays_uncertain(sending: Sending, point: str) -> None:
    sending.customer()
    sending.publish()

    sending.crash(point)
    sending.later(seconds=30)
    assert sending.notice()["state"] == "queued"
    sending.later(seconds=31)
    sending.later(hours=2)

    assert len(sending.survey.messages) == 1
    assert sending.notice()["state"] == "uncertain"
    assert sending.survey.settled[-1]["result"] == "uncertain"


def test_killed_before_the_hand_over_it_goes_out_once(sending: Sending) -> None:
    sending.customer()
    sending.publish()

    sending.crash("sender.after_claim")
    sending.later(seconds=61)
    sending.later(hours=2)

    assert len(sending.survey.messages) == 1
    assert sending.notice()["state"] == "sent"


def test_the_sender_of_staff_mails_leaves_a_dead_notice_sender_alone(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.crash("sender.after_hand_over")
    sending.followup.clock.advance(timedelta(seconds=61))

    make_sender(sending.context).step()
    sending.run()

    assert sending.notice()["state"] == "uncertain"


def test_a_report_settles_an_uncertain_notice(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.crash("sender.after_hand_over")
    sending.later(seconds=61)

    sending.followup.apply(sending.reported("delivered"))

    notice = sending.notice()
    assert notice["state"] == "sent"
    assert notice["delivered_at"] is not None
    assert sending.events() == ["notice.sent"]


def test_a_person_sends_an_uncertain_notice_again(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.crash("sender.after_hand_over")
    sending.later(seconds=61)
    first = sending.notice()

    with sending.followup.db.transaction() as tx:
        notices.send_again(tx, first["id"], LEAD)
    with pytest.raises(Conflict), sending.followup.db.transaction() as tx:
        notices.send_again(tx, first["id"], LEAD)
    sending.run()

    assert len(sending.survey.messages) == 2
    assert sending.notice()["state"] == "sent"
    assert sending.notice()["delivery_id"] != first["delivery_id"]
    assert sending.events() == ["notice.sent"]


def test_a_late_report_spares_the_second_message(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.crash("sender.after_hand_over")
    sending.later(seconds=61)
    first = sending.notice()
    with sending.followup.db.transaction() as tx:
        notices.send_again(tx, first["id"], LEAD)

    sending.followup.apply(sending.reported("delivered", first["delivery_id"]))
    sending.run()

    assert len(sending.survey.messages) == 1
    assert sending.notice()["state"] == "sent"


def test_a_report_may_come_before_the_sender_has_noted_its_hand_over(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    survey, answer = sending.survey, sending.survey.answer

    def reports_at_once(path: str, headers: Any, body: dict[str, Any]) -> tuple[int, Any]:
        reply = answer(path, headers, body)
        if path == "/mailbox/api/send":
            sending.followup.apply(sending.reported("delivered"))
        return reply

    survey.answer = reports_at_once  # type: ignore[method-assign]
    sending.run()

    assert sending.notice()["state"] == "sent"
    assert (sending.delivery()["state"], sending.delivery()["provider_id"]) == ("delivered", "m1")
    assert sending.events() == ["notice.sent"]


def test_a_bounce_is_shown_as_failed(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.run()

    sending.followup.apply(sending.reported("delivered"), sending.reported("bounced", version=2))
    sending.followup.apply(sending.reported("delivered"))

    assert (sending.notice()["state"], sending.notice()["skip_reason"]) == ("failed", "bounced")


@pytest.mark.parametrize("order", [("complained", "bounced"), ("bounced", "complained")])
@pytest.mark.parametrize("noted", [True, False])
def test_who_complains_of_a_notice_was_told_whatever_a_mail_server_says(
    sending: Sending, order: tuple[str, str], noted: bool
) -> None:
    sending.customer()
    sending.publish()
    if noted:
        sending.run()
    else:
        sending.crash("sender.after_hand_over")

    for state in order:
        sending.followup.apply(sending.reported(state, version={"bounced": 2, "complained": 3}[state]))

    notice = sending.notice()
    assert (notice["state"], notice["skip_reason"]) == ("sent", None)
    assert notice["delivered_at"] is not None
    assert sending.events()[-1] == "notice.sent"


def test_texts_leave_while_mails_hang(sending: Sending) -> None:
    mails = [sending.customer() for _ in range(12)]
    texts = [sending.customer(channel="sms") for _ in range(2)]
    moved = sending.customer()  # who was asked by mail, and is reached by text only by now
    sending.survey.channel[moved] = "sms"
    sending.publish()
    survey, answer = sending.survey, sending.survey.answer
    over, hanging = threading.Event(), threading.Event()

    def hangs(path: str, headers: Any, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/mailbox/api/send" and body["channel"] == "email":
            hanging.set()
            over.wait(8)  # less than the sender's own patience
        return answer(path, headers, body)

    survey.answer = hangs  # type: ignore[method-assign]
    stop = threading.Event()
    loop = threading.Thread(target=sender_loop(sending.context), args=(stop,))
    loop.start()
    try:
        assert hanging.wait(10)
        until = time.monotonic() + 6
        while len(survey.messages) < len(texts) and time.monotonic() < until:
            time.sleep(0.02)
        assert [one["channel"] for one in survey.messages] == ["sms"] * len(texts)
        over.set()
        until = time.monotonic() + 30
        while len(survey.messages) < len(mails) + len(texts) + 1 and time.monotonic() < until:
            sending.followup.clock.advance(timedelta(seconds=1))  # what was given back is due again
            time.sleep(0.05)
    finally:
        over.set()
        stop.set()
        loop.join()

    assert Counter(one["channel"] for one in survey.messages) == {"email": len(mails), "sms": len(texts) + 1}
    assert {row["state"] for row in sending.followup.all("SELECT state FROM notice")} == {"sent"}


def test_customers_answer_and_change_their_mind(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.run()
    notice = sending.notice()["id"]
    for helped in (True, True, False):
        with sending.followup.db.transaction() as tx:
            notices.answer(tx, notice, helped)

    assert sending.notice()["helped"] is False
    answered = sending.followup.published("notice.answered")
    assert [event["data"]["helped"] for event in answered] == [True, False]
    versions = [
        event["version"] for event in sending.followup.published() if event["type"].startswith("notice.")
    ]
    assert versions == [2, 3, 4]


def test_an_answer_proves_that_an_uncertain_notice_arrived(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    sending.crash("sender.after_hand_over")
    sending.later(seconds=61)

    with sending.followup.db.transaction() as tx:
        notices.answer(tx, sending.notice()["id"], True)

    assert sending.notice()["state"] == "sent"
    assert sending.events() == ["notice.sent", "notice.answered"]


def test_nobody_answers_a_notice_that_was_never_sent(sending: Sending) -> None:
    sending.customer()
    sending.publish()
    with pytest.raises(NotFound), sending.followup.db.transaction() as tx:
        notices.answer(tx, sending.notice()["id"], True)
    with pytest.raises(NotFound), sending.followup.db.transaction() as tx:
        notices.answer(tx, "nonsense", True)


def test_an_excluded_answer_is_not_told(sending: Sending) -> None:
    customer, response = new_id(), new_id()
    followup = sending.followup
    followup.apply(
        followup.customer(customer), followup.response(customer, 3, response_id=response, comment="x")
    )
    with followup.db.transaction() as tx:
        themes.tie(tx, sending.theme, [response], None)
    sending.publish()
    followup.apply(
        followup.response(
            customer, 3, response_id=response, type_="response.excluded", comment="x", state="excluded"
        )
    )

    sending.run()

    assert sending.survey.messages == []
    assert (sending.notice()["state"], sending.notice()["skip_reason"]) == ("skipped", "excluded")


def test_an_erased_customer_is_neither_written_to_nor_quoted(sending: Sending) -> None:
    told, waiting = sending.customer(), sending.customer()
    sending.survey.refuse[waiting] = ""
    sending.publish()
    followup = sending.followup
    with followup.db.transaction() as tx:
        tx.execute(
            "UPDATE delivery SET not_before = not_before + interval '1 day' WHERE customer_id = %s",
            (waiting,),
        )
    sending.run()
    assert len(sending.survey.messages) == 1

    followup.apply(followup.erasure(told), followup.erasure(waiting))
    sending.later(days=2)

    assert len(sending.survey.messages) == 1
    rows = followup.all("SELECT customer_id, state, skip_reason, quote FROM notice")
    assert {row["customer_id"]: (row["state"], row["skip_reason"], row["quote"]) for row in rows} == {
        told: ("sent", None, None),
        waiting: ("skipped", "erased", None),
    }
    with pytest.raises(NotFound), followup.db.transaction() as tx:
        notice = tx.value("SELECT id FROM notice WHERE customer_id = %s", (told,))
        notices.answer(tx, notice, True)


def test_several_senders_share_the_work_without_doubling_it(sending: Sending) -> None:
    for _ in range(40):
        sending.customer()
    sending.publish()
    senders = [NoticeSender(sending.context) for _ in range(3)]

    def work(sender: NoticeSender) -> None:
        while sender.step():
            pass

    threads = [threading.Thread(target=work, args=(sender,)) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sending.run()

    sent = [message["delivery_id"] for message in sending.survey.messages]
    assert len(sent) == len(set(sent)) == 40
    assert sending.events() == ["notice.sent"] * 40
