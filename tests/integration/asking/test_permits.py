"""Permits for followup over HTTP: who may be written to, where, how often; settling; fresh trail links."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from services.survey.commands import opt_out, preferences
from shared.web import service_auth
from tests.support.asking import Asking, score_link


def call(survey: Asking, path: str, body: dict[str, Any], purpose: str = "permits") -> Any:
    headers = service_auth.header(survey.settings, purpose, survey.clock)
    return survey.http.post(f"/survey/internal/permits{path}", json=body, headers=headers)


def request(customer_id: str, **more: Any) -> dict[str, Any]:
    ids = {"id": str(uuid.uuid4()), "ref_id": str(uuid.uuid4())}
    return {
        **ids,
        "kind": "notice",
        "customer_id": customer_id,
        "response_id": None,
        "prefer_channel": None,
        **more,
    }


def answered(survey: Asking, **values: Any) -> tuple[str, str]:
    survey.submit(score_link(survey.invited(**values), 3))
    row = survey.response()
    return str(row["customer_id"]), str(row["id"])


def test_only_our_own_services_may_ask(survey: Asking) -> None:
    assert survey.http.post("/survey/internal/permits", json={"requests": []}).status_code == 401


def test_a_permit_brings_the_address_and_fresh_links(survey: Asking) -> None:
    customer, response = answered(survey, email="ann@example.com", name="Ann", language="es")
    wanted = request(customer, response_id=response)
    granted = call(survey, "", {"requests": [wanted]}).json["granted"][0]
    assert (granted["id"], granted["channel"], granted["to"]) == (wanted["id"], "email", "ann@example.com")
    assert (granted["name"], granted["language"], granted["expires_in"]) == ("Ann", "es", 15)
    for name in ("trail", "preferences"):
        assert survey.page("/" + granted["links"][name].split("/", 3)[3]).status_code == 200
    assert survey.one("SELECT state, kind FROM delivery WHERE id = %s", (wanted["id"],)) == {
        "state": "claimed", "kind": "notice",
    }  # fmt: skip


def test_the_preferred_channel_is_taken_when_it_may_be(survey: Asking) -> None:
    customer = survey.add(email="ann@example.com", phone="+4930123456")
    body = {"requests": [request(customer, prefer_channel="sms")]}
    assert call(survey, "", body).json["granted"][0]["channel"] == "sms"
    with survey.db.transaction() as tx:
        opt_out.opt_out(tx, customer, "sms", "stop", survey.fingerprints)
    body = {"requests": [request(customer, prefer_channel="sms")]}
    assert call(survey, "", body).json["granted"][0]["channel"] == "email"


def test_who_may_not_be_written_to_is_refused_with_the_reason(survey: Asking) -> None:
    out, nowhere = survey.add(), survey.add(external_id="x", email=None)
    with survey.db.transaction() as tx:
        opt_out.opt_out(tx, out, "email", "link", survey.fingerprints)
    requests = [request(out), request(nowhere), request(str(uuid.uuid4()))]
    refused = call(survey, "", {"requests": requests}).json["refused"]
    assert [one["reason"] for one in refused] == ["opted_out", "no_address", "unknown_customer"]


def test_the_budget_holds_within_one_batch_and_a_failure_gives_it_back(survey: Asking) -> None:
    customer = survey.add()
    requests = [request(customer) for _ in range(4)]
    reply = call(survey, "", {"requests": requests}).json
    assert len(reply["granted"]) == 3
    assert [one["reason"] for one in reply["refused"]] == ["contact_limit"]
    results = [
        {"id": requests[0]["id"], "result": "handed", "provider_id": "p"},
        {"id": requests[1]["id"], "result": "failed", "reason": "no such address"},
        {"id": requests[2]["id"], "result": "uncertain"},
    ]
    survey.events()
    for _ in range(2):
        assert call(survey, "/settle", {"results": results}).status_code == 204
    assert [e["data"]["state"] for e in survey.events("delivery.reported")] == ["failed"]
    reply = call(survey, "", {"requests": [request(customer), request(customer)]}).json
    assert (len(reply["granted"]), len(reply["refused"])) == (1, 1)


def test_asking_again_after_a_lost_reply_grants_once_more_but_never_after_settling(survey: Asking) -> None:
    body = {"requests": [request(survey.add())]}
    for _ in range(2):
        assert len(call(survey, "", body).json["granted"]) == 1
    call(survey, "/settle", {"results": [{"id": body["requests"][0]["id"], "result": "handed"}]})
    assert call(survey, "", body).json["refused"][0]["reason"] == "settled"


def test_a_message_that_came_back_may_be_permitted_again(survey: Asking) -> None:
    body = {"requests": [request(survey.add())]}
    call(survey, "", body)
    call(survey, "/settle", {"results": [{"id": body["requests"][0]["id"], "result": "returned"}]})
    assert len(call(survey, "", body).json["granted"]) == 1


def test_a_late_word_on_an_earlier_permit_closes_no_later_one(survey: Asking) -> None:
    customer = survey.add()
    wanted = request(customer, claim="the first")
    assert call(survey, "", {"requests": [wanted]}).json["granted"]
    returned = {"id": wanted["id"], "result": "returned", "claim": "the first"}
    assert call(survey, "/settle", {"results": [returned]}).status_code == 204
    assert call(survey, "", {"requests": [{**wanted, "claim": "the second"}]}).json["granted"]
    nobody_knows = {"id": wanted["id"], "result": "returned", "claim": None}
    for late in (returned, {**returned, "result": "failed"}, nobody_knows):
        assert call(survey, "/settle", {"results": [late]}).status_code == 204
        assert preferences.wait(survey.db, customer, ("email",), limit=0)
    assert survey.events("delivery.reported") == []
    # A permit that has run out may have been that of a sender that died.
    survey.clock.advance(timedelta(seconds=61))
    call(survey, "/settle", {"results": [nobody_knows]})
    assert survey.one("SELECT state FROM delivery")["state"] == "failed"


def test_what_has_left_counts_whenever_it_is_told(survey: Asking) -> None:
    wanted = request(survey.add(), claim="the first")
    call(survey, "", {"requests": [wanted]})
    call(survey, "", {"requests": [{**wanted, "claim": "the second"}]})
    handed = {"id": wanted["id"], "result": "handed", "provider_id": "p", "claim": "the first"}
    call(survey, "/settle", {"results": [handed]})
    assert survey.one("SELECT state FROM delivery")["state"] == "handed"


def test_a_damaged_request_is_refused(survey: Asking) -> None:
    reply = call(survey, "", {"requests": [{"id": "x"}]})
    assert reply.status_code == 422 and reply.json["errors"]
