"""Asking: who is asked, on which channel, who is not and why, and that the budget comes from the ledger."""

from __future__ import annotations

from datetime import timedelta
from html import unescape

import pytest

from services.survey.commands import ask, opt_out, programs
from services.survey.queries import programs as queries
from shared.channels import TransportError, UncertainError
from shared.errors import Conflict, Invalid
from tests.support.asking import Asking, score_link


def test_an_ask_makes_one_invitation_and_one_message_each(survey: Asking) -> None:
    mail = survey.add(name="Ann", email="ann@example.com", language="de")
    survey.add(phone="+4930123456")
    survey.events()
    run = survey.ask()
    assert (run["state"], run["asked"], run["skipped"], run["total"]) == ("done", 2, 0, 2)
    assert survey.events() == []  # told once it has left
    messages = {message.channel: message for message in survey.send()}
    assert messages["email"].subject == "Eine Frage von Example Ltd"
    assert messages["email"].text.startswith("Guten Tag Ann,")
    assert messages["email"].headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert messages["email"].headers["List-Unsubscribe"].startswith("<http")
    assert "/a/" in messages["sms"].text and "STOP" in messages["sms"].text
    for score in range(11):
        assert score_link(messages["email"], score)
    sent = survey.events("invitation.sent")
    assert len(sent) == 2
    data = next(event["data"] for event in sent if event["key"] == mail)
    assert (data["channel"], data["delivery_id"], data["touchpoint"]) == (
        "email", messages["email"].delivery_id, "general",
    )  # fmt: skip
    assert survey.send() == []


def test_no_personal_data_in_links_and_ids(survey: Asking) -> None:
    message = survey.invited(name="Ann Lee", email="ann.lee@example.com", external_id="crm-77")
    links = " ".join(word for word in unescape(message.html).split('"') if word.startswith("http"))
    for secret in ("ann", "lee", "crm-77", "example.com"):
        assert secret not in links.lower() + message.delivery_id + str(message.headers).lower()


def test_skips_are_recorded_with_their_reason_and_told(survey: Asking) -> None:
    nowhere = survey.add(external_id="x1", email=None)
    out = survey.add()
    dead = survey.add()
    with survey.db.transaction() as tx:
        opt_out.opt_out(tx, out, "email", "staff", survey.fingerprints)
        opt_out.bounced(tx, dead, "email")
    survey.events()
    run = survey.ask(touchpoint="support")
    assert (run["asked"], run["skipped"]) == (0, 3)
    told = {e["data"]["customer_id"]: e["data"] for e in survey.events("invitation.skipped")}
    assert {who: data["reason"] for who, data in told.items()} == {
        nowhere: "no_address", out: "opted_out", dead: "bounced",
    }  # fmt: skip
    assert told[out]["touchpoint"] == "support" and told[out]["invitation_id"] is None


def test_nobody_is_asked_twice_within_the_gap(survey: Asking) -> None:
    survey.add()
    assert survey.ask()["asked"] == 1
    assert survey.ask()["skipped"] == 1  # still queued
    survey.send()
    survey.clock.advance(timedelta(days=29))
    assert survey.ask()["skipped"] == 1
    survey.clock.advance(timedelta(days=1, seconds=1))
    assert survey.ask()["asked"] == 1


def test_a_failed_message_gives_its_place_back(survey: Asking) -> None:
    survey.add()
    survey.provider.refuse = TransportError("no such mailbox", permanent=True)
    survey.ask()
    survey.send()
    assert survey.one("SELECT state FROM invitation")["state"] == "failed"
    assert survey.events("delivery.reported")[0]["data"]["state"] == "failed"
    survey.provider.refuse = None
    assert survey.ask()["asked"] == 1
    assert len(survey.send()) == 1


def test_the_contact_limit_counts_messages_of_thirty_days(survey: Asking) -> None:
    customer = survey.add()
    with survey.db.transaction() as tx:
        tx.execute("UPDATE company SET ask_gap_days = 0")
    for expected in (1, 1, 1, 0):
        assert survey.ask()["asked"] == expected
        survey.send()
    assert survey.one("SELECT reason FROM skip")["reason"] == "contact_limit"
    survey.clock.advance(timedelta(days=30, seconds=1))
    assert survey.ask({"customers": [customer]})["asked"] == 1


def test_touchpoint_comes_from_the_ask_else_the_customer_else_the_program(survey: Asking) -> None:
    survey.add(external_id="own", touchpoint="order", email="o@example.com")
    survey.add(external_id="none", email="n@example.com")
    survey.ask({"customers": ["own", "none"]})
    rows = survey.all(
        "SELECT c.external_id, i.touchpoint FROM invitation i JOIN customer c ON c.id = i.customer_id"
        " ORDER BY 1"
    )
    assert [tuple(row.values()) for row in rows] == [("none", "general"), ("own", "order")]
    survey.add(external_id="third", touchpoint="order")
    survey.ask({"customers": ["third"]}, touchpoint="visit")
    assert survey.one("SELECT touchpoint FROM invitation WHERE touchpoint = 'visit'")


@pytest.mark.parametrize(
    ("audience", "asked"),
    [
        ({"account": " ACME   ltd"}, {"a"}),
        ({"touchpoint": "order"}, {"a", "b"}),
        ({"property": {"name": "hobby", "value": "gold"}}, {"b"}),
        ({"customers": ["c", "nobody"]}, {"c"}),
        ({"account": "Acme Ltd", "touchpoint": "support"}, set()),
    ],
)
def test_an_audience_is_a_list_or_a_filter(
    survey: Asking, audience: dict[str, object], asked: set[str]
) -> None:
    run = survey.import_(
        "external id,email,account,touchpoint,hobby\n"
        "a,a@example.com,Acme Ltd,order,silver\nb,b@example.com,,order,gold\nc,c@example.com,,,\n"
    )
    assert run["errors"] == []
    survey.ask(audience)
    rows = survey.all("SELECT c.external_id FROM invitation i JOIN customer c ON c.id = i.customer_id")
    assert {row["external_id"] for row in rows} == asked


@pytest.mark.parametrize(
    "audience",
    [
        {},
        {"all": False},
        {"all": True, "account": "x"},
        {"nobody": 1},
        {"customers": "x"},
        {"property": {"name": "x"}},
    ],
)
def test_an_audience_that_nobody_can_mean_asks_nobody(survey: Asking, audience: dict[str, object]) -> None:
    survey.add()
    with pytest.raises(Invalid):
        survey.ask(audience)


def test_a_paused_program_asks_nobody_and_still_takes_answers(survey: Asking) -> None:
    message = survey.invited()
    with survey.db.transaction() as tx:
        programs.change(tx, str(survey.program["id"]), {"state": "paused"})
    with pytest.raises(Conflict):
        survey.ask()
    survey.submit(score_link(message, 9))
    assert survey.response()["score"] == 9


def test_pausing_a_program_ends_an_ask_that_is_under_way(survey: Asking) -> None:
    for _ in range(7):
        survey.add()
    with survey.db.transaction() as tx:
        run = ask.start(tx, str(survey.program["id"]), {"all": True}, "test")
        assert ask.step(tx, str(run["id"]), 3)["asked"] == 3
        programs.change(tx, str(survey.program["id"]), {"state": "paused"})
    with survey.db.transaction() as tx:
        stopped = ask.step(tx, str(run["id"]), 3)
    assert (stopped["asked"], stopped["state"]) == (3, "stopped")
    with survey.db.transaction() as tx:
        assert not ask.step_any(tx)


def test_an_ask_goes_on_where_it_stopped_and_can_be_ended(survey: Asking) -> None:
    for _ in range(7):
        survey.add()
    with survey.db.transaction() as tx:
        run = ask.start(tx, str(survey.program["id"]), {"all": True}, "test")
    for expected in (3, 6):
        with survey.db.transaction() as tx:
            assert ask.step(tx, str(run["id"]), 3)["asked"] == expected
    with survey.db.transaction() as tx:
        ask.stop(tx, str(run["id"]))
        assert not ask.step_any(tx)
    with survey.db.transaction() as tx:
        found = queries.run(tx, str(run["id"]))
    assert (found["state"], found["asked"]) == ("stopped", 6)


def test_the_dry_run_says_what_the_ask_then_does(survey: Asking) -> None:
    for _ in range(3):
        survey.add()
    survey.add(phone="+4930123457")
    survey.add(external_id="nowhere", email=None)
    with survey.db.transaction() as tx:
        found = queries.reach(tx, survey.program, {"all": True})
    assert (dict(found.channels), dict(found.reasons)) == ({"email": 3, "sms": 1}, {"no_address": 1})
    run = survey.ask()
    assert (run["asked"], run["skipped"]) == (found.asked, found.reasons.total())


def test_an_opt_out_between_ask_and_hand_over_wins(survey: Asking) -> None:
    customer = survey.add()
    survey.ask()
    with survey.db.transaction() as tx:
        opt_out.opt_out(tx, customer, "email", "link", survey.fingerprints)
    survey.events()
    assert survey.send() == []
    assert survey.one("SELECT state FROM invitation")["state"] == "skipped"
    data = survey.events("invitation.skipped")[0]["data"]
    assert data["reason"] == "opted_out" and data["invitation_id"]


def test_an_erased_customer_gets_nothing(survey: Asking) -> None:
    from services.survey.commands import erase

    customer = survey.add()
    survey.ask()
    with survey.db.transaction() as tx:
        erase.erase(tx, customer, survey.fingerprints)
    assert survey.send() == []


def test_an_unclear_hand_over_stays_uncertain_until_a_report_or_a_person(survey: Asking) -> None:
    from services.survey.commands import settle

    survey.add(email="ann@example.com")
    survey.provider.refuse = UncertainError("no answer in time")
    survey.ask()
    survey.events()
    survey.send()
    survey.provider.refuse = None
    survey.clock.advance(timedelta(hours=1))
    assert survey.send() == []
    with survey.db.transaction() as tx:
        rows = queries.uncertain(tx)
    assert [row["email"] for row in rows] == ["ann@example.com"]
    assert survey.events() == []
    with survey.db.transaction() as tx:
        settle.send_again(tx, str(rows[0]["id"]), "me")
    assert len(survey.send()) == 1
    assert len(survey.events("invitation.sent")) == 1
    with survey.db.transaction() as tx:
        assert queries.uncertain(tx) == []


def test_a_late_report_settles_an_uncertain_message(survey: Asking) -> None:
    survey.add()
    survey.provider.refuse = UncertainError("no answer in time")
    survey.ask()
    survey.send()
    delivery = survey.one("SELECT * FROM delivery")
    event = {
        "id": "e1",
        "type": "delivered",
        "delivery_id": delivery["id"],
        "at": survey.clock.now().isoformat(),
    }
    survey.events()
    assert survey.webhook(event).status_code == 204
    assert survey.one("SELECT state FROM invitation")["state"] == "sent"
    assert [e["type"] for e in survey.events()] == ["invitation.sent", "delivery.reported"]


def test_no_invitation_leaves_when_its_time_is_over(survey: Asking) -> None:
    survey.add()
    survey.ask()
    survey.clock.advance(timedelta(days=31))
    assert survey.send() == []
    assert survey.one("SELECT state FROM invitation")["state"] == "skipped"
    assert [e["data"]["reason"] for e in survey.events("invitation.skipped")] == ["expired"]


def test_an_uncertain_invitation_expires_and_a_report_still_tells_that_it_was_sent(survey: Asking) -> None:
    survey.add()
    survey.provider.refuse = UncertainError("no answer in time")
    survey.ask()
    survey.send()
    survey.clock.advance(timedelta(days=31))
    survey.due()
    assert survey.one("SELECT state FROM invitation")["state"] == "expired"
    assert survey.events("invitation.expired") == []
    delivery = str(survey.one("SELECT id FROM delivery")["id"])
    event = {"id": "e1", "type": "delivered", "delivery_id": delivery, "at": survey.clock.now().isoformat()}
    assert survey.webhook(event).status_code == 204
    survey.due()
    assert survey.one("SELECT state FROM invitation")["state"] == "expired"
    told = [e["type"] for e in survey.events() if e["type"].startswith("invitation.")]
    assert told[-2:] == ["invitation.sent", "invitation.expired"]
