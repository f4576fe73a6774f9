"""Plays every answer of a file: imports customers, has them asked, answers for them, checks the counts."""

from __future__ import annotations

import csv
import io
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import HearbackError
from shared.simulate import mails
from shared.simulate.http import Client, Refused
from shared.simulate.rows import Answer

_PLAYERS = 6


class Shown(Protocol):
    """Shows what is under way, with a count (see `shared.cli.show.Steps`)."""

    def step(self, text: str) -> AbstractContextManager[Callable[[str], None]]: ...


class NotEqual(HearbackError):
    """What was played and what a service counts are not the same."""

    slug = "not-equal"


@dataclass
class Run:
    """One simulation: its answers by the address they come from, and what was seen of each.

    It gives up on the rest when nothing has moved for `patience` seconds.
    """

    name: str
    people: dict[str, Answer]
    patience: float
    program_id: str = ""
    since: str = ""
    asked: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def expected(self) -> Counter[str]:
        """What every service has to agree with."""
        found = Counter(asked=len(self.people), answered=len(self.people))
        for answer in self.people.values():
            found[_band(answer.score)] += 1
            found["tasks"] += answer.score <= 6
            found["opt-outs"] += answer.opts_out
        return found


def cast(answers: list[Answer], patience: float) -> Run:
    """Gives each answer a customer: an address that nobody has, and a name that says who it is."""
    name = "s" + secrets.token_hex(3)  # no number, and not 12e345 either: it is searched for as a word
    # Numbers and domains nobody writes to by accident; the simulation runs against the mailbox only.
    first = secrets.randbelow(9_000) * 10_000
    people = {}
    for number, answer in enumerate(answers):
        address = f"+49152{first + number:08d}" if answer.channel == "sms" else f"c{number}@{name}.example"
        people[address] = answer
    return Run(name, people, patience)


def play(run: Run, client: Client, shown: Shown) -> Counter[str]:
    """Plays all of it and returns the tally.

    Raises `NotEqual` when any service counts otherwise, saying what.
    """
    with shown.step("Waiting until every service knows the key"):
        known(client, run.patience)
    last = client.api("GET", "/mailbox/api/messages?limit=1")["messages"]
    run.since = last[0]["at"] if last else ""
    with shown.step(f"Importing {len(run.people):,} customers"):
        _import(run, client)
    with shown.step("Asking them") as told:
        _ask(run, client, told)
    with shown.step("Answering for them") as told:
        _answer_all(run, client, told)
    with shown.step("Waiting until every service counts the same") as told:
        return _agree(run, client, told)


def known(client: Client, patience: float) -> None:
    """A key travels over the log to survey and reporting, so it may be a moment late there."""
    until = time.monotonic() + patience
    for path in ("/survey/api/programs", "/reporting/api/nps", "/followup/api/tasks?limit=1"):
        while True:
            try:
                client.api("GET", path)
                break
            except Refused as error:
                if error.http_status != 401 or time.monotonic() > until:
                    raise
                time.sleep(0.1)


def _import(run: Run, client: Client) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["external id", "name", "email", "phone", "touchpoint", "simulation", "answered at"])
    for number, (address, answer) in enumerate(run.people.items()):
        email, phone = ("", address) if answer.channel == "sms" else (address, "")
        who = f"sim-{run.name}-{number}"
        when = answer.answered_at.strftime("%Y-%m-%d %H:%M")
        writer.writerow([who, f"{run.name} {number}", email, phone, answer.touchpoint, run.name, when])
    query = f"?wait=true&file_name=simulation-{run.name}.csv"
    report = client.upload("/survey/api/customers/import" + query, text.getvalue().encode(), "text/csv")
    until = time.monotonic() + run.patience
    while report["state"] in ("waiting", "running") and time.monotonic() < until:
        time.sleep(0.2)
        report = client.api("GET", f"/survey/api/imports/{report['id']}")
    if report["created"] != len(run.people):
        reasons = "; ".join(f"line {one['line']}: {one['reason']}" for one in report["errors"][:3])
        raise NotEqual(f"{report['created']:,} of {len(run.people):,} customers were imported. {reasons}")


def _ask(run: Run, client: Client, told: Callable[[str], None]) -> None:
    program = client.api(
        "POST",
        "/survey/api/programs",
        {"name": f"Simulation {run.name}", "touchpoint": "Simulation", "channels": ["email", "sms"]},
        once=f"program-{run.name}",
    )
    run.program_id = program["id"]
    ask = client.api(
        "POST",
        f"/survey/api/programs/{run.program_id}/ask",
        {"audience": {"property": {"name": "simulation", "value": run.name}}},
        once=f"ask-{run.name}",
    )
    until = time.monotonic() + run.patience
    while ask["state"] == "running" and time.monotonic() < until:
        time.sleep(0.1)
        ask = client.api("GET", f"/survey/api/asks/{ask['id']}")
        told(f"{ask['asked']:,} of {ask['total']:,}")
    if ask["asked"] != len(run.people):
        raise NotEqual(
            f"{ask['asked']:,} of {len(run.people):,} customers were asked, {ask['skipped']:,} skipped."
        )


def _answer_all(run: Run, client: Client, told: Callable[[str], None]) -> None:
    """Answers each message as it arrives, until all have answered or nothing arrives any more."""
    customer = Client(client.base, {})
    cursor = ""
    moved = time.monotonic()
    with ThreadPoolExecutor(_PLAYERS) as players:
        while len(run.answered) + len(run.failures) < len(run.people):
            fresh, cursor = client.news(cursor, run.since)
            asking = [one for one in fresh if one["direction"] == "out" and one["to"] in run.people]
            invitations = [one for one in asking if one["to"] not in run.asked]
            run.asked.update(one["to"] for one in invitations)
            list(players.map(lambda message: _answer(run, client, customer, message), invitations))
            told(f"{len(run.answered):,} of {len(run.people):,}")
            if invitations:
                moved = time.monotonic()
            elif time.monotonic() - moved > run.patience:
                missing = len(run.people) - len(run.answered)
                raise NotEqual(f"{missing:,} customers got no message within {run.patience:.0f} s.")
            else:
                time.sleep(0.1)
    if run.failures:
        raise NotEqual(f"{len(run.failures):,} answers failed, the first: {run.failures[0]}")


def _answer(run: Run, client: Client, customer: Client, message: dict[str, Any]) -> None:
    answer = run.people[message["to"]]
    try:
        if message["channel"] == "sms":
            text = f"{answer.score} {answer.comment}".strip()
            client.api("POST", "/mailbox/api/reply", {"from": message["to"], "text": text})
        else:
            page = mails.click(customer, message["html"], answer.score)
            mails.say(customer, page, comment=answer.comment)
        run.answered.add(message["to"])
    except Refused as error:
        run.failures.append(f"line {answer.line}: {error.message}")


def _agree(run: Run, client: Client, told: Callable[[str], None]) -> Counter[str]:
    expected = run.expected()
    until = time.monotonic() + run.patience
    while True:
        differences = list(_differences(run, client, expected))
        if not differences:
            return expected
        told(differences[0])
        if time.monotonic() > until:
            raise NotEqual("Not every count is equal.\n" + "\n".join(f"  {line}" for line in differences))
        time.sleep(0.5)


def _differences(run: Run, client: Client, expected: Counter[str]) -> Iterator[str]:
    """What survey, followup and reporting say otherwise than was played, one sentence each."""
    # What comes after a customer's text is our reply to it, and no question.
    arrived = list(client.messages(run.since))
    texted = {one["from"]: one["at"] for one in arrived if one["direction"] == "in"}
    asked = Counter(
        one["to"]
        for one in arrived
        if one["direction"] == "out"
        and one["to"] in run.people
        and one["at"] <= texted.get(one["to"], one["at"])
    )
    twice = sum(count > 1 for count in asked.values())
    if twice:
        yield f"mailbox: {twice:,} customers were asked twice"
    responses = list(
        client.pages(f"/survey/api/responses?limit=100&program_id={run.program_id}", "responses")
    )
    played = Counter((a.score, a.comment) for a in run.people.values())
    found = Counter((one["score"], one["comment"] or "") for one in responses)
    yield from _compare("survey: answers", expected["answered"], len(responses))
    if found != played and len(responses) == expected["answered"]:
        yield f"survey: {(played - found).total():,} answers have other scores or words than were played"
    customers = {one["customer_id"] for one in responses}
    ours = [
        one
        for one in client.pages(f"/survey/api/customers?limit=100&q={run.name}", "customers")
        if (one["external_id"] or "").startswith(f"sim-{run.name}-")
    ]
    opted = sum(one["sms_opt_out_at"] is not None for one in ours)
    yield from _compare("survey: opt-outs", expected["opt-outs"], opted)
    tasks = [
        task
        for task in client.pages("/followup/api/tasks?limit=100&state=open", "tasks")
        if task["customer_id"] in customers
    ]
    yield from _compare("followup: tasks", expected["tasks"], len(tasks))
    nps = client.api("GET", f"/reporting/api/nps?program={run.program_id}")["total"]
    for name in ("promoters", "passives", "detractors"):
        yield from _compare(f"reporting: {name}", expected[name], nps[name])
    funnel = client.api("GET", f"/reporting/api/funnel?program={run.program_id}")
    stages = {stage["stage"]: stage["count"] for stage in funnel["stages"]}
    for stage, name in (("asked", "asked"), ("answered", "answered"), ("tasked", "tasks")):
        yield from _compare(f"reporting: {stage}", expected[name], stages.get(stage, 0))


def _compare(what: str, expected: int, found: int) -> Iterator[str]:
    if expected != found:
        yield f"{what}: {found:,}, played {expected:,}"


def _band(score: int) -> str:
    return "detractors" if score <= 6 else "passives" if score <= 8 else "promoters"
