"""Changes: drafted, previewed with their audience, published once, told to more, withdrawn."""

from __future__ import annotations

import threading
import time
import uuid
from datetime import date, timedelta
from typing import Any

import pytest

from services.followup import handlers, rebuild
from services.followup.commands import changes, notices, themes
from services.followup.domain.by import By
from services.followup.domain.change import Draft
from services.followup.queries import audience
from services.followup.queries import changes as queries
from services.followup.queries import themes as theme_queries
from shared.db import Row
from shared.errors import Conflict, Invalid, NotFound
from tests.support.followup import Followup, account, new_id

LEAD = By(None, "Lea Lead")


class Story:
    """A company with customers who answered, and the theme "Delivery late"."""

    def __init__(self, followup: Followup) -> None:
        self.followup = followup
        self.theme = followup.one("SELECT id FROM theme WHERE name = 'Delivery late'")["id"]

    def customer(self, **more: Any) -> str:
        customer = new_id()
        self.followup.apply(self.followup.customer(customer, **more))
        return customer

    def answer(self, customer: str, score: int, comment: str | None = None, **more: Any) -> str:
        response = new_id()
        self.followup.apply(
            self.followup.response(customer, score, response_id=response, comment=comment, **more)
        )
        return response

    def tie(self, *responses: str) -> None:
        with self.followup.db.transaction() as tx:
            themes.tie(tx, self.theme, list(responses), None)

    def resolve(self, customer: str) -> str:
        """Resolves the customer's open task with the theme, as a person would."""
        with self.followup.db.transaction() as tx:
            task = tx.one(
                "UPDATE task SET state = 'resolved', theme_id = %s, resolved_at = %s"
                " WHERE customer_id = %s AND state = 'open' RETURNING id",
                (self.theme, tx.now, customer),
            )
        assert task
        return str(task["id"])

    def draft(self, **more: Any) -> str:
        words = {
            "title": "Saturdays",
            "was_wrong": "Too late.",
            "is_different": "On Saturdays.",
            "language": "en",
        }
        with self.followup.db.transaction() as tx:
            return changes.create(tx, Draft(theme_ids=(self.theme,), **{**words, **more}), LEAD)

    def publish(self, change: str, **more: Any) -> Row:
        with self.followup.db.transaction() as tx:
            return changes.publish(tx, change, LEAD, **more)[0]

    def people(self, change: str) -> list[Row]:
        with self.followup.db.transaction() as tx:
            return audience.people(tx, queries.one(tx, change))

    def size(self, change: str) -> audience.Size:
        with self.followup.db.transaction() as tx:
            return audience.size(tx, queries.one(tx, change))

    def notices(self) -> list[Row]:
        return self.followup.all("SELECT * FROM notice ORDER BY customer_id")


@pytest.fixture
def story(followup: Followup) -> Story:
    return Story(followup)


def test_finds_those_behind_resolved_tasks_and_tied_answers(story: Story) -> None:
    called, passive, other = story.customer(), story.customer(), story.customer()
    story.answer(called, 3, "Three days late")
    task = story.resolve(called)
    tied = story.answer(passive, 8, "Late, but fine")
    story.answer(other, 2, "Too expensive")
    story.tie(tied)
    change = story.draft()

    people = {person["customer_id"]: person for person in story.people(change)}

    assert set(people) == {called, passive}
    assert people[called]["why"] == [{"theme": "Delivery late", "task_id": task, "by": None}]
    assert people[passive]["why"][0]["task_id"] is None
    assert people[passive]["comment"] == "Late, but fine"


def test_an_open_or_reopened_task_does_not_count(story: Story) -> None:
    customer = story.customer()
    story.answer(customer, 3, "Late")

    assert story.people(story.draft()) == []


def test_one_answer_per_customer_the_newest_with_words(story: Story) -> None:
    clock = story.followup.clock
    customer = story.customer()
    first = story.answer(customer, 3, "Late")
    clock.advance(timedelta(days=1))
    second = story.answer(customer, 4, "Late again")
    clock.advance(timedelta(days=1))
    silent = story.answer(customer, 5, " ")
    story.tie(first, second, silent)

    assert [person["response_id"] for person in story.people(story.draft())] == [second]


def test_without_any_words_the_newest_answer_stands(story: Story) -> None:
    customer = story.customer()
    first = story.answer(customer, 3)
    story.followup.clock.advance(timedelta(days=1))
    second = story.answer(customer, 4)
    story.tie(first, second)

    assert [person["response_id"] for person in story.people(story.draft())] == [second]


def test_leaves_out_excluded_quarantined_erased_and_older_answers(story: Story) -> None:
    clock = story.followup.clock
    old, kept, excluded, quarantined, erased = (story.customer() for _ in range(5))
    story.tie(story.answer(old, 3, "Late in February"))
    clock.advance(timedelta(days=30))
    story.tie(story.answer(kept, 3, "Late in April"))
    story.tie(story.answer(quarantined, 3, "Late", state="quarantined"))
    test = story.answer(excluded, 3, "Just a test")
    story.tie(test, story.answer(erased, 3, "Late"))
    story.followup.apply(
        story.followup.response(
            excluded, 3, response_id=test, type_="response.excluded", comment="Just a test", state="excluded"
        )
    )
    story.followup.apply(story.followup.erasure(erased))

    change = story.draft(since=date(2026, 4, 1))

    assert [person["customer_id"] for person in story.people(change)] == [kept]


def test_says_who_cannot_be_reached_and_why(story: Story) -> None:
    reached = story.customer()
    silent = story.customer(
        may_email=False,
        may_sms=False,
        email_opt_out_at="2026-03-01T10:00:00Z",
        sms_opt_out_at="2026-03-01T10:00:00Z",
    )
    nowhere = story.customer(may_email=False, may_sms=False, email=None, phone=None)
    broken = story.customer(may_email=False, may_sms=False, phone=None)
    for customer in (reached, silent, nowhere, broken):
        story.tie(story.answer(customer, 3, "Late"))
    unheard_of = new_id()
    story.tie(story.answer(unheard_of, 3, "Late"))

    size = story.size(story.draft())

    assert (size.total, size.reachable) == (5, 1)
    assert size.unreachable == {"opted_out": 1, "no_address": 1, "bounced": 1, "not_known": 1}


def test_publishing_queues_one_notice_and_one_delivery_each(story: Story) -> None:
    customer = story.customer()
    response = story.answer(customer, 3, "Late " * 100)
    story.tie(response)
    change = story.draft()

    published = story.publish(change)

    assert published["audience_count"] == 1
    (notice,) = story.notices()
    delivery = story.followup.one("SELECT * FROM delivery WHERE kind = 'notice'")
    assert (notice["state"], notice["response_id"]) == ("queued", response)
    assert len(notice["quote"]) <= 280 and notice["quote"].endswith("Late…")
    assert (delivery["id"], delivery["ref_id"]) == (notice["delivery_id"], notice["id"])
    (event,) = story.followup.published("change.published")
    assert event["data"]["audience_count"] == 1
    assert event["data"]["published_by"] == "Lea Lead"
    assert [theme["name"] for theme in event["data"]["themes"]] == ["Delivery late"]


def test_publishing_twice_tells_once(story: Story) -> None:
    story.tie(story.answer(story.customer(), 3, "Late"))
    change = story.draft()

    story.publish(change)
    again = story.publish(change)

    assert again["state"] == "published"
    assert len(story.notices()) == 1
    assert len(story.followup.published("change.published")) == 1


def test_two_leads_at_once_tell_once(story: Story) -> None:
    for _ in range(20):
        story.tie(story.answer(story.customer(), 3, "Late"))
    change = story.draft()
    did: list[bool] = []
    both = threading.Barrier(2)

    def press() -> None:
        both.wait()
        with story.followup.db.transaction() as tx:
            did.append(changes.publish(tx, change, LEAD)[1])

    leads = [threading.Thread(target=press) for _ in range(2)]
    for lead in leads:
        lead.start()
    for lead in leads:
        lead.join()

    assert sorted(did) == [False, True]
    assert len(story.notices()) == 20
    assert len(story.followup.published("change.published")) == 1


def test_refuses_to_publish_what_was_not_previewed(story: Story) -> None:
    story.tie(story.answer(story.customer(), 3, "Late"))
    change = story.draft()
    with pytest.raises(Conflict, match="1 customers instead of 2"):
        story.publish(change, expected=2)
    with pytest.raises(Conflict, match="Somebody else"):
        story.publish(change, version=7)

    assert story.notices() == []


def test_a_big_audience_goes_in_batches(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "BATCH", 7)
    for _ in range(23):
        story.tie(story.answer(story.customer(), 3, "Late"))

    assert story.publish(story.draft())["audience_count"] == 23
    assert len(story.notices()) == 23


def test_an_erasure_under_way_wins_over_publishing(story: Story) -> None:
    followup = story.followup
    kept, erased = story.customer(), story.customer()
    for customer in (kept, erased):
        story.tie(story.answer(customer, 3, "Late"))
    change = story.draft()
    publishing = threading.Thread(target=story.publish, args=(change,))

    with followup.db.transaction() as tx:
        handlers.apply(tx, [followup.erasure(erased)])
        publishing.start()
        with followup.db.transaction() as other:
            for _ in range(200):
                if other.value("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    break
                time.sleep(0.02)
    publishing.join()

    assert [notice["customer_id"] for notice in story.notices()] == [kept]
    assert not followup.all("SELECT 1 FROM delivery WHERE customer_id = %s", erased)


def test_tells_those_tied_later_but_not_those_who_answered_later(story: Story) -> None:
    early, late, newcomer = (story.customer() for _ in range(3))
    story.tie(story.answer(early, 3, "Late"))
    before = story.answer(late, 8, "A bit late")
    change = story.draft()
    story.publish(change)
    story.followup.clock.advance(timedelta(hours=1))
    story.tie(before, story.answer(newcomer, 8, "Late in spite of it"))

    with story.followup.db.transaction() as tx:
        row, told = changes.tell_more(tx, change, expected=1)

    assert (told, row["audience_count"]) == (1, 2)
    assert {notice["customer_id"] for notice in story.notices()} == {early, late}
    events = story.followup.published("change.published")
    assert [event["data"]["audience_count"] for event in events] == [1, 2]
    assert events[1]["version"] > events[0]["version"]
    with story.followup.db.transaction() as tx:
        assert changes.tell_more(tx, change)[1] == 0


def test_withdrawing_stops_what_still_waits(story: Story) -> None:
    sent, waiting = story.customer(), story.customer()
    for customer in (sent, waiting):
        story.tie(story.answer(customer, 3, "Late"))
    change = story.draft()
    story.publish(change)
    first = next(n for n in story.notices() if n["customer_id"] == sent)
    with story.followup.db.transaction() as tx:
        tx.execute("UPDATE delivery SET state = 'handed' WHERE id = %s", (first["delivery_id"],))
        notices.sent(tx, first["id"], first["delivery_id"], "email", tx.now)

    with story.followup.db.transaction() as tx:
        row, stopped = changes.withdraw(tx, change)
        assert changes.withdraw(tx, change)[1] == 0

    assert (row["state"], stopped) == ("withdrawn", 1)
    states = {notice["customer_id"]: (notice["state"], notice["skip_reason"]) for notice in story.notices()}
    assert states == {sent: ("sent", None), waiting: ("skipped", "withdrawn")}
    assert len(story.followup.published("change.withdrawn")) == 1
    assert [e["data"]["reason"] for e in story.followup.published("notice.skipped")] == ["withdrawn"]
    assert not story.followup.all("SELECT 1 FROM delivery WHERE state = 'queued' AND kind = 'notice'")


def test_a_draft_is_put_aside_and_taken_up_again_in_silence(story: Story) -> None:
    change = story.draft()
    with story.followup.db.transaction() as tx:
        changes.withdraw(tx, change)
        with pytest.raises(Conflict):
            changes.publish(tx, change, LEAD)
        assert changes.restore(tx, change)["state"] == "draft"

    assert story.followup.published("change.published") == []
    assert story.followup.published("change.withdrawn") == []


def test_a_published_change_keeps_its_words(story: Story) -> None:
    change = story.draft()
    story.publish(change)
    with story.followup.db.transaction() as tx:
        draft = Draft("Other", "words", "now", "en", None, (story.theme,))
        with pytest.raises(Conflict):
            changes.save(tx, change, draft)
        changes.withdraw(tx, change)
        with pytest.raises(Conflict):
            changes.restore(tx, change)


def test_saving_over_somebody_else_is_refused(story: Story) -> None:
    change = story.draft()
    draft = Draft("Other", "words", "now", "de", None, (story.theme,))
    with story.followup.db.transaction() as tx:
        saved = changes.save(tx, change, draft, 1)
    assert (saved["title"], saved["version"]) == ("Other", 2)
    with pytest.raises(Conflict), story.followup.db.transaction() as tx:
        changes.save(tx, change, draft, 1)


def test_says_what_a_draft_lacks(story: Story) -> None:
    with pytest.raises(Invalid) as error, story.followup.db.transaction() as tx:
        changes.create(tx, Draft(language="fr", since=date(2027, 1, 1), theme_ids=(str(uuid.uuid4()),)), LEAD)
    assert set(error.value.fields) == {"title", "was_wrong", "is_different", "language", "since", "theme_ids"}


def test_publishes_again_for_a_rebuild_with_the_same_ids(story: Story) -> None:
    followup = story.followup
    erased, customer = story.customer(), story.customer()
    story.tie(story.answer(customer, 3, "Late"), story.answer(erased, 3, "Late"))
    story.draft(title="Never published")
    change = story.draft()
    story.publish(change)
    for notice in story.notices():
        with followup.db.transaction() as tx:
            notices.sent(tx, notice["id"], notice["delivery_id"], "email", tx.now)
    followup.apply(followup.erasure(erased))
    before = followup.all("SELECT event_id, key, type FROM outbox WHERE type ~ '^(change|notice)'")

    assert rebuild.republish(followup.db, ["changes", "notices"]) == 2

    again = followup.all("SELECT event_id, key, type FROM outbox WHERE replay AND type ~ '^(change|notice)'")
    assert {row["type"] for row in again} == {"change.published", "notice.sent"}
    assert {row["event_id"] for row in again} <= {row["event_id"] for row in before}
    assert erased not in {row["key"] for row in again}


def test_themes_are_added_renamed_retired_and_brought_back(story: Story) -> None:
    with story.followup.db.transaction() as tx:
        theme = themes.add(tx, "  Opening   hours ")
        assert theme["name"] == "Opening hours"
        with pytest.raises(Conflict):
            themes.add(tx, "opening HOURS")
        with pytest.raises(Conflict):
            themes.rename(tx, theme["id"], "price")
        themes.rename(tx, theme["id"], "When we are open")
        themes.retire(tx, theme["id"])
        assert "When we are open" not in [row["name"] for row in theme_queries.active(tx)]
        assert themes.add(tx, "when we are open")["id"] == theme["id"]
        assert "when we are open" in [row["name"] for row in theme_queries.active(tx)]
        with pytest.raises(Invalid):
            themes.add(tx, " ")
        with pytest.raises(NotFound):
            themes.retire(tx, "nonsense")


def test_searches_recent_answers_by_all_their_words(story: Story) -> None:
    customer = story.customer(account=account())
    late = story.answer(customer, 8, "Delivery was LATE by 100% of a day")
    story.answer(customer, 8, "Price is fine")
    change = story.draft()
    story.tie(late)
    with story.followup.db.transaction() as tx:
        found = queries.search_answers(tx, change, "late delivery")
        assert [(row["id"], row["through"]) for row in found] == [(late, "tied")]
        assert [row["id"] for row in queries.search_answers(tx, change, "100%")] == [late]
        assert queries.search_answers(tx, change, "1_0") == []
        assert len(queries.search_answers(tx, change, "")) == 2
