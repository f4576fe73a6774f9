"""SendGrid's event webhook: only what it signed just now counts, once, and in whatever order it comes."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from shared.channels import ledger
from tests.support.asking import Asking
from tests.support.providers.sendgrid import SendGrid
from tests.support.providers.stand_in import Hooks, StandIn

URL = "/webhooks/sendgrid"
ADDRESS = "ann@example.com"


@pytest.fixture
def delivery(survey: Asking, providers: StandIn) -> str:
    """An invitation that SendGrid has taken."""
    survey.ask({"customers": [survey.add(email=ADDRESS)]})
    survey.send()
    survey.events()
    return providers.sendgrid.delivery_ids()[0]


def state(survey: Asking) -> Any:
    return survey.one("SELECT state FROM delivery")["state"]


def everything(survey: Asking) -> list[Any]:
    """All of survey's rows, whatever the table."""
    with survey.db.transaction() as tx:
        tables = [
            row["tablename"]
            for row in tx.all(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
            )
        ]
        return [(name, tx.all(f"SELECT * FROM {name} t ORDER BY t::text")) for name in tables]


def test_delivered_is_told_once_however_often_it_comes(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    event = providers.sendgrid.event(delivery, "delivered")
    for _ in range(3):
        assert hooks.events(event, event) == 204
    assert state(survey) == "delivered"
    assert [e["data"]["state"] for e in survey.events("delivery.reported")] == ["delivered"]


@pytest.mark.parametrize(
    ("event", "state_after", "bounced", "opted_out"),
    [
        ({"event": "bounce", "type": "bounce", "status": "5.1.1"}, "bounced", True, False),
        ({"event": "bounce", "status": "5.1.1"}, "bounced", True, False),
        ({"event": "bounce", "type": "blocked", "status": "4.7.0"}, "failed", False, False),
        ({"event": "dropped", "reason": "Bounced Address"}, "bounced", True, False),
        ({"event": "dropped", "reason": "Invalid"}, "bounced", True, False),
        ({"event": "dropped", "reason": "Spam Reporting Address"}, "failed", False, True),
        ({"event": "dropped", "reason": "Unsubscribed Address"}, "failed", False, True),
        ({"event": "dropped", "reason": "Recipient List over Package Quota"}, "failed", False, False),
        ({"event": "spamreport"}, "delivered", False, True),
        ({"event": "unsubscribe"}, "handed", False, True),
        ({"event": "group_unsubscribe"}, "handed", False, True),
        *(({"event": name}, "handed", False, False) for name in ("processed", "deferred", "open", "click")),
        ({"event": "something new"}, "handed", False, False),
    ],
)
def test_each_event_does_what_it_means(
    survey: Asking,
    providers: StandIn,
    hooks: Hooks,
    delivery: str,
    event: dict[str, str],
    state_after: str,
    bounced: bool,
    opted_out: bool,
) -> None:
    assert hooks.events(providers.sendgrid.event(delivery, **event)) == 204
    customer = survey.customer(email=ADDRESS)
    assert state(survey) == state_after
    assert (customer["email_bounced_at"] is not None) == bounced
    assert (customer["email_opt_out_at"] is not None) == opted_out


def test_the_servers_own_words_are_not_kept_for_they_quote_the_address(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    reason = f"550 5.1.1 <{ADDRESS}>: unknown"
    hooks.events(providers.sendgrid.event(delivery, "bounce", type="bounce", status="5.1.1", reason=reason))
    kept = survey.one("SELECT reason FROM delivery")["reason"]
    assert "5.1.1" in kept and ADDRESS not in kept
    assert ADDRESS not in json.dumps(survey.events("delivery.reported"), default=str)


def test_a_bounce_wins_over_a_delivery_in_either_order(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    event = providers.sendgrid.event
    assert hooks.events(event(delivery, "bounce", type="bounce"), event(delivery, "delivered")) == 204
    assert state(survey) == "bounced"


def test_a_batch_that_an_answer_got_lost_of_is_finished_by_its_repetition(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = providers.sendgrid.event
    batch = [event(delivery, "delivered"), event(delivery, "spamreport")]
    working, calls = ledger.report, []

    def breaks(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise ConnectionError
        return working(*args)

    monkeypatch.setattr(ledger, "report", breaks)
    assert hooks.events(*batch) >= 500
    assert hooks.events(*batch) == 204
    assert [e["data"]["state"] for e in survey.events("delivery.reported")] == ["delivered", "complained"]


def test_an_uncertain_mail_is_settled_by_any_word_of_it(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    with survey.db.transaction() as tx:
        tx.execute("UPDATE delivery SET state = 'uncertain', settled_at = NULL")
    hooks.events(providers.sendgrid.event(delivery, "processed"))
    assert state(survey) == "handed"


def test_events_of_others_and_unreadable_ones_are_passed_over_without_a_trace(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    event = providers.sendgrid.event
    before = everything(survey)
    assert (
        hooks.events(
            event("01890000-0000-7000-8000-0000000000ff", "delivered"),
            {name: value for name, value in event(delivery, "delivered").items() if name != "delivery_id"},
            {name: value for name, value in event(delivery, "bounce").items() if name != "sg_event_id"},
            {**event(delivery, "bounce"), "sg_event_id": "\x00"},
            {**event(delivery, "bounce"), "timestamp": "yesterday"},
            {**event(delivery, "bounce"), "type": {"a": 1}},
            {**event(delivery, "bounce"), "delivery_id": ["a"]},
            "no event",
            None,
            [],
        )
        == 204
    )
    assert everything(survey) == before
    assert hooks.events(None, event(delivery, "delivered")) == 204
    assert state(survey) == "delivered"


def test_an_odd_event_is_taken_as_far_as_it_can_be_and_keeps_no_other_from_its_effect(
    survey: Asking, providers: StandIn, hooks: Hooks
) -> None:
    odd: list[tuple[dict[str, Any], str]] = [
        ({"status": "5.1.1\x00"}, "bounced"),
        ({"status": "\ud800"}, "bounced"),
        ({"status": ["5.1.1"]}, "bounced"),
        ({"status": "5" * 10_000}, "bounced"),
        ({"reason": {"text": 1}}, "bounced"),
        ({"reason": "\x00" * 10_000}, "bounced"),
        ({"sg_message_id": 17}, "bounced"),
        ({"email": ["\x00"], "ip": "\ud800"}, "bounced"),
        ({"timestamp": 10**30}, "uncertain"),
        ({"event": "dropped", "reason": "\ud800Invalid"}, "failed"),
        *(
            ({"event": "processed", "sg_message_id": id}, "handed")
            for id in ("a\x00b", "\ud800", 17, ["a"], "x" * 10_000)
        ),
        ({"event": "delivered"}, "delivered"),
    ]
    survey.ask({"customers": [survey.add() for _ in odd]})
    survey.send()
    with survey.db.transaction() as tx:
        tx.execute("UPDATE delivery SET state = 'uncertain', settled_at = NULL, provider_id = NULL")
    ids = providers.sendgrid.delivery_ids()
    batch = [
        providers.sendgrid.event(id, **{"event": "bounce", **more})
        for id, (more, _) in zip(ids, odd, strict=True)
    ]
    assert hooks.events(*batch) == 204
    found = {str(row["id"]): row for row in survey.all("SELECT * FROM delivery")}
    assert [found[id]["state"] for id in ids] == [after for _, after in odd]
    assert all(len(row["provider_id"] or "") <= 200 for row in found.values())


def test_bytes_and_numbers_that_nobody_can_read_spoil_only_their_own_field(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    event = providers.sendgrid.event(delivery, "bounce", status="5.1.1", reason="R", attempt="A")
    raw = json.dumps([event]).encode().replace(b'"A"', b"9" * 5000).replace(b'"R"', b'"na\xefve"')
    raw, headers = providers.sendgrid.signed(raw, survey.clock.now().timestamp())
    assert survey.http.post(URL, data=raw, headers=headers).status_code == 204
    assert state(survey) == "bounced" and "5.1.1" in survey.one("SELECT reason FROM delivery")["reason"]


def test_unsigned_forged_stale_truncated_and_foreign_ones_leave_no_trace(
    survey: Asking, providers: StandIn, delivery: str
) -> None:
    now = survey.clock.now().timestamp()
    ours, stranger = providers.sendgrid, SendGrid()
    raw, good = ours.signed([ours.event(delivery, "bounce", type="bounce")], now)
    name, stamp = "X-Twilio-Email-Event-Webhook-Signature", "X-Twilio-Email-Event-Webhook-Timestamp"
    before = everything(survey)
    der = base64.b64decode(good[name])
    for body, headers in (
        (raw, {}),
        (raw, {**good, name: ""}),
        (raw, {stamp: good[stamp]}),
        (raw, {name: good[name]}),
        (raw[:-1], good),
        (raw + b" ", good),
        (raw.replace(b"bounce", b"Bounce"), good),
        (raw, {**good, name: good[name][:-8]}),
        (raw, {**good, name: "not base64!"}),
        (raw, {**good, name: base64.b64encode(der[:-1]).decode()}),
        (raw, {**good, name: base64.b64encode(b"\x30\x00").decode()}),
        (raw, {**good, name: "é" * 90}),
        (raw, {**good, stamp: str(int(now) + 1)}),
        (raw, {**good, stamp: "soon"}),
        (raw, {**good, stamp: "9" * 40}),
        ours.signed(raw, now - 301),
        ours.signed(raw, now + 301),
        stranger.signed(raw, now),
    ):
        reply = survey.http.post(URL, data=body, headers=headers)
        assert reply.status_code == 401, headers
    for body in (b"", b"{}", b"nothing", b"[" * 200_000, b'"[]"', b"\xff"):
        raw, headers = ours.signed(body, now)
        assert survey.http.post(URL, data=raw, headers=headers).status_code == 422
    assert everything(survey) == before


def test_a_batch_four_minutes_old_still_counts(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    at = (survey.clock.now() - timedelta(minutes=4)).timestamp()
    assert hooks.events(providers.sendgrid.event(delivery, "delivered"), at=at) == 204
    assert state(survey) == "delivered"


def test_too_much_is_refused_unread(survey: Asking) -> None:
    assert survey.http.post(URL, data=b"x" * (3 * 2**20)).status_code == 413


def test_fault_20_the_same_batch_a_hundred_times_at_once_has_one_effect(
    survey: Asking, providers: StandIn, hooks: Hooks, delivery: str
) -> None:
    events = [providers.sendgrid.event(delivery, name) for name in ("delivered", "spamreport", "processed")]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: hooks.events(*events), range(100))) == {204}
    assert [e["data"]["state"] for e in survey.events("delivery.reported")] == ["delivered", "complained"]
    assert len(survey.all("SELECT 1 FROM webhook_event")) == 2


def test_without_sendgrid_there_is_no_such_route(survey: Asking, providers: StandIn) -> None:
    from dataclasses import replace

    raw, headers = providers.sendgrid.signed([], survey.clock.now().timestamp())
    here = survey.app.extensions["hearback"]
    here.settings = replace(here.settings, mail="mailbox", sendgrid=None)
    assert survey.http.post(URL, data=raw, headers=headers).status_code == 404
    assert survey.http.post("/webhooks/nobody", data=raw, headers=headers).status_code == 404
