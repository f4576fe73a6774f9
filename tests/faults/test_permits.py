"""Rule 7 under race: opt-outs against four senders, and followup's senders while survey is away."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from shared.channels import CHANNELS
from shared.channels.sender import HANDS
from tests.faults.conftest import SEEDS
from tests.support import trial
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.racing import CLIENTS, Kind, Race
from tests.support.running import Process, running
from tests.support.slow_provider import Arrival, Pace, slow_provider

TRIALS = int(os.environ.get("TRIALS", "160"))
# How opt-outs meet their messages: before the permit, while it is out, after it; and too long for the wait.
CLASSES = {"refused", "waited for", "on its way", "after"}
# More than two senders of each channel claim at once at this pace (two seconds of work), so that some wait.
NOTICES = 90
PACE = Pace(1.0, 1.0)


@dataclass
class Away:
    """An installation whose web process, and survey with it, goes away and comes back."""

    race: Race
    web: Process

    def kill(self) -> None:
        """Returns when nobody answers any more."""
        self.web.kill()
        self.race.running.wait(self._refused, None, "the web process to be gone")

    def back(self, crash_at: str = "") -> None:
        self.web = self.race.running.web(crash_at)

    def _refused(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.race.running.settings.port), 2).close()
            return False
        return True

    def publish(self, title: str) -> None:
        """A change that is told to everybody; what was handed over before does not count any more."""
        self.before = len(self.race.provider.arrivals)
        self.race.publish(title)

    @property
    def arrivals(self) -> list[Arrival]:
        return self.race.provider.arrivals[self.before :]

    def waiting(self) -> Counter[tuple[str, int, str | None]]:
        """The notices that have not gone out: state, attempts and why they wait."""
        with self.race.running.db("followup").transaction() as tx:
            rows = tx.all("SELECT state, attempts, reason FROM delivery WHERE state IN ('queued', 'claimed')")
        return Counter((row["state"], row["attempts"], row["reason"]) for row in rows)

    def all_hands_are_full(self) -> bool:
        """Whether both senders have handed over as much as they can while the provider keeps still: each
        channel's hands."""
        with self.race.running.db("followup").transaction() as tx:
            claims = tx.all(
                "SELECT count(*) AS claimed, count(handed_at) AS begun FROM delivery"
                " WHERE state = 'claimed' AND kind = 'notice' GROUP BY claimed_at"
            )
        begun = [row["begun"] for row in claims if row["begun"] == min(row["claimed"], HANDS)]
        return len(begun) == len(claims) == 2 * len(CHANNELS) and len(self.arrivals) == sum(begun)

    def check_each_came_once(self) -> None:
        """Waits until nothing is on its way; every customer has the one notice, and both ledgers say so."""
        self.race.running.wait(self.race.still, None, "the notices")
        came = Counter(arrival.to for arrival in self.arrivals)
        assert len(came) == NOTICES and set(came.values()) == {1}, came
        ids = [arrival.delivery_id for arrival in self.arrivals]
        for service in ("survey", "followup"):
            with self.race.running.db(service).transaction() as tx:
                states = tx.all(
                    "SELECT state, count(*) AS n FROM delivery WHERE id = ANY(%s::uuid[]) GROUP BY 1", (ids,)
                )
            assert states == [{"state": "handed", "n": NOTICES}], service


@contextlib.contextmanager
def race(
    postgres: TestPostgres, trials: int, seed: int, kinds: tuple[Kind, ...] = ("invitation", "notice")
) -> Iterator[Away]:
    """An installation with two senders of each kind and a provider that takes its time."""
    urls = FreshDatabases(postgres)
    with slow_provider() as provider, running(urls, mailbox_url=provider.url) as installation:
        for service in ("survey", "followup"):
            installation.role(service, "relay", "consumer")
            for _ in range(2):
                installation.role(service, "sender")
        made = Away(Race(installation, provider, trials, seed, kinds), installation.web())
        made.race.prepare()
        yield made
    urls.drop()


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_nothing_is_handed_over_after_an_opt_out_that_did_not_say_so(
    postgres: TestPostgres, seed: int
) -> None:
    with race(postgres, TRIALS, seed) as made:
        made.race.run()
        wrong, classes = made.race.wrong(), made.race.classes()
    trial.checked(0, trials=TRIALS)
    for kind, counts in classes.items():
        met = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        trial.now.said.append(f"opt-outs against {kind}s (seed {seed}): {met}")
    again = f"again: TRIALS={TRIALS} SEEDS={seed} make faults ARGS='-k \"did_not_say_so and seed{seed}\"'"
    assert not wrong, "\n".join([*wrong[:40], f"{len(wrong)} in {TRIALS} trials; {again}"])
    met_all = sum(classes.values(), Counter())
    assert met_all.keys() >= CLASSES, f"{dict(met_all)} misses some of {CLASSES}; {again}"


@pytest.fixture(scope="module")
def away(postgres: TestPostgres) -> Iterator[Away]:
    """Everybody has answered, and hears of changes. The tests go on from each other."""
    with race(postgres, NOTICES, 1, ("notice",)) as made:
        made.race.provider.pace = lambda message: PACE
        yield made


def test_notices_wait_while_survey_is_away_and_then_go_out_once(away: Away) -> None:
    away.kill()
    away.publish("While survey is away")
    waiting = ("queued", 0, "Survey does not answer; the message waits.")
    away.race.running.wait(lambda: away.waiting() == {waiting: NOTICES}, None, "both senders to have asked")
    assert away.arrivals == []
    away.back()
    away.check_each_came_once()


def test_notices_go_out_once_when_survey_dies_after_granting_before_it_answers(away: Away) -> None:
    away.web.stop()
    away.back(crash_at="web.after_commit")
    away.publish("Granted, and nobody heard it")
    away.race.running.wait_crash(away.web)
    away.check_each_came_once()


def test_notices_go_out_once_when_survey_dies_between_permit_and_settling(away: Away) -> None:
    away.race.provider.gate.clear()
    away.publish("Permitted, and then nobody was there to be told")
    away.race.running.wait(away.all_hands_are_full, None, "both senders to hand over")
    held = len(away.arrivals)
    away.kill()
    away.race.provider.gate.set()
    # What was permitted still goes out; the rest waits, and survey is told of everything afterwards.
    asked_in_vain = "Survey does not answer; the message waits."
    away.race.running.wait(
        lambda: {reason for _, _, reason in away.waiting()} == {asked_in_vain}, None, "the rest to wait"
    )
    assert held <= len(away.arrivals) < NOTICES
    away.back()
    away.check_each_came_once()


def test_an_opt_out_knows_of_what_survey_permitted_before_it_died(away: Away) -> None:
    away.race.provider.gate.clear()
    away.publish("Permitted to those who opt out meanwhile")
    away.race.running.wait(away.all_hands_are_full, None, "both senders to hand over")
    held = {arrival.to for arrival in away.arrivals}
    away.kill()
    away.back()
    leaving = sorted(away.race.trials, key=lambda one: not held & one.addresses)[:CLIENTS]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(away.race.opt_out, leaving))
    away.race.provider.gate.set()
    away.race.running.wait(away.race.still, None, "nothing to be on its way")
    taken = {arrival.to: arrival.taken_at or 0.0 for arrival in away.arrivals}
    for one in leaving:
        late = any(taken.get(address, 0.0) > one.acknowledged_at for address in one.addresses)
        assert one.on_its_way or not (late or held & one.addresses), one
