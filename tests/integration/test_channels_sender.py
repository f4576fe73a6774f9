"""The sender: claim, permit, hand over, settle; nothing leaves without time to spare, or twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

import pytest

from shared.channels import Message, TransportError, UncertainError, ledger
from shared.channels.ledger import Delivery, NewDelivery
from shared.channels.sender import DELAYS, HANDS, Outcome, Permit, Permits, Sender
from shared.clock import ManualClock
from shared.db import Database, Tx
from shared.errors import Unavailable

REF = "01890000-0000-7000-8000-0000000000aa"


class Provider:
    """Takes messages, or does with them what it was told to."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.taken: list[str] = []
        self.calls = 0
        self.troubles: list[Exception] = []
        self.seconds = 0.01

    def send(self, message: Message) -> str:
        self.clock.advance(timedelta(seconds=self.seconds))
        self.calls += 1
        if self.troubles:
            raise self.troubles.pop(0)
        self.taken.append(message.to)
        return f"p-{message.delivery_id}"


class House:
    """A sender with everything around it, and what it was told."""

    def __init__(self, db: Database, clock: ManualClock) -> None:
        self.db = db
        self.clock = clock
        self.provider = Provider(clock)
        self.refused: dict[str, str] = {}
        self.silent = False
        self.asking_takes = 0.0
        self.writing_takes = 0.0
        self.settled: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.asked: list[int] = []
        """For how many messages at a time leave was asked."""
        self.sender = Sender(
            db,
            clock,
            ["invitation"],
            lambda _: self.provider,
            self.permits,
            self.render,
            self.note,
            lambda outcomes: self.told.extend(outcome.result for outcome in outcomes),
            pause=lambda _: None,
        )

    def queue(self, *addresses: str) -> list[str]:
        with self.db.transaction() as tx:
            return ledger.queue_many(
                tx, [NewDelivery("invitation", REF, "email", address=a) for a in addresses]
            )

    def permits(self, batch: Sequence[Delivery]) -> Permits:
        if self.silent:
            raise Unavailable("no answer")
        self.asked.append(len(batch))
        self.clock.advance(timedelta(seconds=self.asking_takes))
        granted = {one.id: Permit(one.address or "") for one in batch if one.address not in self.refused}
        refused = {one.id: self.refused[one.address or ""] for one in batch if one.address in self.refused}
        return Permits(granted, refused)

    def render(self, one: Delivery, permit: Permit) -> Message:
        if permit.address == "unwritable":
            raise KeyError("wording")
        self.clock.advance(timedelta(seconds=self.writing_takes))
        return Message(one.id, one.channel, permit.address, "words")

    def note(self, tx: Tx, outcomes: Sequence[Outcome]) -> None:
        self.settled += [(outcome.delivery.address or "", outcome.result) for outcome in outcomes]

    def states(self) -> dict[str, str]:
        with self.db.transaction() as tx:
            return {row["address"]: row["state"] for row in tx.all("SELECT address, state FROM delivery")}


@pytest.fixture
def house(database: Callable[[str], Database], clock: ManualClock) -> House:
    return House(database("survey"), clock)


def test_messages_go_out_once_and_are_settled(house: House) -> None:
    house.queue("ann", "bob")
    house.sender.step()
    assert house.sender.step() is False
    assert sorted(house.provider.taken) == ["ann", "bob"]
    assert sorted(house.settled) == [("ann", "handed"), ("bob", "handed")] and house.told == [
        "handed",
        "handed",
    ]
    assert house.states() == {"ann": "handed", "bob": "handed"}


@pytest.mark.parametrize("id", ["a\x00b", "\ud800", "x" * 100_000])
def test_whatever_a_provider_calls_a_message_it_is_handed_over(house: House, id: str) -> None:
    house.provider.send = lambda message: id  # type: ignore[method-assign]
    house.queue("ann")
    house.sender.step()
    assert house.states() == {"ann": "handed"}


def test_who_opted_out_gets_nothing(house: House) -> None:
    house.refused = {"ann": "opted_out"}
    house.queue("ann", "bob")
    house.sender.step()
    assert house.provider.taken == ["bob"]
    assert ("ann", "refused") in house.settled and house.states()["ann"] == "refused"


def test_without_an_answer_about_permits_messages_wait(house: House, clock: ManualClock) -> None:
    house.queue("ann")
    house.silent = True
    assert house.sender.step() is False
    assert house.states() == {"ann": "queued"} and house.provider.taken == []
    house.silent = False
    house.sender.step()
    assert house.provider.taken == []  # not at once
    clock.advance(timedelta(seconds=6))
    house.sender.step()
    assert house.provider.taken == ["ann"]
    with house.db.transaction() as tx:
        assert tx.value("SELECT attempts FROM delivery") == 1


def test_nothing_starts_with_less_than_eleven_of_fifteen_seconds_left(house: House) -> None:
    house.queue("ann", "bob", "cid")
    house.provider.seconds = 2.5
    house.sender.hands = 1
    house.sender.step()
    # After two hand-overs 10 of 15 seconds are left: the third waits for a new permit.
    assert len(house.provider.taken) == 2
    (late,) = [one for one, result in house.settled if result == "returned"]
    assert house.states()[late] == "queued"
    house.sender.step()
    assert sorted(house.provider.taken) == ["ann", "bob", "cid"]


def test_eight_hands_work_at_once_and_none_of_them_begins_too_late(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.queue(*(f"customer{number}" for number in range(20)))
    together = threading.Barrier(HANDS)

    def send(message: Message) -> str:
        if together.wait(30) == 0:
            house.clock.advance(timedelta(seconds=4.1))
        together.wait(30)
        house.provider.taken.append(message.to)
        return "p"

    monkeypatch.setattr(house.provider, "send", send)
    house.sender.step()
    states = house.states()
    assert HANDS == 8 and len(house.provider.taken) == 8
    assert {one for one, state in states.items() if state == "handed"} == set(house.provider.taken)
    assert Counter(states.values()) == {"handed": 8, "queued": 12}
    with house.db.transaction() as tx:
        assert tx.value("SELECT max(attempts) FROM delivery WHERE state = 'queued'") == 0


def test_a_permit_that_took_too_long_is_not_used(house: House) -> None:
    house.queue("ann")
    house.asking_takes = 4.1
    house.sender.step()
    assert house.provider.taken == [] and house.told == ["returned"]


def test_words_that_took_too_long_to_write_wait_for_a_new_permit(house: House) -> None:
    house.queue("ann")
    house.writing_takes = 4.5
    house.sender.step()
    assert house.provider.taken == [] and house.told == ["returned"]
    house.writing_takes = 0.1
    house.sender.step()
    assert house.provider.taken == ["ann"]


def test_the_wall_clock_may_step_back_without_harm(house: House, clock: ManualClock) -> None:
    house.queue("ann", "bob")
    send = house.provider.send

    def stepping(message: Message) -> str:
        clock.advance(timedelta(hours=-1))
        return send(message)

    house.provider.send = stepping  # type: ignore[method-assign]
    house.sender.step()
    assert sorted(house.provider.taken) == ["ann", "bob"]


@pytest.mark.parametrize("hours", [1, -1])
@pytest.mark.parametrize("amid", ["permits", "render", "send"])
def test_a_clock_that_steps_while_a_sender_has_messages_in_hand_makes_no_other_send_them_too(
    house: House, amid: str, hours: int
) -> None:
    house.queue("ann", "bob")
    other = House(house.db, house.clock)
    other.provider = house.provider
    owner = house.provider if amid == "send" else house.sender
    undisturbed, stepped = getattr(owner, amid), threading.Event()

    def disturbed(*given: object) -> object:
        said = undisturbed(*given)
        if not stepped.is_set():
            stepped.set()
            house.clock.advance(timedelta(hours=hours))
            other.sender.step()
        return said

    setattr(owner, amid, disturbed)
    house.sender.hands = 1
    house.sender.step()
    while house.sender.step() or other.sender.step():
        pass
    assert sorted(house.provider.taken) == ["ann", "bob"]
    assert house.states() == {"ann": "handed", "bob": "handed"}
    assert Counter(house.settled + other.settled)["ann", "handed"] == 1


def test_a_time_out_is_uncertain_and_never_sent_again_by_itself(house: House, clock: ManualClock) -> None:
    house.queue("ann")
    house.provider.troubles = [UncertainError("no answer in time")]
    for _ in range(5):
        house.sender.step()
        clock.advance(timedelta(hours=3))
    assert house.provider.taken == [] and house.states() == {"ann": "uncertain"}
    assert house.told == ["uncertain"]


def test_an_unknown_trouble_of_a_transport_is_uncertain_too(house: House) -> None:
    house.queue("ann")
    house.provider.troubles = [RuntimeError("half way")]
    house.sender.step()
    assert house.states() == {"ann": "uncertain"}


def test_a_refused_connection_is_tried_again_later_and_later(house: House, clock: ManualClock) -> None:
    house.queue("ann")
    house.provider.troubles = [
        TransportError("refused", permanent=False),
        TransportError("slow down", permanent=False, retry_after=120),
    ]
    house.sender.step()
    house.sender.step()
    assert house.states() == {"ann": "queued"} and house.told == ["returned"]
    clock.advance(timedelta(seconds=DELAYS[0]))
    house.sender.step()
    clock.advance(timedelta(seconds=119))
    house.sender.step()
    assert house.provider.taken == []
    clock.advance(timedelta(seconds=1))
    house.sender.step()
    assert house.provider.taken == ["ann"]


def test_trying_ends_after_a_while(house: House, clock: ManualClock) -> None:
    house.queue("ann")
    house.provider.troubles = [TransportError("refused", permanent=False) for _ in range(20)]
    for _ in range(20):
        house.sender.step()
        clock.advance(timedelta(hours=2, seconds=1))
    assert house.states() == {"ann": "failed"} and len(house.provider.troubles) == 20 - len(DELAYS) - 1


def test_a_wrong_address_fails_at_once(house: House) -> None:
    house.queue("ann")
    house.provider.troubles = [TransportError("no such number", permanent=True)]
    house.sender.step()
    assert house.states() == {"ann": "failed"} and house.settled == [("ann", "failed")]


def test_words_that_cannot_be_written_stop_nobody_else(house: House) -> None:
    house.queue("unwritable", "bob")
    house.sender.step()
    assert house.states() == {"unwritable": "failed", "bob": "handed"}


def test_a_batch_is_as_large_as_two_seconds_allow_but_leaves_no_hand_idle(house: House) -> None:
    house.queue(*(f"c{number}" for number in range(40)))
    house.provider.seconds = 1.0
    for _ in range(60):
        house.sender.step()
    assert len(house.provider.taken) == len(set(house.provider.taken)) == 40
    house.queue(*(f"d{number}" for number in range(40)))
    house.asked.clear()
    house.sender.step()
    assert house.asked == [HANDS]


def test_while_a_provider_asks_to_wait_nothing_is_claimed_and_then_one_message_asks_again(
    house: House, clock: ManualClock
) -> None:
    house.sender.channel = "email"
    house.queue(*(f"c{number}" for number in range(20)))
    house.provider.troubles = [
        *(TransportError("slow down", permanent=False, retry_after=60) for _ in range(HANDS)),
        TransportError("still", permanent=False, retry_after=60),
    ]
    house.sender.step()
    asked = house.provider.calls
    clock.advance(timedelta(seconds=59))
    house.asked.clear()
    house.sender.step()
    assert house.asked == []
    for _ in range(2):  # in vain at first
        clock.advance(timedelta(seconds=61))
        house.sender.step()
    assert house.asked == [1, 1] and house.provider.calls == asked + 2 and len(house.provider.taken) == 1
    while len(house.provider.taken) < 20:
        house.sender.step()
        clock.advance(timedelta(seconds=1))
    assert Counter(house.provider.taken).most_common(1)[0][1] == 1


def test_a_shorter_wait_does_not_cut_a_longer_one_short(house: House, clock: ManualClock) -> None:
    house.sender.channel = "email"
    house.queue("ann", "bob")
    house.provider.troubles = [
        TransportError("slow down", permanent=False, retry_after=600),
        TransportError("away", permanent=False, retry_after=5),
    ]
    house.sender.step()
    asked = house.provider.calls
    clock.advance(timedelta(seconds=590))
    house.sender.step()
    assert house.provider.calls == asked


def test_what_hangs_on_settling_commits_with_it_or_not_at_all(house: House, clock: ManualClock) -> None:
    house.queue("ann")

    def broken(tx: Tx, outcomes: Sequence[Outcome]) -> None:
        raise ZeroDivisionError

    house.sender.settled = broken
    with pytest.raises(ZeroDivisionError):
        house.sender.step()
    assert house.provider.taken == ["ann"] and house.states() == {"ann": "claimed"} and house.told == []
    house.sender.settled = house.note
    clock.advance(timedelta(seconds=61))
    house.sender.step()
    assert house.states() == {"ann": "uncertain"} and house.provider.taken == ["ann"]


def test_a_database_that_blinks_while_settling_makes_nothing_uncertain(house: House) -> None:
    house.queue("ann")
    blinks = [Unavailable("blink"), Unavailable("blink")]

    def blinking(tx: Tx, outcomes: Sequence[Outcome]) -> None:
        if blinks:
            raise blinks.pop()
        house.note(tx, outcomes)

    house.sender.settled = blinking
    house.sender.step()
    assert house.states() == {"ann": "handed"} and house.provider.taken == ["ann"]


@pytest.mark.parametrize("then", ["granted", "refused", "unanswered"])
def test_a_sender_that_stood_still_leaves_alone_what_another_has_claimed_since(
    house: House, then: str
) -> None:
    (id,) = house.queue("ann@example.com")

    def frozen(batch: Sequence[Delivery]) -> Permits:
        house.clock.advance(timedelta(seconds=61))
        with house.db.transaction() as tx:
            ledger.after_crash(tx, ["invitation"])
            (theirs,) = ledger.claim(tx, 10, ["invitation"])
        with house.db.transaction() as tx:
            ledger.permitted(tx, [id], tx.now + timedelta(seconds=15))
            assert ledger.begin_hand_over(tx, [id], theirs.claimed_at)
        return house.permits(batch)

    house.sender.permits = frozen
    house.silent = then == "unanswered"
    if then == "refused":
        house.refused["ann@example.com"] = "opted_out"
    house.sender.step()
    assert (house.provider.taken, house.settled, house.told) == ([], [], [])
    with house.db.transaction() as tx:
        row = tx.one("SELECT state, handed_at, permit_expires_at FROM delivery")
    assert row and row["state"] == "claimed" and row["handed_at"] and row["permit_expires_at"]
