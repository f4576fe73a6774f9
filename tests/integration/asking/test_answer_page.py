"""The answer page over HTTP: nothing by GET, one answer by POST, retries, revisions, quarantine, expiry."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from werkzeug.test import TestResponse

from tests.support.asking import Asking, form_of, score_link, trail_link


def test_opening_every_link_records_no_answer(survey: Asking) -> None:
    message = survey.invited()
    for score in range(11):
        assert survey.page(score_link(message, score)).status_code == 200
        survey.http.head(score_link(message, score))
    assert survey.all("SELECT * FROM response") == []
    assert survey.one("SELECT count(*) FROM click WHERE kind = 'get'")["count"] == 11
    assert survey.events("response.recorded") == []


def test_a_confirmed_click_is_one_answer_with_its_event(survey: Asking) -> None:
    message = survey.invited()
    survey.events()
    reply = survey.submit(score_link(message, 7), gesture="pointerdown", ms="900", webdriver="0")
    assert (reply.status_code, reply.headers["Location"]) == (303, trail_link(message) + "?w=saved")
    assert survey.response()["score"] == 7
    event = survey.events()[0]
    assert event["type"] == "response.recorded"
    assert event["data"]["band"] == "passive"
    assert event["data"]["state"] == "counted"
    evidence = survey.one("SELECT evidence FROM click WHERE kind = 'confirmed'")["evidence"]
    assert evidence == {"gesture": "pointerdown", "milliseconds": 900, "webdriver": False}
    assert "You gave us 7" in survey.page(trail_link(message)).text


def test_the_same_form_again_is_a_retry_with_the_same_reply(survey: Asking) -> None:
    message = survey.invited()
    path = score_link(message, 3)
    page = survey.page(path).text
    first = survey.submit(path, page=page, json=True)
    again = survey.submit(path, page=page, json=True)
    assert first.status_code == again.status_code == 200
    assert {**first.json, "nonce": ""} == {**again.json, "nonce": ""}  # type: ignore[dict-item]
    assert len(survey.all("SELECT * FROM response_version")) == 1
    assert len(survey.events("response.recorded")) == 1


def test_an_old_form_never_overwrites_a_newer_answer(survey: Asking) -> None:
    message = survey.invited()
    old = survey.page(score_link(message, 3)).text
    survey.submit(score_link(message, 9))
    survey.clock.advance(timedelta(minutes=1))
    reply = survey.submit(score_link(message, 3), page=old)
    assert reply.status_code == 409 and "Nothing was overwritten" in reply.text
    assert survey.response()["score"] == 9


def test_what_was_typed_into_an_old_form_is_still_in_the_box_and_can_be_sent(survey: Asking) -> None:
    message = survey.invited()
    path = trail_link(message)
    survey.submit(score_link(message, 9), comment="Fine")
    old = survey.page(path).text
    survey.submit(path, comment="Quite fine")
    reply = survey.submit(path, page=old, comment="Slow & rude")
    assert reply.status_code == 409 and ">Slow &amp; rude</textarea>" in reply.text
    assert survey.response()["comment"] == "Quite fine"
    assert survey.submit(path, page=reply.text, comment="Slow & rude").status_code == 303
    assert survey.response()["comment"] == "Slow & rude"


def test_an_old_form_with_an_empty_box_shows_the_words_that_are_recorded(survey: Asking) -> None:
    message = survey.invited()
    old = survey.page(score_link(message, 3)).text
    survey.submit(score_link(message, 9), comment="Fine")
    reply = survey.submit(score_link(message, 3), page=old, comment="")
    assert reply.status_code == 409 and ">Fine</textarea>" in reply.text


def test_a_change_of_mind_keeps_every_version(survey: Asking) -> None:
    message = survey.invited()
    path = trail_link(message)
    survey.submit(score_link(message, 8))
    survey.submit(path, comment="Slow  delivery\r\nat the door\x00")
    survey.submit(path, score="4")
    survey.submit(path, callback="please")
    survey.submit(path, callback="none")
    row = survey.response()
    assert (row["score"], row["comment"], row["callback"]) == (4, "Slow  delivery\nat the door", None)
    versions = survey.all("SELECT version, score, callback FROM response_version ORDER BY version")
    assert [(v["version"], v["score"], v["callback"]) for v in versions] == [
        (1, 8, None), (2, 8, None), (3, 4, None), (4, 4, "please"), (5, 4, None),
    ]  # fmt: skip
    types = [event["type"] for event in survey.events() if event["topic"] == "responses"]
    assert types == ["response.recorded"] + ["response.revised"] * 4


def test_the_same_answer_again_makes_no_new_version(survey: Asking) -> None:
    message = survey.invited()
    survey.submit(score_link(message, 8))
    survey.submit(trail_link(message), score="8")
    assert survey.response()["version"] == 1


def test_words_without_a_score_ask_for_the_score(survey: Asking) -> None:
    path = trail_link(survey.invited())
    assert survey.submit(path, comment="hello").status_code == 422
    assert survey.submit(path, comment="hello", json=True).status_code == 422
    assert survey.all("SELECT * FROM response") == []


def test_words_sent_without_a_score_are_still_in_the_box_and_go_with_it(survey: Asking) -> None:
    message = survey.invited()
    path = trail_link(message)
    reply = survey.submit(path, comment="Slow & rude")
    assert reply.status_code == 422 and "Please choose a number first." in reply.text
    assert ">Slow &amp; rude</textarea>" in reply.text
    survey.submit(path, page=reply.text, comment="Slow & rude", score="3")
    assert (survey.response()["score"], survey.response()["comment"]) == (3, "Slow & rude")


def test_several_scores_of_one_mail_within_seconds_are_quarantined(survey: Asking) -> None:
    message = survey.invited()
    for score in range(11):
        survey.page(score_link(message, score))
    survey.submit(score_link(message, 10))
    assert survey.response()["state"] == "quarantined"
    assert survey.response()["state_reason"] == "contradiction"
    # A person who comes later and answers is counted.
    survey.clock.advance(timedelta(minutes=5))
    survey.submit(score_link(message, 2))
    row = survey.response()
    assert (row["score"], row["state"]) == (2, "counted")


def test_two_forms_of_one_mail_sent_within_seconds_are_quarantined(survey: Asking) -> None:
    message = survey.invited()
    pages = {score: survey.page(score_link(message, score)).text for score in (0, 10)}
    with survey.db.transaction() as tx:
        tx.execute("DELETE FROM click")
    for score in (0, 10):
        survey.submit(score_link(message, score), page=pages[score])
    assert survey.response()["state"] == "quarantined"


def test_changing_ones_mind_on_the_page_at_once_is_no_contradiction(survey: Asking) -> None:
    message = survey.invited()
    survey.submit(score_link(message, 7))
    survey.submit(trail_link(message), score="9")
    row = survey.response()
    assert (row["score"], row["state"]) == (9, "counted")


@pytest.mark.parametrize("decoy_first", [True, False])
def test_the_decoy_form_taints_the_answer(survey: Asking, decoy_first: bool) -> None:
    message = survey.invited()
    path = trail_link(message)
    assert f'action="{path}/more"' in survey.page(path).text
    if decoy_first:
        survey.http.post(path + "/more", data={"more": "x"})
        survey.submit(score_link(message, 0))
    else:
        survey.submit(score_link(message, 0))
        survey.http.post(path + "/more", data={"more": "x"})
    row = survey.response()
    assert (row["state"], row["state_reason"]) == ("quarantined", "decoy")
    assert survey.events()[-1]["data"]["state"] == "quarantined"


def test_a_test_message_answers_without_counting(survey: Asking) -> None:
    from services.survey.commands import ask

    with survey.db.transaction() as tx:
        ask.send_test(tx, str(survey.program["id"]), "Me", "me@us.example", None, survey.fingerprints)
    message = survey.send()[0]
    assert "test message" in message.text
    survey.submit(score_link(message, 0))
    event = survey.events("response.recorded")[0]
    assert (event["data"]["state"], event["data"]["test"]) == ("excluded", True)
    assert survey.ask()["total"] == 0


def test_after_expiry_the_answer_is_read_only(survey: Asking) -> None:
    message = survey.invited()
    path = trail_link(message)
    survey.submit(score_link(message, 5), comment="meh")
    form = survey.page(path).text
    survey.clock.advance(timedelta(days=31))
    page = survey.page(path).text
    assert "no longer be changed" in page and "meh" in page and "<form id" not in page
    assert survey.submit(path, page=form, score="9", json=True).status_code == 410
    assert survey.response()["score"] == 5
    survey.due()
    assert [e["data"]["invitation_id"] for e in survey.events("invitation.expired")] == [
        str(survey.response()["invitation_id"])
    ]
    survey.clock.advance(timedelta(days=365))
    assert survey.page(path).status_code == 404


def test_an_unknown_link_is_a_friendly_page_and_many_are_slowed_down(survey: Asking) -> None:
    reply = survey.http.get("/a/nothing", headers={"Accept": "text/html", "Accept-Language": "de"})
    assert reply.status_code == 404 and "Dieser Link führt nirgendwohin" in reply.text
    for _ in range(30):
        reply = survey.page("/a/nothing")
    assert reply.status_code == 429
    assert survey.page(trail_link(survey.invited())).status_code == 200


@pytest.mark.parametrize(
    ("language", "words"), [("en", "You gave us 4"), ("de", "Sie geben uns 4"), ("es", "un 4")]
)
def test_the_page_speaks_the_customers_language_and_is_light(
    survey: Asking, language: str, words: str
) -> None:
    message = survey.invited(language=language)
    reply = survey.page(score_link(message, 4))
    assert words in reply.text and f'<html lang="{language}">' in reply.text
    assert len(reply.data) < 20_000
    assert not re.search(r'(src|href)="(https?:)?//', reply.text)
    assert "nonce-" in reply.headers["Content-Security-Policy"]


def test_a_page_is_shown_even_when_evidence_cannot_be_kept(survey: Asking) -> None:
    path = score_link(survey.invited(), 4)
    with survey.db.transaction() as tx:
        tx.execute("ALTER TABLE click RENAME TO click_gone")
    try:
        assert survey.page(path).status_code == 200
    finally:
        with survey.db.transaction() as tx:
            tx.execute("ALTER TABLE click_gone RENAME TO click")


def test_a_damaged_form_changes_nothing(survey: Asking) -> None:
    path = trail_link(survey.invited())
    hidden = form_of(survey.page(path).text)
    for wrong in ({"nonce": ""}, {"seen": "x"}, {"score": "11"}, {"score": "-1"}, {"score": "٣"}):
        reply = survey.http.post(
            path, data={**hidden, "score": "5", **wrong}, headers={"Accept": "application/json"}
        )
        assert reply.status_code == 422, wrong
    assert survey.all("SELECT * FROM response") == []


def test_one_form_sent_many_times_at_once_is_one_answer(survey: Asking) -> None:
    message = survey.invited()
    path = trail_link(message)
    form = {**form_of(survey.page(score_link(message, 3)).text), "comment": "slow"}
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: post(survey, path, form), range(16)))
    assert [reply.status_code for reply in replies] == [200] * 16
    assert {(reply.get_json()["effect"], reply.get_json()["version"]) for reply in replies} == {("saved", 1)}
    assert len(survey.all("SELECT * FROM response_version")) == 1


def test_of_many_forms_at_once_one_is_saved_and_the_others_are_told(survey: Asking) -> None:
    message = survey.invited()
    path = trail_link(message)
    forms = [{**form_of(survey.page(path).text), "score": str(score)} for score in range(8)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda form: post(survey, path, form), forms))
    effects = [reply.get_json()["effect"] for reply in replies]
    assert sorted(effects) == ["saved"] + ["stale"] * 7
    recorded = survey.response()["score"]
    assert effects[recorded] == "saved"
    assert {reply.get_json()["score"] for reply in replies} == {recorded}


def post(survey: Asking, path: str, form: dict[str, str]) -> TestResponse:
    client = survey.app.test_client()
    return client.post(path, data=form, headers={"Accept": "application/json"})
