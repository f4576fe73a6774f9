"""Customers with a message due, and their opt-outs at random moments around its hand-over."""

from __future__ import annotations

import heapq
import itertools
import json
import random
import secrets
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import urllib3

from services.followup.commands import changes, themes
from services.followup.domain.by import By
from services.followup.domain.change import Draft
from services.survey.commands import ask, company, customers, programs, tokens
from services.survey.domain.rows import Row as CustomerRow
from services.survey.edge import opt_out_fingerprints
from services.survey.words import words
from shared.channels import TIMEOUT_SECONDS
from shared.channels.mailbox import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from tests.support.running import PATIENCE, TOKEN, Running
from tests.support.slow_provider import Arrival, Pace, SlowProvider

Kind = Literal["invitation", "notice"]
Way = Literal["page", "one-click", "stop"]
Aim = Literal["queue", "claim", "provider", "silence"]
OWNER: dict[Kind, str] = {"invitation": "survey", "notice": "followup"}
# So many customers opt out at once, and so many besides whose moment is to be met exactly: others, whose
# opt-out waits for a message, must not make these late. Together fewer than the web process has threads,
# some of which are for followup's permits.
CLIENTS, EXACT = 4, 2
ON_ITS_WAY = words("en")["preferences"]["on_its_way"]
STOPPED = {words("en")["preferences"][f"saved_{what}"] for what in ("stop", "stop_all")}


@dataclass(slots=True)
class Trial:
    """One customer, the message that is due to them, and how and when they opt out.

    `aim`: 'queue': when at most `ahead` messages are before its own; 'claim': when a sender has claimed it;
    'provider': when the provider has been given it; 'silence': when the sender has given up on a provider
    that takes it only later. `pause` is in seconds, from then on.
    """

    number: int
    kind: Kind
    email: str | None
    phone: str | None
    way: Way
    channels: tuple[str, ...]
    aim: Aim
    ahead: int
    pause: float
    pace: Pace
    customer: str = ""
    token: str = ""
    posted_at: float = 0.0
    acknowledged_at: float = 0.0
    on_its_way: bool = False

    @property
    def addresses(self) -> set[str]:
        """Where nothing is to arrive any more."""
        by_channel = {"email": self.email, "sms": self.phone}
        return {found for channel in self.channels if (found := by_channel[channel])}

    def __str__(self) -> str:
        return f"trial {self.number} ({self.kind}, {self.way}, aimed at {self.aim})"


def draw(number: int, kind: Kind, chance: random.Random) -> Trial:
    """One trial; the same `chance` draws the same."""
    email: str | None = f"customer{number}@example.com"
    phone: str | None = f"+49151{number:08d}"
    way: Way
    channels: tuple[str, ...]
    match chance.choices(("email", "sms", "both"), (50, 35, 15))[0]:
        case "email":
            phone = None
            way, channels = chance.choice(("page", "one-click")), ("email",)
        case "sms":
            email = None
            way, channels = chance.choice(("page", "stop")), ("sms",)
        case _:
            way = chance.choice(("page", "one-click"))
            channels = ("email", "sms") if way == "page" else ("email",)
    aims: tuple[Aim, ...] = ("queue", "claim", "provider", "silence")
    aim = chance.choices(aims, (25, 45, 29, 1))[0]
    # So that even a short run has them: a provider that takes a message after the longest wait, or too late.
    late = number % 500 in range(2, 10)
    if number % 200 < 2:
        aim = "silence"
    elif late:
        aim = "provider"
    # Two senders work side by side, and each claims up to 100 messages at once, for 2 s of work.
    ahead, pause = chance.randint(0, 45), 0.0
    if aim == "claim":  # while the permit is being granted, or later in the batch
        pause = chance.choice((chance.uniform(0, 0.1), chance.uniform(0, 1.5)))
    pace = Pace(chance.uniform(0, 0.15), chance.uniform(0, 0.15))
    if aim == "silence":
        pace = Pace(TIMEOUT_SECONDS + chance.uniform(1.5, 2.5), 0)
        pause = TIMEOUT_SECONDS + chance.uniform(0.1, 0.5)
    elif aim == "provider":
        share = chance.uniform(0, 0.7)
        if late or chance.random() < 0.15:
            slow, share = chance.uniform(2.4, 3.2), chance.uniform(0, 0.1 if late else 1.1)
            pace = Pace(slow, 0) if late else chance.choice((Pace(slow, 0), Pace(0, slow)))
        pause = share * (pace.before + pace.after)
    return Trial(number, kind, email, phone, way, channels, aim, ahead, pause, pace)


@dataclass
class Race:
    """`count` trials against running senders, by default half with survey's and half with followup's."""

    running: Running
    provider: SlowProvider
    count: int
    seed: int = 1
    kinds: tuple[Kind, ...] = ("invitation", "notice")
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        turn = itertools.cycle(self.kinds)
        self.trials = [draw(number, next(turn), chance) for number in range(self.count)]
        self._of_address = {a: one for one in self.trials for a in (one.email, one.phone) if a}
        self._of_customer: dict[str, Trial] = {}
        self.http = urllib3.PoolManager(timeout=30, retries=False, maxsize=CLIENTS + EXACT)
        self._lock = threading.Lock()
        self._due: list[tuple[float, int]] = []
        self._aimed: set[int] = set()
        self._fired: dict[int, Future[None]] = {}
        self._begun = 0.0

    def of(self, kind: Kind) -> list[Trial]:
        return [one for one in self.trials if one.kind == kind]

    # What comes before: everybody is known, and half of them have been asked and have answered.

    def prepare(self) -> None:
        """Makes the customers; those whom followup will write to are asked, and answer, as people do."""
        db, settings = self.running.db("survey"), self.running.settings
        with db.transaction() as tx:
            company.ensure(tx)
            rows = [
                CustomerRow({k: v for k, v in (("email", one.email), ("phone", one.phone)) if v})
                for one in self.trials
            ]
            for one, found in zip(
                self.trials, customers.upsert(tx, rows, opt_out_fingerprints(settings)), strict=True
            ):
                one.customer = str(found.customer_id)
                self._of_customer[one.customer] = one
            minted = tokens.mint(
                tx,
                [(one.customer, one.customer, ("invitation", None), one.channels[0]) for one in self.trials],
                self.running.url,
            )
            for one in self.trials:
                one.token = minted[one.customer]["preferences"].rsplit("/", 1)[1]
        notices = self.of("notice")
        self._ask("Before", notices)
        self.running.wait(lambda: len(self.provider.taken) == len(notices), None, "the first messages")
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(self._answer, self.provider.taken))
        followup = self.running.db("followup")

        def known() -> bool:
            with followup.transaction() as tx:
                return bool(tx.value("SELECT count(*) FROM response") == len(notices))

        self.running.wait(known, None, "the answers to arrive")
        with followup.transaction() as tx:
            self.theme = str(themes.add(tx, "Too late")["id"])
            themes.tie(tx, self.theme, [str(row["id"]) for row in tx.all("SELECT id FROM response")], None)

    def _answer(self, arrival: Arrival) -> None:
        found = TOKEN.search(arrival.message["text"])
        assert found, arrival.message["text"]
        fields = {"nonce": secrets.token_urlsafe(12), "seen": "0", "score": "3", "comment": "too late"}
        reply = self.http.request(
            "POST",
            f"{self.running.url}/a/{found[1]}",
            fields=fields,
            encode_multipart=False,
            headers={"Accept": "application/json"},
        )
        assert reply.status == 200, reply.data

    def _ask(self, program: str, people: list[Trial]) -> None:
        db = self.running.db("survey")
        with db.transaction() as tx:
            made = programs.create(tx, program)
            wanted = {"customers": [one.customer for one in people]}
            run = ask.start(tx, str(made["id"]), wanted, "test")
        while run["state"] == "running":
            with db.transaction() as tx:
                run = ask.step(tx, str(run["id"]))
        assert run["asked"] == len(people), run

    def publish(self, title: str) -> None:
        """Followup has a notice for everybody who has answered."""
        draft = Draft(title, "Too late.", "On time.", "en", None, (self.theme,))
        lead = By(None, "Lea Lead")
        with self.running.db("followup").transaction() as tx:
            told = changes.publish(tx, changes.create(tx, draft, lead), lead)[0]["audience_count"]
        assert told == len(self.of("notice"))

    # The race.

    def run(self) -> None:
        """Queues everybody's message, opts everybody out, and returns when nothing is on its way."""
        self._begun = time.monotonic()
        self._dawdle()
        self.provider.pace = lambda message: self._of_address[message["to"]].pace
        self.provider.begun = self._aimed_at_the_provider
        self._ask("Race", self.of("invitation"))
        self.publish("On time from now on")
        until = time.monotonic() + PATIENCE + self.count
        with ThreadPoolExecutor(CLIENTS) as pool, ThreadPoolExecutor(EXACT) as exact:
            while len(self._fired) < self.count or not self.still():
                assert time.monotonic() < until, f"{len(self._fired)} of {self.count} opted out"
                for kind in OWNER:
                    self._look_at_the_queue(kind)
                for one in self._due_now():
                    clients = exact if one.aim in ("provider", "silence") else pool
                    self._fired[one.number] = clients.submit(self.opt_out, one)
                time.sleep(0.02)
        for done in self._fired.values():
            done.result()

    def _dawdle(self) -> None:
        """Granting a permit and opting out take a moment before they commit, so that they meet in there."""
        with self.running.db("survey").transaction() as tx:
            tx.execute(
                "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(random() * 0.1); RETURN NULL; END $$;"
                # A permit is an upsert.
                " CREATE TRIGGER dawdle AFTER INSERT ON delivery"
                " FOR EACH STATEMENT EXECUTE FUNCTION dawdle();"
                " CREATE TRIGGER dawdle AFTER UPDATE OF email_opt_out_at, sms_opt_out_at ON customer"
                " FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"
            )

    def _look_at_the_queue(self, kind: Kind) -> None:
        with self.running.db(OWNER[kind]).transaction() as tx:
            rows = tx.all(
                "SELECT customer_id::text AS customer, state = 'claimed' AS claimed,"
                " row_number() OVER (PARTITION BY state ORDER BY not_before, id) AS place FROM delivery"
                " WHERE kind = %s AND state IN ('queued', 'claimed') ORDER BY place LIMIT 150",
                (kind,),
            )
        for row in rows:
            one = self._of_customer[row["customer"]]
            if row["claimed"] and one.aim in ("queue", "claim"):
                self._at(time.monotonic() + one.pause, one)
            elif one.aim == "queue" and row["place"] <= one.ahead + 1:
                self._at(time.monotonic(), one)

    def _aimed_at_the_provider(self, arrival: Arrival) -> None:
        # Also a claim that was over before anybody looked.
        one = self._of_address[arrival.to]
        self._at(arrival.begun_at + one.pause, one)

    def _at(self, when: float, one: Trial) -> None:
        with self._lock:
            if one.number not in self._aimed:
                self._aimed.add(one.number)
                heapq.heappush(self._due, (when, one.number))

    def _due_now(self) -> list[Trial]:
        found = []
        with self._lock:
            while self._due and self._due[0][0] <= time.monotonic():
                found.append(self.trials[heapq.heappop(self._due)[1]])
        return found

    def still(self) -> bool:
        """Whether nothing is queued or on its way, and survey has been told of everything."""
        for service in ("survey", "followup"):
            with self.running.db(service).transaction() as tx:
                if tx.value("SELECT EXISTS (SELECT FROM delivery WHERE state IN ('queued', 'claimed'))"):
                    return False
                if service == "followup" and tx.value("SELECT EXISTS (SELECT FROM permit_result)"):
                    return False
        return len(self.provider.taken) == len(self.provider.arrivals)

    def opt_out(self, one: Trial) -> None:
        """Opts a customer out at one of the three edges, and notes when and how that was acknowledged."""
        one.posted_at = time.monotonic()
        match one.way:
            case "page":
                action = "stop_all" if len(one.channels) > 1 else f"stop_{one.channels[0]}"
                reply = self._post(f"/u/{one.token}", {"action": action}, {"Accept": "text/html"})
                one.acknowledged_at = time.monotonic()
                assert reply.status == 303, reply.data
                page = self.http.request("GET", f"{self.running.url}{reply.headers['Location']}")
                said = page.data.decode()
                assert page.status == 200 and any(text in said for text in STOPPED), said
                one.on_its_way = ON_ITS_WAY in said
            case "one-click":
                reply = self._post(f"/u/{one.token}", {"List-Unsubscribe": "One-Click"}, {})
                one.acknowledged_at = time.monotonic()
                assert reply.status == 200, reply.data
                one.on_its_way = ON_ITS_WAY in reply.data.decode()
            case _:
                reply = self.text(one.phone or "", "STOP")
                one.acknowledged_at = time.monotonic()
                assert reply.status in (200, 204), reply.data
                one.on_its_way = reply.status == 200 and reply.json() == {"on_its_way": True}

    def _post(self, path: str, fields: dict[str, str], headers: dict[str, str]) -> Any:
        return self.http.request(
            "POST",
            f"{self.running.url}{path}",
            fields=fields,
            headers=headers,
            encode_multipart=False,
            redirect=False,
        )

    def text(self, phone: str, words: str) -> Any:
        """A customer's text message, as the mailbox would tell it."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        event = {"id": secrets.token_hex(8), "type": "inbound", "from": phone, "text": words, "at": at}
        raw, stamp = json.dumps(event).encode(), str(int(time.time()))
        signature = sign(self.running.settings.key("mailbox-webhook"), stamp, raw)
        headers = {
            "Content-Type": "application/json",
            TIMESTAMP_HEADER: stamp,
            SIGNATURE_HEADER: signature,
        }
        return self.http.request("POST", f"{self.running.url}/webhooks/mailbox", body=raw, headers=headers)

    # What came of it.

    def arrivals(self) -> list[Arrival]:
        """The hand-overs since the race began."""
        return [one for one in self.provider.arrivals if one.begun_at >= self._begun]

    def classes(self) -> dict[Kind, Counter[str]]:
        """How the opt-outs met their messages."""
        found: dict[Kind, Counter[str]] = {kind: Counter() for kind in OWNER}
        at = self._by_trial()
        for one in self.trials:
            found[one.kind][_met(one, at.get(one.number, []))] += 1
        return found

    def wrong(self) -> list[str]:
        """Everything that may not be: messages after an opt-out, twice, or of which the ledgers lie."""
        wrong = []
        at = self._by_trial()
        for one in self.trials:
            came = at.get(one.number, [])
            for arrival in came:
                late = (arrival.taken_at or 0.0) - one.acknowledged_at
                if arrival.to in one.addresses and late > 0 and not one.on_its_way:
                    wrong.append(f"{one}: the provider took a message {late:.3f} s after nothing was to come")
            if len(came) > 1:
                wrong.append(f"{one}: handed over {len(came)} times")
        return [*wrong, *self._ledgers(at)]

    def _by_trial(self) -> dict[int, list[Arrival]]:
        at: dict[int, list[Arrival]] = {}
        for arrival in self.arrivals():
            at.setdefault(self._of_address[arrival.to].number, []).append(arrival)
        return at

    def _ledgers(self, at: dict[int, list[Arrival]]) -> list[str]:
        """Each ledger says of every message what the provider knows of it, and survey of followup's too."""
        wrong = []
        with self.running.db("survey").transaction() as tx:
            survey = tx.all("SELECT d.*, d.customer_id::text AS customer FROM delivery d")
            stopped = {
                (str(row["id"]), channel)
                for row in tx.all("SELECT * FROM customer")
                for channel in ("email", "sms")
                if row[f"{channel}_opt_out_at"]
            }
        with self.running.db("followup").transaction() as tx:
            told = {
                str(row["customer_id"]): row
                for row in tx.all(
                    "SELECT n.customer_id, n.state, n.skip_reason, n.delivery_id, d.state AS delivery"
                    " FROM notice n JOIN delivery d ON d.id = n.delivery_id"
                )
            }
        states = {str(row["id"]): str(row["state"]) for row in survey}
        wrong += [
            f"{row['id']} is {row['state']}, and its permit is out still"
            for row in survey
            if row["permit_expires_at"] and row["state"] != "claimed"
        ]
        refused = {row["customer"]: row for row in survey if row["state"] == "refused"}
        for one in self.trials:
            came = at.get(one.number, [])
            expected = {"uncertain"} if one.aim == "silence" else {"handed"}
            if came and states.get(came[0].delivery_id) not in expected:
                wrong.append(f"{one}: it came, and survey has {states.get(came[0].delivery_id)}")
            if one.kind == "notice":
                notice = told[one.customer]
                state = (notice["state"], notice["delivery"], notice["skip_reason"])
                right: set[tuple[str, str, str | None]] = {("skipped", "refused", "opted_out")}
                if came:
                    right = (
                        {("sent", "handed", None)} if "handed" in expected else {("uncertain",) * 2 + (None,)}
                    )
                if state not in right:
                    wrong.append(f"{one}: followup has {state}, and it came {len(came)} times")
            elif not came and (row := refused.get(one.customer, {})).get("reason") != "opted_out":
                wrong.append(f"{one}: it did not come, and survey has {row}")
            wrong += [
                f"{one}: {channel} is not stopped"
                for channel in one.channels
                if (one.customer, channel) not in stopped
            ]
        open_ = Counter(row["state"] for row in survey if row["state"] in ("queued", "claimed"))
        return wrong if not open_ else [*wrong, f"survey's ledger still has {dict(open_)}"]


def _met(one: Trial, came: list[Arrival]) -> str:
    theirs = [arrival for arrival in came if arrival.to in one.addresses]
    if one.on_its_way:
        return "on its way"
    if not theirs:
        return "other channel" if came else "refused"
    return "waited for" if (theirs[0].taken_at or 0.0) > one.posted_at else "after"
