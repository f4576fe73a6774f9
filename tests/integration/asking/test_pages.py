"""Staff's pages and the API of programs, asks, answers and uncertain messages."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner

from services.survey.cli_ask import ask_command
from shared.channels import UncertainError
from tests.support.asking import Asking, score_link


@pytest.mark.parametrize("role", ["agent", "viewer"])
def test_programs_are_for_leads_and_admins(survey: Asking, role: str) -> None:
    assert survey.browser(role).get("/survey/programs").status_code == 403


def test_every_page_is_there_and_says_what_it_is_for(survey: Asking) -> None:
    survey.submit(score_link(survey.invited(name="Ann"), 9))
    survey.add(external_id="x", email=None)
    run = survey.ask({"customers": ["x"]})
    lead = survey.browser("lead")
    program = survey.program["id"]
    pages = {
        "/survey/programs": "1 program can ask",
        f"/survey/programs/{program}": "“Recommend” would reach 0 customers now",
        f"/survey/programs/{program}?language=de": "Eine Frage von Example Ltd",
        f"/survey/programs/{program}/ask": "Nobody will be asked",
        f"/survey/programs/{program}/ask?look=1&who=account": "the field for your choice is empty",
        f"/survey/asks/{run['id']}": "no address to write to",
        "/survey/uncertain": "Every message is accounted for",
        f"/survey/responses/{survey.response()['id']}/exclude": "Should this answer of Ann not count?",
    }
    for path, words in pages.items():
        reply = lead.get(path)
        assert reply.status_code == 200 and words in reply.text, path
    for path in ("/survey/programs/x", "/survey/asks/x", "/survey/responses/x/exclude"):
        assert lead.get(path).status_code == 404
    frame = lead.get(f"/survey/programs/{program}/preview/es")
    assert "¿Qué probabilidad" in frame.text and "sandbox" in frame.headers["Content-Security-Policy"]


def test_asking_from_the_page(survey: Asking) -> None:
    survey.add(touchpoint="order")
    survey.add()
    lead = survey.browser("lead")
    path = f"/survey/programs/{survey.program['id']}/ask"
    assert "Ask 1 customer" in lead.get(path + "?look=1&who=touchpoint&touchpoint=order").text
    reply = lead.post(path, {"who": "touchpoint", "touchpoint": "order"})
    assert reply.status_code == 303
    assert "1 customer was asked" in lead.get(reply.headers["Location"]).text
    assert lead.post(path, {"who": "account"}).status_code == 422


def test_words_are_saved_per_language_or_shown_again_with_what_is_wrong(survey: Asking) -> None:
    lead = survey.browser("lead")
    path = f"/survey/programs/{survey.program['id']}"
    survey.events()
    assert lead.post(path, {"language": "de", "subject": "Kurz gefragt"}).status_code == 303
    event = survey.events("program.changed")[0]
    assert (event["version"], event["data"]["wording"]["de"]["subject"]) == (2, "Kurz gefragt")
    assert lead.post(path, {"language": "de", "subject": "Kurz gefragt"}).status_code == 303
    assert survey.events() == []
    reply = lead.post(path, {"language": "de", "sms": "Ohne Link STOP", "answer_days": "0"})
    assert reply.status_code == 422
    assert "Keep {link}" in reply.text and "Ohne Link STOP" in reply.text and "1 to 365" in reply.text
    lead.post(path + "/state", {"state": "paused"})
    assert "is paused" in lead.get(path).text
    assert "can ask, 1 paused" in lead.get("/survey/programs").text
    assert lead.post("/survey/programs", {"name": "recommend"}).status_code in (303, 409)
    assert lead.post("/survey/programs", {"name": " "}).status_code == 422


def test_a_test_goes_where_one_says(survey: Asking) -> None:
    lead = survey.browser("lead", "lea@us.example")
    path = f"/survey/programs/{survey.program['id']}/test"
    for to in ("", "+49 30 1234567", "nonsense"):
        assert lead.post(path, {"to": to}).status_code == 303
    assert [message.to for message in survey.send()] == ["lea@us.example", "+49301234567"]


def test_a_person_decides_about_uncertain_messages(survey: Asking) -> None:
    for _ in range(2):
        survey.add(name="Ann")
    survey.provider.refuse = UncertainError("The mailbox did not answer in time.")
    survey.ask()
    survey.send()
    survey.provider.refuse = None
    lead = survey.browser("lead")
    page = lead.get("/survey/uncertain").text
    assert "2 messages may or may not have left" in page
    first, second = re.findall(r"/survey/uncertain/([\w-]+)/again", page)
    assert lead.post(f"/survey/uncertain/{first}/again").status_code == 303
    assert lead.post(f"/survey/uncertain/{first}/again").status_code == 409
    assert lead.post(f"/survey/uncertain/{second}/leave").status_code == 303
    assert len(survey.send()) == 1
    assert "Every message is accounted for" in lead.get("/survey/uncertain").text


def test_excluding_from_the_page(survey: Asking) -> None:
    survey.submit(score_link(survey.invited(), 9))
    lead = survey.browser("lead")
    path = f"/survey/responses/{survey.response()['id']}/exclude"
    assert lead.post(path, {"reason": ""}).status_code == 422
    assert lead.post(path, {"reason": "our trial"}).status_code == 303
    assert "our trial" in lead.get(path).text
    assert lead.post(path, {"undo": "1"}).status_code == 303
    assert survey.response()["state"] == "counted"


def test_the_api_does_what_the_pages_do(survey: Asking) -> None:
    api = survey.api("programs:read", "programs:write", "responses:read")
    survey.add(external_id="a", email="a@example.com")
    survey.add(external_id="b", email=None)
    body: dict[str, Any] = {"name": "After delivery", "touchpoint": "delivery", "channels": ["email"]}
    created = api("POST", "/survey/api/programs", json=body, headers={"Idempotency-Key": "p1"})
    again = api("POST", "/survey/api/programs", json=body, headers={"Idempotency-Key": "p1"})
    assert created.status_code == 201 and created.get_json() == again.get_json()
    assert api("POST", "/survey/api/programs", json=body).status_code == 409
    assert len(api("GET", "/survey/api/programs").get_json()["programs"]) == 2
    ask = f"/survey/api/programs/{created.get_json()['id']}/ask"
    dry = api("POST", ask, json={"audience": {"all": True}, "dry_run": True}).get_json()
    assert (dry["asked"], dry["reasons"], dry["complete"]) == (1, {"no_address": 1}, True)
    for _ in range(2):
        body = {"audience": {"customers": ["a", "b"]}}
        reply = api("POST", ask, json=body, headers={"Idempotency-Key": "ask-1"})
        assert (
            reply.status_code == 200
            and reply.get_json()["asked"] == 1
            and reply.get_json()["state"] == "done"
        )
    assert api("GET", f"/survey/api/asks/{reply.get_json()['id']}").get_json()["states"] == {"queued": 1}
    assert api("POST", ask, json={"audience": {}}).status_code == 422
    assert api("POST", ask, json={}).status_code == 422
    survey.submit(score_link(survey.send()[0], 3), comment="slow")
    assert api("GET", "/survey/api/invitations?state=sent").get_json()["invitations"][0]["channel"] == "email"
    rows = api("GET", "/survey/api/responses?score_max=6").get_json()["responses"]
    assert [(row["score"], row["comment"], row["band"]) for row in rows] == [(3, "slow", "detractor")]
    one = api("GET", f"/survey/api/responses/{rows[0]['id']}").get_json()
    assert [version["score"] for version in one["versions"]] == [3]
    assert (
        api("POST", f"/survey/api/responses/{rows[0]['id']}/exclude", json={"reason": "x" * 9}).status_code
        == 403
    )
    paused = api("PATCH", f"/survey/api/programs/{created.get_json()['id']}", json={"state": "paused"})
    assert paused.get_json()["state"] == "paused"
    assert api("POST", ask, json={"audience": {"all": True}}).status_code == 409


def test_lists_page_by_cursor(survey: Asking) -> None:
    api = survey.api("responses:read")
    for _ in range(5):
        survey.submit(score_link(survey.invited(), 9))
    seen, cursor = [], ""
    while True:
        page = api("GET", f"/survey/api/responses?limit=2&cursor={cursor}").get_json()
        seen += [row["id"] for row in page["responses"]]
        cursor = page["next"]
        if not cursor:
            break
    assert len(seen) == len(set(seen)) == 5
    assert api("GET", "/survey/api/responses?cursor=xx").status_code == 422


def test_asking_on_the_terminal(survey: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.survey.cli.load", lambda **_: survey.settings)
    monkeypatch.setattr("services.survey.cli.SystemClock", lambda: survey.clock)
    survey.add()
    dry = CliRunner().invoke(ask_command, ["recommend", "--all", "--dry-run"])
    assert dry.exit_code == 0 and "1 of 1 customers would be asked." in dry.output
    done = CliRunner().invoke(ask_command, ["Recommend", "--all", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["asked"] == 1
    assert len(survey.send()) == 1
    wrong = CliRunner().invoke(ask_command, ["nothing", "--all"])
    assert str(wrong.exception) == "There is no program 'nothing'. There are: Recommend."
