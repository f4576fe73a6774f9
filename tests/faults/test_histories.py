"""Whatever people, machines and time do, in whatever order: every promise holds at the end.

Generated histories (hypothesis): imports, asks, answers, revisions, exclusions, opt-outs, erasures,
hand-overs, resolutions, notices, redeliveries and rebuilds, the log moved on in any steps between them.
`TRIALS=2000` (as in `make faults`) for more of them, `SEEDS=20` for others.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck
from hypothesis import seed as seeded
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from services.followup.commands import attempts, changes, notices, resolving, themes
from services.followup.domain.by import By
from services.followup.domain.change import Draft
from services.followup.queries import themes as theme_queries
from services.reporting.queries.recount import recount
from services.survey.commands import clock, company, erase, exclude, opt_out
from shared.channels import Message, TransportError, UncertainError
from shared.db import Row
from shared.errors import Conflict, NotFound
from shared.settings import SERVICES
from tests.faults.conftest import SEEDS
from tests.support.postgres import FreshDatabases, TestPostgres
from tests.support.world import World, link_of, world

TRIALS = int(os.environ.get("TRIALS", "0"))
ANN = By(None, "Ann")
ZONES = ("Europe/Berlin", "UTC", "America/Los_Angeles")
PICK = st.integers(0, 10_000)
SCORES = st.integers(0, 10)


@dataclass
class Person:
    """Somebody who exists until erased; then another of the same number may come, with other addresses."""

    number: int
    birth: int
    account: str
    words: list[str] = field(default_factory=list)
    opted_out: set[str] = field(default_factory=set)
    erased: bool = False

    @property
    def key(self) -> str:
        return f"zed{self.number}x{self.birth}"

    @property
    def email(self) -> str:
        return "" if self.number >= 5 else f"{self.key}@people.example"

    @property
    def phone(self) -> str:
        return f"+491511{self.birth:03}{self.number:04}" if self.number >= 4 else ""

    @property
    def markers(self) -> list[str]:
        return [*(one for one in (self.key, self.phone) if one), *self.words]


@dataclass
class Link:
    """A message's way to the answer page, with the form as it was last shown there."""

    person: Person
    message: Message
    token: str
    version: int = 0
    nonce: str = ""


@dataclass(frozen=True)
class Ack:
    """What an answer was acknowledged as."""

    link: Link
    version: int
    score: int
    comment: str | None


class Histories(RuleBasedStateMachine):
    """The people around one installation, and what they were promised."""

    world: World

    @initialize(
        accounts=st.lists(st.sampled_from(["", "Globex", "Initech"]), min_size=6, max_size=6),
        scores=st.lists(SCORES, max_size=6),
        known=st.booleans(),
    )
    def begin(self, accounts: list[str], scores: list[int], known: bool) -> None:
        """Six people, all of them asked, some with an answer; perhaps everybody knows of it."""
        self.world.reset()
        self.count = itertools.count(1)
        self.people = [Person(number, 0, account) for number, account in enumerate(accounts)]
        self.gone: list[Person] = []
        self.links: list[Link] = []
        self.acks: list[Ack] = []
        self.import_people(list(range(6)))
        self.ask_everybody()
        self.hand_over("taken")
        for number, score in enumerate(scores):
            self.answer(number, score, says=True, stale=0, from_mail=False, twice=False)
        if known:
            self.world.settle()

    # Survey's side.

    @rule(numbers=st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True))
    def import_people(self, numbers: list[int]) -> None:
        """New ones and known ones."""
        people = [self.people[number] for number in numbers]
        lines = [f"{p.email},{p.phone},{p.key} Zed,{p.account},{self._word(p)}" for p in people]
        run = self.world.survey.import_("\n".join(["email,phone,name,account,motto", *lines, ""]))
        assert (run["state"], run["failed"]) == ("done", 0), run

    @rule()
    def ask_everybody(self) -> None:
        self.world.survey.ask()

    @rule(how=st.sampled_from(["taken", "taken", "taken", "uncertain", "later", "never"]))
    def hand_over(self, how: str) -> None:
        """Survey's sender works; the provider is as it is."""
        self.world.provider.refuse = {
            "uncertain": UncertainError("it hung up"),
            "later": TransportError("busy", permanent=False),
            "never": TransportError("no such address", permanent=True),
        }.get(how)
        for message in self.world.survey.send():
            person = self._may_be_written_to(message)
            if "/a/" in message.text:  # a reply to a text has no such link
                self.links.append(Link(person, message, link_of(message)))
        self.world.provider.refuse = None

    @rule(
        pick=PICK, score=SCORES, says=st.booleans(), stale=st.sampled_from([0, 0, 0, 1]),
        from_mail=st.booleans(), twice=st.booleans(),
    )  # fmt: skip
    def answer(self, pick: int, score: int, says: bool, stale: int, from_mail: bool, twice: bool) -> None:
        """A form is sent, the first time or again; perhaps one that was open for long, perhaps twice."""
        if not self.links:
            return
        link = self.links[pick % len(self.links)]
        form = {
            "nonce": f"nonce{next(self.count):08}",
            "seen": str(max(0, link.version - stale)),
            "pending" if from_mail else "score": str(score),
        }
        if says:
            form["comment"] = self._word(link.person)
        first: int | None = None
        for _ in range(1 + twice):
            reply = self.world.survey.http.post(
                f"/a/{link.token}", data=form, headers={"Accept": "application/json"}
            )
            assert reply.status_code in ((404,) if link.person.erased else (200, 404, 410)), reply.text
            if reply.status_code == 200:
                told: Any = reply.json
                assert first in (None, told["version"]), "one form is one version"
                first = told["version"]
                link.version = told["version"]
                self.acks.append(Ack(link, told["version"], told["score"], told["comment"]))

    @rule(pick=PICK, score=SCORES)
    def change_their_mind(self, pick: int, score: int) -> None:
        """Once more, as most do: on the page as it is."""
        self.answer(pick, score, says=score % 2 == 0, stale=0, from_mail=False, twice=False)

    @rule(pick=PICK, score=SCORES)
    def click(self, pick: int, score: int) -> None:
        """A link is opened, by a person or a scanner, and nothing confirmed."""
        if self.links:
            self.world.survey.page(f"/a/{self.links[pick % len(self.links)].token}?s={score}")

    @rule(pick=PICK)
    def machine_answers(self, pick: int) -> None:
        """The form is sent that no person sees."""
        if self.links:
            link = self.links[pick % len(self.links)]
            self.world.survey.http.post(f"/a/{link.token}/more", data={}, headers={"Accept": "text/html"})

    @rule(number=st.sampled_from([4, 5]), text=st.sampled_from(["3", "10", "STOP", "START", "HELP", "hello"]))
    def text(self, number: int, text: str) -> None:
        person = self.people[number]
        words = text if text in ("STOP", "START", "HELP") else f"{text} {self._word(person)}"
        assert self.world.survey.text(person.phone, words).status_code < 300
        if text in ("STOP", "START") and self._id(person):
            (person.opted_out.add if text == "STOP" else person.opted_out.discard)("sms")

    @rule(pick=PICK, state=st.sampled_from(["delivered", "delivered", "bounced", "complained"]))
    def report(self, pick: int, state: str) -> None:
        """The provider's word on a message, perhaps not for the first time."""
        messages = self.world.provider.messages
        if messages:
            message = messages[pick % len(messages)]
            assert self.world.survey.report(message, state).status_code < 300
            if state == "complained":
                self._reached(message).opted_out.add(message.channel)

    @rule(pick=PICK)
    def exclude(self, pick: int) -> None:
        """An answer is taken out, or in again."""
        rows = self.world.all("survey", "SELECT id, state FROM response ORDER BY id")
        if rows:
            row = rows[pick % len(rows)]
            with self.world.dbs["survey"].transaction() as tx:
                if row["state"] == "counted":
                    exclude.exclude(tx, row["id"], "a test", "Lea")
                else:
                    exclude.include(tx, row["id"], "Lea")

    @rule(number=st.integers(0, 5), channel=st.sampled_from(["email", "sms"]), out=st.booleans())
    def opt_out(self, number: int, channel: str, out: bool) -> None:
        person, survey = self.people[number], self.world.survey
        customer = self._id(person)
        if customer:
            with survey.db.transaction() as tx:
                if out:
                    opt_out.opt_out(tx, customer, channel, "link", survey.fingerprints)
                else:
                    opt_out.opt_in(tx, customer, channel, survey.fingerprints)
            (person.opted_out.add if out else person.opted_out.discard)(channel)

    @rule(number=st.integers(0, 5))
    def erase(self, number: int) -> None:
        person, survey = self.people[number], self.world.survey
        customer = self._id(person)
        if customer:
            with survey.db.transaction() as tx:
                assert erase.erase(tx, customer, survey.fingerprints)
            person.erased = True
            self.gone.append(person)
            self.people[number] = Person(number, person.birth + 1, person.account)

    @rule(zone=st.sampled_from(ZONES))
    def company_moves(self, zone: str) -> None:
        with self.world.dbs["survey"].transaction() as tx:
            company.change(tx, {"time_zone": zone})

    @rule(minutes=st.sampled_from([1, 1, 20, 20, 60, 60, 600, 600, 3_000, 45_000]))
    def time_passes(self, minutes: int) -> None:
        """What falls due is done: clicks nobody confirmed, invitations that expire."""
        self.world.clock.advance(timedelta(minutes=minutes))
        self.world.survey.due()

    # Followup's side.

    @rule(pick=PICK, reached=st.booleans())
    def call(self, pick: int, reached: bool) -> None:
        task = self._task(pick, "open")
        if task:
            with self.world.dbs["followup"].transaction() as tx:
                attempts.record(tx, ANN, task, channel="phone", reached=reached, note="a try")

    @rule(pick=PICK)
    def resolve(self, pick: int) -> None:
        task = self._task(pick, "open")
        if task:
            with self.world.dbs["followup"].transaction() as tx:
                resolving.resolve(tx, ANN, task, outcome="solved", theme="Late")

    @rule(pick=PICK)
    def reopen(self, pick: int) -> None:
        task = self._task(pick, "resolved")
        if task:
            try:
                with self.world.dbs["followup"].transaction() as tx:
                    resolving.reopen(tx, ANN, task)
            except Conflict:
                pass  # the account has another one by now

    @rule()
    def publish_a_change(self) -> None:
        """Told to all whose answers led to it, by a task or by a person's judgement."""
        with self.world.dbs["followup"].transaction() as tx:
            theme = theme_queries.active(tx)[0]["id"]
            answers = [row["id"] for row in tx.all("SELECT id FROM response ORDER BY id LIMIT 3")]
            if answers:
                themes.tie(tx, theme, answers, None)
            title = f"Change {next(self.count)}"
            draft = Draft(title, "Too late.", "On Saturdays.", "en", None, (theme,))
            changes.publish(tx, changes.create(tx, draft, ANN), ANN)

    @rule(pick=PICK)
    def withdraw_a_change(self, pick: int) -> None:
        rows = self.world.all("followup", "SELECT id FROM change ORDER BY id")
        if rows:
            with self.world.dbs["followup"].transaction() as tx:
                changes.withdraw(tx, rows[pick % len(rows)]["id"])

    @rule(how=st.sampled_from(["taken", "taken", "uncertain", "later"]))
    def send_notices(self, how: str) -> None:
        self.world.provider.refuse = {
            "uncertain": UncertainError("it hung up"),
            "later": TransportError("busy", permanent=False),
        }.get(how)
        for message in self.world.send_notices():
            self._may_be_written_to(message)
        self.world.provider.refuse = None

    @rule(pick=PICK, helped=st.booleans())
    def say_whether_it_helped(self, pick: int, helped: bool) -> None:
        rows = self.world.all("followup", "SELECT id FROM notice ORDER BY id")
        if rows:
            try:
                with self.world.dbs["followup"].transaction() as tx:
                    notices.answer(tx, rows[pick % len(rows)]["id"], helped)
            except NotFound:
                pass  # it was never sent

    @rule(pick=PICK, helped=st.booleans())
    def close_the_loop(self, pick: int, helped: bool) -> None:
        """A day on which all goes well, with what is there."""
        self.world.settle()
        self.call(pick, reached=True)
        self.resolve(pick)
        self.publish_a_change()
        self.send_notices("taken")
        self.say_whether_it_helped(pick, helped)

    # The machines.

    @rule(service=st.sampled_from(["survey", "followup"]), twice=st.booleans())
    def relay(self, service: str, twice: bool) -> None:
        self.world.relay(service, twice=twice)

    @rule(service=st.sampled_from(SERVICES), batch=st.sampled_from([1, 7, 500]), batches=st.integers(1, 4))
    def consume(self, service: str, batch: int, batches: int) -> None:
        self.world.consume(service, batch, batches)

    @rule(service=st.sampled_from(SERVICES), events=st.integers(1, 20))
    def die_before_the_offset(self, service: str, events: int) -> None:
        self.world.step_back(service, events)

    @rule(service=st.sampled_from(SERVICES))
    def rebuild(self, service: str) -> None:
        self.world.rebuild(service)

    @rule()
    def everything_arrives(self) -> None:
        self.check()

    # What must hold.

    def check(self) -> None:
        self.world.settle()
        wrong = [
            *self._answers_kept(),
            *self._replicas(),
            *self._tasks(),
            *self._figures(),
            *self._parked_or_doubled(),
        ]
        assert not wrong, "\n".join(wrong)

    def teardown(self) -> None:
        if not hasattr(self, "people"):
            return
        self.check()
        if not self.gone:
            return
        markers = [marker for person in self.gone for marker in person.markers]
        # On the log, and in the mailbox, their words stay for as long as these keep anything.
        left = [found for found in self.world.found(markers) if not found.startswith("log.")]
        assert not left, "\n".join(left)
        self.world.forget_the_past()
        with self.world.dbs["survey"].transaction() as tx:
            while clock.forget(tx):
                pass
        assert not (left := self.world.found(markers)), "\n".join(left)

    def _answers_kept(self) -> Iterator[str]:
        rows = self.world.all(
            "survey",
            """SELECT d.id AS delivery, v.version, v.score, v.comment FROM delivery d
            JOIN response r ON r.invitation_id = d.ref_id JOIN response_version v ON v.response_id = r.id""",
        )
        kept = {(row["delivery"], row["version"]): (row["score"], row["comment"]) for row in rows}
        for ack in self.acks:
            if ack.link.person.erased:
                continue
            delivery = ack.link.message.delivery_id
            # A version without words of its own (an exclusion, a quarantine) is that of the one before it.
            said = max((v for d, v in kept if d == delivery and v <= ack.version), default=0)
            if kept.get((delivery, said)) != (ack.score, ack.comment):
                found = kept.get((delivery, said))
                yield f"{ack.link.person.key} was told {ack.score} {ack.comment}, kept is {found}"

    def _replicas(self) -> Iterator[str]:
        names = "id, version, customer_id, score, comment, state"
        truth = self._by_id("survey", f"SELECT {names} FROM response")
        for service in ("followup", "reporting"):
            there = self._by_id(service, f"SELECT {names} FROM response WHERE version > 0")
            if there != truth:
                yield f"{service} has {there} for survey's {truth}"
            customers = self._by_id(service, "SELECT id, version FROM customer WHERE version > 0")
            if customers != self._by_id("survey", "SELECT id, version FROM customer"):
                yield f"{service} has other customers than survey: {customers}"
        truth = self._by_id("followup", "SELECT id, version, state FROM task")
        if truth != (
            there := self._by_id("reporting", "SELECT id, version, state FROM task WHERE version > 0")
        ):
            yield f"reporting has the tasks {there} for {truth}"

    def _tasks(self) -> Iterator[str]:
        behind = Counter(
            row["response_id"]
            for row in self.world.all(
                "followup",
                """SELECT x.response_id FROM task_response x JOIN task t ON t.id = x.task_id
                WHERE t.state <> 'withdrawn'""",
            )
        )
        for row in self.world.all("survey", "SELECT id, score FROM response WHERE state = 'counted'"):
            if row["score"] <= 6 and not behind[row["id"]]:
                yield f"the answer {row['id']} ({row['score']}) has no task"
        yield from (
            f"{row['n']} open tasks of {row['subject']}"
            for row in self.world.all(
                "followup",
                """SELECT coalesce(account_id, customer_id) AS subject, count(*) AS n FROM task
                WHERE state = 'open' GROUP BY 1 HAVING count(*) > 1""",
            )
        )

    def _figures(self) -> Iterator[str]:
        """Reporting's figures, against a count of what the owners have."""
        with self.world.dbs["reporting"].transaction() as tx:
            if not (found := recount(tx)).equal:
                yield f"reporting differs from its own facts: {found}"
        for table, expected in (("nps_day", self._scores()), ("funnel_day", self._funnel())):
            rows = self.world.all("reporting", f"SELECT * FROM {table}")
            place = ("day", "program_id", "touchpoint")
            shown = {
                tuple(row[name] for name in place): counts
                for row in rows
                if (counts := {name: n for name, n in row.items() if name not in place and n})
            }
            if shown != expected:
                yield f"{table} shows {shown}, the owners have {expected}"

    def _scores(self) -> dict[tuple[Any, ...], dict[str, int]]:
        found: dict[tuple[Any, ...], dict[str, int]] = {}
        for row in self.world.all(
            "survey",
            """SELECT r.*, i.program_id, i.touchpoint FROM response r
            JOIN invitation i ON i.id = r.invitation_id""",
        ):
            score = row["score"]
            band = "detractors" if score <= 6 else "passives" if score <= 8 else "promoters"
            name = band if row["state"] == "counted" else row["state"]
            counts = found.setdefault(self._place(row, row["answered_at"]), {})
            counts[name] = counts.get(name, 0) + 1
        return found

    def _funnel(self) -> dict[tuple[Any, ...], dict[str, int]]:
        answers = {
            row["invitation_id"]: row["id"]
            for row in self.world.all("survey", "SELECT * FROM response WHERE state = 'counted'")
        }
        reports: dict[str, list[str]] = {}
        for row in self.world.all("survey", "SELECT ref_id, state, data FROM delivery"):
            state = "complained" if row["data"].get("complained_at") else row["state"]
            reports.setdefault(row["ref_id"], []).append(state)
        tasks: dict[str, Row] = {}
        for row in self.world.all(
            "followup",
            """SELECT x.response_id, t.* FROM task_response x JOIN task t ON t.id = x.task_id
            WHERE t.state <> 'withdrawn' ORDER BY t.opened_at, t.id""",
        ):
            tasks[row["response_id"]] = row
        told: dict[str, list[Row]] = {}
        for row in self.world.all("followup", "SELECT * FROM notice WHERE state = 'sent'"):
            known = reports.get(row["id"], [])
            arrived = bool({"delivered", "complained"} & set(known))
            if row["helped"] is not None or arrived or not {"bounced", "failed"} & set(known):
                told.setdefault(row["response_id"], []).append(row)
        found: dict[tuple[Any, ...], dict[str, int]] = {}
        for row in self.world.all(
            "survey", "SELECT * FROM invitation WHERE sent_at IS NOT NULL AND NOT test"
        ):
            answer = answers.get(row["id"], "")
            task, notes = tasks.get(answer), told.get(answer, [])
            times = [at for at in (task["first_contact_at"], task["contacted_at"]) if at] if task else []
            flags = {
                "asked": True,
                "delivered": bool(answer or {"delivered", "complained"} & set(reports.get(row["id"], []))),
                "answered": bool(answer),
                "tasked": task is not None,
                "tried_in_time": bool(task and times and min(times) <= task["due_at"]),
                "in_time": bool(task and task["contacted_at"] and task["contacted_at"] <= task["due_at"]),
                "resolved": bool(task and task["state"] == "resolved"),
                "told": bool(notes),
                "helped": any(note["helped"] for note in notes),
                "not_helped": any(note["helped"] is False for note in notes)
                and not any(note["helped"] for note in notes),
            }
            counts = found.setdefault(self._place(row, row["sent_at"]), {})
            for name, there in flags.items():
                if there:
                    counts[name] = counts.get(name, 0) + 1
        return found

    def _parked_or_doubled(self) -> Iterator[str]:
        for service in SERVICES:
            for row in self.world.all(service, "SELECT topic, key, reason FROM parked"):
                yield f"{service} parked {row}"
        counts = Counter(message.delivery_id for message in self.world.provider.messages)
        yield from (f"{delivery} was handed over {n} times" for delivery, n in counts.items() if n > 1)

    # Small things.

    def _place(self, row: Row, at: datetime) -> tuple[date, str, str]:
        zone = ZoneInfo(self.world.all("survey", "SELECT time_zone FROM company")[0]["time_zone"])
        return at.astimezone(zone).date(), row["program_id"], row["touchpoint"]

    def _by_id(self, database: str, query: str) -> dict[str, Row]:
        return {row["id"]: row for row in self.world.all(database, query)}

    def _word(self, person: Person) -> str:
        """Something only they say."""
        person.words.append(f"said{next(self.count)}by{person.key}")
        return person.words[-1]

    def _id(self, person: Person) -> str:
        column, value = ("email", person.email) if person.email else ("phone", person.phone)
        rows = self.world.all("survey", f"SELECT id FROM customer WHERE {column} = %s", [value])
        return str(rows[0]["id"]) if rows else ""

    def _reached(self, message: Message) -> Person:
        """Whom a message went to."""
        everybody = [*self.people, *self.gone]
        return next(one for one in everybody if message.to in (one.email, one.phone))

    def _may_be_written_to(self, message: Message) -> Person:
        person = self._reached(message)
        assert not person.erased and message.channel not in person.opted_out, (
            f"{message} should not have left"
        )
        return person

    def _task(self, pick: int, state: str) -> str:
        rows = self.world.all("followup", "SELECT id FROM task WHERE state = %s ORDER BY id", [state])
        return str(rows[pick % len(rows)]["id"]) if rows else ""


@pytest.fixture(scope="module")
def one_world(postgres: TestPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    urls = FreshDatabases(postgres)
    made = world(urls, tmp_path_factory.mktemp("world"))
    yield made
    made.close()
    urls.drop()


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_every_promise_holds_after_any_history(one_world: World, seed: int) -> None:
    class Here(Histories):
        world = one_world

    run_state_machine_as_test(
        seeded(seed)(Here),
        settings=examples(
            max_examples=max(10, TRIALS // 10),
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
