"""Plays three months of history: asks every week, answers, calls back, changes what was wrong, tells."""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from shared.clock import Clock
from shared.demo import plan
from shared.demo.plan import Person, Said, Sample
from shared.demo.stage import Stage
from shared.errors import Conflict
from shared.settings import Settings
from shared.simulate import mails
from shared.simulate.http import Client
from shared.web.csrf import HEADER
from shared.web.session import COOKIE
from shared.web.signing import serializer

WEEKS = 13
SEED = 7


def begins(now: datetime) -> datetime:
    """When the history begins: the Monday morning (UTC) that lets it end this week."""
    monday = now.astimezone(UTC).date() - timedelta(days=now.weekday())
    return datetime.combine(monday - timedelta(weeks=WEEKS - 1), time(7), UTC)


@dataclass
class History:
    """What has happened so far. `told` says how far it is."""

    stage: Stage
    end: datetime
    told: Callable[[str], None]
    draw: random.Random = field(default_factory=lambda: random.Random(SEED))
    sample: Sample = field(default_factory=plan.load)
    people: dict[str, Person] = field(default_factory=dict)
    said: dict[str, Said] = field(default_factory=dict)
    themes: dict[str, str] = field(default_factory=dict)
    program_id: str = ""
    read_until: str = ""

    def __post_init__(self) -> None:
        self.zone = ZoneInfo(self.sample["company"]["time_zone"])
        self.customer = Client(self.stage.url, {})

    def play(self) -> None:
        """All of it, up to `end`."""
        self._found()
        first = self.stage.clock.now()
        for week in range(WEEKS):
            for day in range(5):
                morning = datetime.combine(
                    (first + timedelta(weeks=week, days=day)).date(), time(8), self.zone
                )
                if morning >= self.end:
                    break
                self.told(f"{morning:%d %B}")
                self._day(week, day, morning)
        self._move(self.end)
        self.stage.settle()

    def _day(self, week: int, day: int, morning: datetime) -> None:
        self._move(morning)
        self.stage.settle()
        if day == 0:
            self._ask(week)
        for theme in self.sample["themes"]:
            if (theme["mended_week"], day) == (week, 1):
                self._tell(theme)
        for hours in (3, 7):
            self._answer(morning, day, timedelta(hours=hours))
            self._call_back(morning + timedelta(hours=hours))
        self._answer(morning, day, timedelta(days=1))

    def _move(self, at: datetime) -> bool:
        """Sets the clock, never back and never beyond the end; False when the end is reached."""
        if at > self.end:
            return False
        if at > self.stage.clock.now():
            self.stage.clock.set(at)
        return True

    def _found(self) -> None:
        """The company, its staff, its customers and its program."""
        admin = self._as("admin")
        admin.api("PATCH", "/survey/api/company", {**self.sample["company"], "fallback_owner": None})
        for staff in self.sample["staff"]:
            admin.submit(admin.open(self.stage.url + "/followup/staff").form("email"), staff)
        lead = next(staff for staff in self.sample["staff"] if staff["role"] == "lead")
        admin.api("PATCH", "/survey/api/company", {"fallback_owner": lead["email"]})
        self.stage.settle()
        people = plan.people(self.sample, self.draw)
        self.people = {address: one for one in people for address in (one.email, one.phone) if address}
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(people[0].row()))
        writer.writeheader()
        writer.writerows(one.row() for one in people)
        admin.upload(
            "/survey/api/customers/import?wait=true&file_name=customers.csv",
            text.getvalue().encode(),
            "text/csv",
        )
        self.program_id = admin.api("GET", "/survey/api/programs")["programs"][0]["id"]
        admin.api("PATCH", f"/survey/api/programs/{self.program_id}", {"name": "How are we doing?"})
        self.themes = {one["name"]: one["id"] for one in admin.api("GET", "/followup/api/themes")["themes"]}
        self.stage.settle()

    def _ask(self, week: int) -> None:
        touchpoint = plan.TOUCHPOINTS[week % len(plan.TOUCHPOINTS)]
        ask = self._as("lead").api(
            "POST",
            f"/survey/api/programs/{self.program_id}/ask",
            {
                "audience": {"property": {"name": "wave", "value": str(week % plan.WAVES)}},
                "touchpoint": touchpoint,
            },
        )
        self._settle_after_asking(ask["id"])
        self.mails = {
            message["to"]: message
            for message in sorted(self._messages(), key=lambda one: one["at"])
            if message["direction"] == "out" and message["to"] in self.people
        }
        # Most answer within two days; the last ones on Friday.
        self.waiting: list[tuple[timedelta, str, Said]] = []
        for address in sorted(self.mails):
            said = plan.says(self.sample, self.draw, self.people[address], week, touchpoint)
            if said:
                days = self.draw.choices(range(5), (8, 5, 3, 2, 1))[0]
                minutes = self.draw.randint(40, 760)
                self.waiting.append((timedelta(days=days, minutes=minutes), address, said))
        self.waiting.sort(key=lambda one: one[:2])

    def _settle_after_asking(self, ask_id: str) -> None:
        # An ask is worked off by the clock role, so nothing is under way for a moment before it begins.
        client = self._as("lead")
        while True:
            self.stage.settle()
            if client.api("GET", f"/survey/api/asks/{ask_id}")["state"] != "running":
                self.stage.settle()
                return

    def _answer(self, morning: datetime, day: int, until: timedelta) -> None:
        """Those who answer on this day before so long after the morning, and have not yet."""
        while self.waiting and self.waiting[0][0] - timedelta(days=day) < until:
            since_monday, address, said = self.waiting.pop(0)
            if not self._move(morning + (since_monday - timedelta(days=day))):
                return
            message = self.mails[address]
            if message["channel"] == "sms":
                text = f"{said.score} {said.comment}".strip()
                self.customer.api("POST", "/mailbox/api/reply", {"from": address, "text": text})
            elif self.draw.random() < 0.06:
                # Some open the message and never confirm: an unconfirmed click, which is no answer.
                self.customer.open(mails.link(self.customer, message["html"], said.score))
            else:
                page = mails.click(self.customer, message["html"], said.score)
                page = mails.say(self.customer, page, comment=said.comment)
                mails.say(self.customer, page, callback=said.callback or "")
            self.said[address] = said
        self.stage.settle()

    def _call_back(self, at: datetime) -> None:
        """The account managers work their tasks; in the last days they are behind, as people are."""
        if not self._move(at):
            return
        behind = self.end - at < timedelta(days=6)
        for staff in self.sample["staff"]:
            if staff["role"] not in ("agent", "lead"):
                continue
            client = self._as(staff["email"])
            for task in list(client.pages("/followup/api/tasks?state=open&owner=me&limit=100", "tasks")):
                if self.draw.random() < (0.1 if behind else 0.6):
                    self._work(client, task["id"])
        self.stage.settle()

    def _work(self, client: Client, task_id: str) -> None:
        task = client.api("GET", f"/followup/api/tasks/{task_id}")
        path = f"/followup/api/tasks/{task_id}"
        words = self.sample["callbacks"]
        channel = "email" if task["dont_call"] else self.draw.choice(("phone", "phone", "email"))
        reached = self.draw.random() < 0.7
        note = self.draw.choice(words["reached" if reached else "missed"])
        client.api("POST", f"{path}/attempts", {"channel": channel, "reached": reached, "note": note})
        if not reached:
            return
        about = [self._theme_of(answer) for answer in task["answers"]]
        theme = next((name for name in about if name), "Product quality")
        outcome = self.draw.choices(("solved", "explained", "promised", "lost"), (5, 2, 2, 1))[0]
        client.api(
            "POST", f"{path}/resolve", {"theme_id": self.themes[theme], "outcome": outcome, "note": note}
        )

    def _theme_of(self, answer: dict[str, Any]) -> str | None:
        said = self.said.get(answer["email"] or "") or self.said.get(answer["phone"] or "")
        return said.theme if said else None

    def _tell(self, theme: dict[str, Any]) -> None:
        """The lead tells everyone whose words led to a change; some say whether it helped."""
        lead = self._as("lead")
        change = lead.api(
            "POST",
            "/followup/api/changes",
            {
                "title": theme["title"],
                "was_wrong": theme["was_wrong"],
                "is_different": theme["is_different"],
                "theme_ids": [self.themes[theme["name"]]],
            },
        )
        self._messages()
        lead.api("POST", f"/followup/api/changes/{change['id']}/publish", {})
        self.stage.settle()
        for message in self._messages():
            if message["channel"] == "email" and message["to"] in self.people and self.draw.random() < 0.45:
                mails.tell_helped(self.customer, message["html"], self.draw.random() < 0.8)
        self.stage.settle()

    def _messages(self) -> list[dict[str, Any]]:
        """What arrived in the mailbox since the last look."""
        found, self.read_until = self.customer.news(self.read_until)
        return found

    def _as(self, who: str) -> Client:
        """A client with the session of a staff member: by role for admin and lead, else by e-mail."""
        with self.stage.databases["followup"].transaction() as tx:
            row = tx.one(
                "SELECT id, epoch FROM staff WHERE NOT disabled AND %s IN (role, email) ORDER BY id LIMIT 1",
                (who,),
            )
        if row is None:
            raise Conflict(f"There is no staff member {who}.")
        return Client(
            self.stage.url, session_headers(self.stage.settings, self.stage.clock, row["id"], row["epoch"])
        )


def session_headers(settings: Settings, clock: Clock, staff_id: str, epoch: int) -> dict[str, str]:
    """The headers of a browser in which that staff member is logged in."""
    value = serializer(settings, "session", clock).dumps([staff_id, epoch, 0])
    cookie = value if isinstance(value, str) else value.decode()
    digest = hashlib.sha256(cookie.encode()).digest()
    token = hmac.new(settings.key("csrf"), digest, hashlib.sha256).hexdigest()
    return {"Cookie": f"{COOKIE}={cookie}", HEADER: token}
