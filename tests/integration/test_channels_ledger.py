"""The ledger: a message leaves at most once per decision, and what became of it is never guessed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import get_args

import pytest

from shared.channels import ledger
from shared.channels.ledger import NewDelivery, Report
from shared.clock import ManualClock
from shared.db import Database
from shared.errors import Conflict, NotFound

REF = "01890000-0000-7000-8000-0000000000aa"
ANN = "01890000-0000-7000-8000-0000000000bb"


@pytest.fixture
def db(database: Callable[[str], Database]) -> Database:
    return database("survey")


def queued(db: Database, *, kind: str = "invitation", wait: int = 0) -> str:
    with db.transaction() as tx:
        new = NewDelivery(
            kind, REF, "email", ANN, data={"token": "t"}, not_before=tx.now + timedelta(seconds=wait)
        )
        return ledger.queue(tx, new)


def claimed(db: Database, kind: str = "invitation", *, begun: bool = False) -> str:
    id = queued(db, kind=kind)
    with db.transaction() as tx:
        assert [one.id for one in ledger.claim(tx, 10, [kind])] == [id]
    if begun:
        with db.transaction() as tx:
            assert ledger.begin_hand_over(tx, [id])
    return id


def state(db: Database, id: str) -> str:
    with db.transaction() as tx:
        return str(tx.value("SELECT state FROM delivery WHERE id = %s", (id,)))


def test_a_message_is_claimed_by_one_sender_only(db: Database) -> None:
    ids = [queued(db) for _ in range(4)]
    with db.transaction() as first, db.transaction() as second:
        one = ledger.claim(first, 2, ["invitation"])
        two = ledger.claim(second, 10, ["invitation"])
    assert len(one) == 2 and sorted(each.id for each in (*one, *two)) == sorted(ids)
    assert one[0].attempts == 1 and one[0].data == {"token": "t"} and one[0].customer_id == ANN


def test_only_due_messages_of_the_senders_kinds_are_claimed(db: Database, clock: ManualClock) -> None:
    later, _ = queued(db, wait=60), queued(db, kind="notice")
    with db.transaction() as tx:
        assert ledger.claim(tx, 10, ["invitation"]) == []
    clock.advance(timedelta(seconds=60))
    with db.transaction() as tx:
        assert [one.id for one in ledger.claim(tx, 10, ["invitation"])] == [later]


def test_a_hand_over_is_begun_once_and_only_by_who_claimed_it(db: Database) -> None:
    id = claimed(db)
    with db.transaction() as tx:
        assert ledger.begin_hand_over(tx, [id])
        assert not ledger.begin_hand_over(tx, [id])
    other = queued(db)
    with db.transaction() as tx:
        assert not ledger.begin_hand_over(tx, [other])


def test_a_sender_that_died_before_the_hand_over_cost_nothing(db: Database, clock: ManualClock) -> None:
    id = claimed(db)
    clock.advance(timedelta(seconds=59))
    with db.transaction() as tx:
        assert ledger.after_crash(tx, ["invitation"]) == ([], [])
    clock.advance(timedelta(seconds=2))
    with db.transaction() as tx:
        back, lost = ledger.after_crash(tx, ["invitation"])
    assert [one.id for one in back] == [id] and lost == []
    with db.transaction() as tx:
        assert ledger.claim(tx, 1, ["invitation"])[0].attempts == 1


def test_a_sender_that_died_in_the_hand_over_leaves_it_uncertain(db: Database, clock: ManualClock) -> None:
    id = claimed(db, begun=True)
    permit = claimed(db, "notice")  # handed over by another service: nobody here knows how far it got
    clock.advance(timedelta(seconds=61))
    with db.transaction() as tx:
        back, lost = ledger.after_crash(tx, ["invitation"])
    assert back == [] and {one.id for one in lost} == {id, permit}
    with db.transaction() as tx:
        assert ledger.claim(tx, 10, ["invitation", "notice"]) == []
        assert {one.id for one in ledger.uncertain_ones(tx)} == {id, permit}


@pytest.mark.parametrize("word", get_args(Report))
def test_a_report_settles_what_is_uncertain(db: Database, word: Report) -> None:
    id = claimed(db, begun=True)
    with db.transaction() as tx:
        ledger.uncertain(tx, id, "It timed out.")
    with db.transaction() as tx:
        reported = ledger.report(tx, id, word, "because")
    assert reported and reported.before == "uncertain"
    assert reported.delivery.state == {"complained": "delivered"}.get(word, word)
    with db.transaction() as tx:
        assert ledger.uncertain_ones(tx) == []
        assert ledger.report(tx, id, word, "because") is None  # the same report again


def test_a_report_may_come_before_the_sender_has_settled(db: Database) -> None:
    id = claimed(db, begun=True)
    with db.transaction() as tx:
        assert ledger.report(tx, id, "delivered")
    with db.transaction() as tx:
        assert ledger.handed(tx, {id: "p1"})
        row = tx.one("SELECT state, provider_id FROM delivery WHERE id = %s", (id,))
    assert row == {"state": "delivered", "provider_id": "p1"}


def test_mail_may_bounce_after_delivery_but_not_the_other_way(db: Database) -> None:
    id = claimed(db, begun=True)
    with db.transaction() as tx:
        ledger.handed(tx, {id: "p1"})
        assert ledger.report(tx, id, "delivered")
        assert ledger.report(tx, id, "bounced", "550")
        assert ledger.report(tx, id, "delivered") is None
    assert state(db, id) == "bounced"


def test_a_complaint_is_the_last_word(db: Database) -> None:
    for before in ("delivered", "bounced"):
        id = claimed(db, begun=True)
        with db.transaction() as tx:
            assert ledger.report(tx, id, before)
            told = ledger.report(tx, id, "complained")
            assert told and (told.delivery.state, told.before) == ("delivered", before)
            assert ledger.report(tx, id, "bounced", "550 no such mailbox") is None


def test_a_report_about_nothing_we_know_is_ignored(db: Database) -> None:
    with db.transaction() as tx:
        assert ledger.report(tx, REF, "delivered") is None


def test_a_person_may_send_an_uncertain_message_again_once(db: Database) -> None:
    id = claimed(db, begun=True)
    with db.transaction() as tx:
        ledger.uncertain(tx, id, "It timed out.")
    with db.transaction() as tx:
        again = ledger.send_again(tx, id, "Ada")
    with pytest.raises(Conflict), db.transaction() as tx:
        ledger.send_again(tx, id, "Ada")
    with db.transaction() as tx:
        (one,) = ledger.claim(tx, 10, ["invitation"])
        assert one.id == again != id and one.data["again_of"] == id and one.ref_id == REF
        assert ledger.uncertain_ones(tx) == []
    assert state(db, id) == "uncertain"


def test_only_uncertain_messages_can_be_sent_again(db: Database) -> None:
    with pytest.raises(Conflict), db.transaction() as tx:
        ledger.send_again(tx, queued(db), "Ada")
    with pytest.raises(NotFound), db.transaction() as tx:
        ledger.send_again(tx, REF, "Ada")


def test_a_permit_counts_as_unsettled_until_its_message_is_settled(db: Database, clock: ManualClock) -> None:
    id = claimed(db)
    with db.transaction() as tx:
        assert ledger.unsettled_permits(tx, ANN) == 0
        ledger.permitted(tx, [id], tx.now + timedelta(seconds=15))
        assert ledger.unsettled_permits(tx, ANN) == 1
        ledger.handed(tx, {id: "p"})
        assert ledger.unsettled_permits(tx, ANN) == 0
    other = claimed(db)
    with db.transaction() as tx:
        ledger.permitted(tx, [other], tx.now + timedelta(seconds=15))
    clock.advance(timedelta(seconds=16))
    with db.transaction() as tx:
        assert ledger.unsettled_permits(tx, ANN) == 0


def test_settled_is_settled(db: Database) -> None:
    id = claimed(db)
    with db.transaction() as tx:
        assert ledger.refused(tx, id, "opted_out")
        assert not ledger.handed(tx, {id: "p"})
        assert not ledger.uncertain(tx, id, "x")
        assert ledger.give_back(tx, [id], tx.now, None, counted=False) == []
    assert state(db, id) == "refused"


def test_after_a_restore_what_was_due_is_uncertain_and_what_is_due_later_waits(
    db: Database, clock: ManualClock
) -> None:
    begun, due = claimed(db), queued(db)
    later = queued(db, wait=600)
    clock.advance(timedelta(seconds=300))
    with db.transaction() as tx:
        assert ledger.restored(tx) == 2
        assert ledger.claim(tx, 10, ["invitation"]) == []
        back, lost = ledger.after_crash(tx, ["invitation"])
    assert back == [] and {one.id for one in lost} == {begun, due}
    assert {one.reason for one in lost} == {ledger.RESTORED}
    assert [state(db, id) for id in (begun, due, later)] == ["uncertain", "uncertain", "queued"]
    clock.advance(timedelta(seconds=301))
    with db.transaction() as tx:
        assert [one.id for one in ledger.claim(tx, 10, ["invitation"])] == [later]


def test_staffs_mails_are_found_by_an_index_however_many_notices_wait_beside_them(
    database: Callable[[str], Database],
) -> None:
    with database("followup").transaction() as tx:
        ledger.queue_many(tx, [NewDelivery("notice", REF, "email") for _ in range(5_000)])
        tx.execute("ANALYZE delivery")
        assert ledger.claim(tx, 10, ["staff"], "email") == []
        assert tx.cur.query is not None
        plan = tx.all("EXPLAIN " + tx.cur.query.decode())
    assert any("delivery_queued_staff" in row["QUERY PLAN"] for row in plan), plan
