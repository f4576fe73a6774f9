"""What falls due: reminders, escalation, deputies; and the mails to staff, each at most once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from services.followup import roles
from services.followup.commands import attempts, reminders, resolving, staff, staff_mail
from services.followup.domain.by import By
from services.followup.staff_sender import make_sender
from shared.channels import Message
from shared.channels.ledger import Delivery
from shared.channels.sender import Permits, Sender
from shared.ids import SystemIds
from shared.roles import RoleContext
from tests.support.followup import Followup, account, new_id

ANYBODY = By(None, "a program")
HOUR = timedelta(hours=1)


class Outbox:
    """A way out that keeps what is handed over."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> str:
        self.sent.append(message)
        return f"p{len(self.sent)}"


@pytest.fixture
def way() -> Outbox:
    return Outbox()


@pytest.fixture
def sender(followup: Followup, way: Outbox) -> Iterator[Sender]:
    context = RoleContext(
        replace(followup.settings, public_url="https://cx.acme.example"),
        "followup",
        followup.clock,
        SystemIds(),
        followup.db,
    )
    sender = make_sender(context)
    sender.transport = lambda channel: way
    yield sender


@pytest.fixture
def task_id(followup: Followup) -> str:
    followup.staff("ann@acme.example", name="Ann Berger")
    followup.staff("lea@acme.example", "lead", name="Lea Lindt")
    globex, carla = account(manager="ann@acme.example"), new_id()
    followup.apply(
        followup.customer(carla, globex),
        followup.response(carla, 2, account=globex, comment='The <b>invoice</b> is "wrong".'),
    )
    return str(followup.tasks()[0]["id"])


def due(followup: Followup) -> None:
    """One round of every clock."""
    for work in (reminders.remind, reminders.escalate, reminders.stand_in):
        with followup.db.transaction() as tx:
            work(tx)


def templates(followup: Followup) -> list[tuple[str, str]]:
    mails = [(mail["data"]["template"], mail["to"].split("@")[0]) for mail in followup.mails()]
    return sorted(mail for mail in mails if mail[0] != "welcome")


def test_the_owner_is_reminded_once_before_the_call_is_due(followup: Followup, task_id: str) -> None:
    due(followup)
    assert templates(followup) == [("opened", "ann")]
    # Due on Wednesday at 11 in Berlin; three quarters of eight hours are over on Tuesday at 17.
    followup.clock.set(datetime(2026, 3, 3, 15, 59, tzinfo=UTC))
    due(followup)
    assert ("reminder", "ann") not in templates(followup)
    followup.clock.set(datetime(2026, 3, 3, 16, 0, tzinfo=UTC))
    due(followup)
    due(followup)
    followup.clock.advance(-timedelta(hours=1))
    due(followup)
    followup.clock.advance(timedelta(hours=1))
    due(followup)
    assert templates(followup) == [("opened", "ann"), ("reminder", "ann")]


def test_nobody_is_reminded_of_what_is_done(followup: Followup, task_id: str) -> None:
    with followup.db.transaction() as tx:
        attempts.record(tx, ANYBODY, task_id, channel="phone", reached=True)
    followup.clock.advance(timedelta(days=5))
    due(followup)
    assert templates(followup) == [("opened", "ann")]


def test_an_overdue_task_is_escalated_to_the_leads_once(followup: Followup, task_id: str) -> None:
    followup.clock.set(datetime(2026, 3, 4, 10, 0, 1, tzinfo=UTC))
    due(followup)
    due(followup)
    assert [mail for mail in templates(followup) if mail[0] == "escalated"] == [
        ("escalated", "ann"),
        ("escalated", "lea"),
    ]
    (event,) = followup.published("task.escalated")
    assert event["data"]["escalated_at"]
    assert ("reminder", "ann") not in templates(followup)


def test_a_try_that_failed_is_reminded_of_and_escalated_anew(followup: Followup, task_id: str) -> None:
    followup.clock.set(datetime(2026, 3, 4, 10, 0, 1, tzinfo=UTC))
    due(followup)
    with followup.db.transaction() as tx:
        attempts.record(tx, ANYBODY, task_id, channel="phone", reached=False)
    due(followup)
    followup.clock.set(datetime(2026, 3, 6, 12, 0, tzinfo=UTC))
    due(followup)
    assert len(followup.published("task.escalated")) == 2


def test_what_waits_goes_to_the_deputy_when_the_absence_begins(followup: Followup, task_id: str) -> None:
    ben = followup.staff("ben@acme.example")
    with followup.db.transaction() as tx:
        staff.set_absence(
            tx,
            followup.people["ann@acme.example"],
            absent_from=date(2026, 3, 4),
            absent_until=date(2026, 3, 10),
            deputy_id=ben,
        )
    due(followup)
    assert followup.tasks()[0]["owner_id"] == followup.people["ann@acme.example"]
    # Midnight in Berlin is eleven in the evening in UTC.
    followup.clock.set(datetime(2026, 3, 3, 23, 0, tzinfo=UTC))
    due(followup)
    assert followup.tasks()[0]["owner_id"] == ben
    assert ("assigned", "ben") in templates(followup)


def test_the_owners_mail_has_the_words_the_phone_and_the_way_to_the_task(
    followup: Followup, task_id: str, sender: Sender, way: Outbox
) -> None:
    sender.step()
    (mail,) = [message for message in way.sent if "Call" in message.subject]
    assert mail.to == "ann@acme.example" and mail.to_name == "Ann Berger"
    assert mail.subject == "Call by tomorrow 11:00: Carla Customer (Globex) gave 2"
    assert 'The <b>invoice</b> is "wrong".' in mail.text and "+4915112345678" in mail.text
    assert "&lt;b&gt;invoice" in mail.html and "<b>invoice" not in mail.html
    assert f"https://cx.acme.example/followup/tasks/{task_id}" in mail.text
    before = len(way.sent)
    sender.step()
    assert len(way.sent) == before


def test_old_news_is_not_mailed(followup: Followup, task_id: str, sender: Sender, way: Outbox) -> None:
    with followup.db.transaction() as tx:
        resolving.resolve(tx, ANYBODY, task_id, outcome="solved", theme="Late")
    sender.step()
    assert not [message for message in way.sent if "Carla" in message.subject]
    reasons = {mail["data"]["template"]: (mail["state"], mail["reason"]) for mail in followup.mails()}
    assert reasons["opened"] == ("refused", "overtaken")


def test_words_that_follow_the_score_are_told_once(followup: Followup, sender: Sender, way: Outbox) -> None:
    followup.staff("ann@acme.example")
    globex, carla, answer = account(manager="ann@acme.example"), new_id(), new_id()
    followup.apply(
        followup.customer(carla, globex), followup.response(carla, 2, account=globex, response_id=answer)
    )
    followup.clock.advance(timedelta(seconds=20))
    followup.apply(followup.response(carla, 2, account=globex, response_id=answer, comment="Because."))
    sender.step()
    about = [message for message in way.sent if "Carla" in message.subject]
    assert len(about) == 1 and "Because." in about[0].text
    followup.clock.advance(timedelta(seconds=20))
    followup.apply(
        followup.response(carla, 1, account=globex, response_id=answer, comment="Because, and more.")
    )
    sender.step()
    about = [message for message in way.sent if "Carla" in message.subject]
    assert len(about) == 2 and "changed or added" in about[1].subject


@pytest.mark.parametrize("template", ["joined", "assigned", "message", "reminder", "escalated", "reset"])
def test_every_mail_can_be_written(
    followup: Followup, task_id: str, sender: Sender, way: Outbox, template: str
) -> None:
    ann = followup.people["ann@acme.example"]
    carla = followup.tasks()[0]["customer_id"]
    with followup.db.transaction() as tx:
        if template == "assigned":
            resolving.assign(tx, ANYBODY, task_id, to=None)
            resolving.assign(tx, ANYBODY, task_id, to=ann, why="She knows them.")
        elif template == "reset":
            password = staff.reset_password(tx, followup.settings.key("one-time-password"), ann)
    if template == "joined":
        followup.apply(
            followup.response(new_id(), 1, account=account(manager="ann@acme.example"), callback="dont")
        )
    elif template == "message":
        followup.apply(followup.message(carla, "Hello?"))
    elif template == "reminder":
        followup.clock.set(datetime(2026, 3, 3, 16, 0, tzinfo=UTC))
    elif template == "escalated":
        followup.clock.set(datetime(2026, 3, 4, 10, 1, tzinfo=UTC))
    due(followup)
    while sender.step():
        pass
    states = {mail["data"]["template"]: mail["state"] for mail in followup.mails()}
    assert states[template] == "handed", [mail["reason"] for mail in followup.mails()]
    mail = way.sent[-1]
    assert mail.subject and "\n" not in mail.subject and mail.text.strip() and "<html" in mail.html
    if template == "assigned":
        assert any("She knows them." in m.text and "She knows them." in m.html for m in way.sent)
    if template == "reset":
        assert any(password in message.text for message in way.sent)
        assert password not in str(followup.mails())


def test_a_one_time_password_that_was_used_is_not_mailed(
    followup: Followup, sender: Sender, way: Outbox
) -> None:
    followup.staff("ann@acme.example")
    sender.step()
    assert not way.sent


def test_housekeeping_publishes_staff_once_a_day(followup: Followup) -> None:
    followup.staff("ann@acme.example")
    before = len(followup.published("staff.changed"))
    roles.housekeeping(followup.db)
    assert len(followup.published("staff.changed")) == before
    followup.clock.advance(timedelta(hours=25))
    roles.housekeeping(followup.db)
    roles.housekeeping(followup.db)
    again = followup.published("staff.changed")[before:]
    assert len(again) == 1 and again[0]["replay"] is True


def test_a_mail_to_staff_of_which_nobody_knows_is_counted_for_a_week(followup: Followup) -> None:
    with followup.db.transaction() as tx:
        staff_mail.queue(tx, "reset", new_id(), new_id(), {})
        tx.execute("UPDATE delivery SET state = 'uncertain'")
    for days, counted in ((6, True), (2, False)):
        followup.clock.advance(timedelta(days=days))
        roles.housekeeping(followup.db)
        body = followup.app.test_client().get("/followup/readyz").json
        assert body is not None and body["uncertain"] == counted


def _revise(followup: Followup, comment: str) -> None:
    [one] = followup.all("SELECT id, customer_id, account_id FROM response")
    globex = account(manager="ann@acme.example") | {"id": str(one["account_id"])}
    followup.apply(
        followup.response(
            str(one["customer_id"]), 2, account=globex, response_id=str(one["id"]), comment=comment
        )
    )


def test_what_a_customer_adds_while_a_mail_is_on_its_way_is_told_in_another(
    followup: Followup, sender: Sender, way: Outbox, task_id: str
) -> None:
    permits = sender.permits

    def slow(batch: Sequence[Delivery]) -> Permits:
        """The words are read; then it is long until the mail leaves."""
        given = permits(batch)
        sender.permits = permits
        _revise(followup, "Call me before noon.")
        followup.clock.advance(timedelta(seconds=1))
        return given

    sender.permits = slow
    while sender.step():
        pass
    sender.step()
    said = [mail.text for mail in way.sent if "invoice" in mail.text or "noon" in mail.text]
    assert len(said) == 2 and "noon" not in said[0] and "noon" in said[1]


def test_a_mail_that_left_by_a_fast_clock_keeps_no_later_words_back(
    followup: Followup, sender: Sender, way: Outbox, task_id: str
) -> None:
    followup.clock.advance(timedelta(hours=1))
    sender.step()
    followup.clock.advance(-timedelta(hours=1))
    _revise(followup, "Call me before noon.")
    sender.step()
    assert [("noon" in mail.text) for mail in way.sent if "Globex" in mail.text][-1]
    _revise(followup, "Call me before noon, please.")
    sender.step()
    assert "noon, please" in way.sent[-1].text


def test_words_that_a_mail_has_said_already_are_not_sent_again(
    followup: Followup, sender: Sender, way: Outbox, task_id: str
) -> None:
    _revise(followup, "Call me before noon.")
    with followup.db.transaction() as tx:
        [opened] = tx.all("SELECT id FROM delivery WHERE data->>'template' = 'revised'")
        tx.execute("UPDATE delivery SET not_before = %s WHERE id = %s", (tx.now + HOUR, opened["id"]))
    sender.step()
    assert "noon" in way.sent[-1].text
    sent = len(way.sent)
    followup.clock.advance(HOUR)
    sender.step()
    assert len(way.sent) == sent
    assert followup.all("SELECT state FROM delivery WHERE data->>'template' = 'revised'") == [
        {"state": "refused"}
    ]
