"""A seeded history of acknowledged operations: customers are asked by real messages and answer over HTTP."""

from __future__ import annotations

import random
import secrets
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import urllib3

from services.followup.commands import changes, themes
from services.followup.domain.by import By
from services.followup.domain.change import Draft
from services.followup.queries import themes as theme_queries
from services.survey.commands import ask, company, customers, programs
from services.survey.domain.rows import Row
from services.survey.edge import opt_out_fingerprints
from tests.support.running import TOKEN, Cast, Running

_COMMENTS = ("too slow", "nobody called back", "fine", "lovely people", "the invoice was wrong", "")


@dataclass
class Person:
    """A customer, and their link once their message has come. Who has a `phone` is asked by text."""

    email: str
    account: str | None
    id: str = ""
    token: str = ""
    version: int = 0
    phone: str = ""

    @property
    def address(self) -> str:
        return self.phone or self.email


@dataclass(frozen=True)
class Taken:
    """A message that a provider has taken, as often as it has."""

    delivery_id: str
    to: str
    text: str


@dataclass(frozen=True)
class Ack:
    """An answer that was acknowledged: who, and as what."""

    person: Person
    score: int
    comment: str
    version: int


@dataclass
class Answers:
    """What customers answered and was acknowledged, for the checker. `seed` makes it again."""

    running: Running
    seed: int = 1
    people: list[Person] = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)
    nonces: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """What each customer has sent, by their id: one form is one version at most, however often it is sent."""
    gone: list[Person] = field(default_factory=list)
    """Who was erased."""
    refused: int = 0
    """How many answers had to be sent once more."""
    checked: int = 0
    """How many of `acks` the checker has seen."""
    where: Callable[[], str] | None = None
    """Where each attempt goes to; by default to the installation's web."""
    taken: Callable[[], list[Taken]] | None = None
    """What the providers have taken; by default what is in the installation's mailbox."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.http = urllib3.PoolManager(timeout=20, retries=False, maxsize=8)

    def form(
        self, person: Person, score: int | None = None, comment: str | None = None, *, nonce: str = ""
    ) -> dict[str, str]:
        """The fields of an answer, as the page's script sends them; what is not given is made up."""
        nonce = nonce or secrets.token_urlsafe(12)
        self.nonces[person.id].add(nonce)
        return {
            "nonce": nonce,
            "seen": str(person.version),
            "score": str(self.random.randint(0, 10) if score is None else score),
            "comment": self.random.choice(_COMMENTS) if comment is None else comment,
        }

    def acknowledged(self, person: Person, fields: Mapping[str, str], body: Mapping[str, object]) -> Ack:
        """Notes for the checker that `fields` were answered with `body`."""
        assert body["effect"] == "saved", body
        person.version = int(str(body["version"]))
        ack = Ack(person, int(fields["score"]), fields["comment"], person.version)
        self.acks.append(ack)
        return ack

    def answer(
        self, person: Person, score: int | None = None, comment: str | None = None, *, nonce: str = ""
    ) -> Ack:
        """Answers as the page's script does; sends the same form again until it is acknowledged."""
        fields = self.form(person, score, comment, nonce=nonce)
        body: dict[str, object] = {}

        def sent() -> bool:
            nonlocal body
            try:
                reply = self.http.request(
                    "POST",
                    f"{self.where() if self.where else self.running.url}/a/{person.token}",
                    fields=fields,
                    encode_multipart=False,
                    headers={"Accept": "application/json"},
                )
            except urllib3.exceptions.HTTPError:
                self.refused += 1
                return False
            if reply.status >= 500:
                assert reply.status == 503 and "Retry-After" in reply.headers, (reply.status, reply.data)
                self.refused += 1
                return False
            assert reply.status == 200, (reply.status, reply.data)
            body = reply.json()
            return True

        self.running.wait(sent, None, "an answer to be acknowledged")
        return self.acknowledged(person, fields, body)

    def answer_all(self, revise: float = 0.4) -> None:
        """Everybody answers; some change their mind afterwards, once or more."""
        for person in self.people:
            self.answer(person)
        for person in self.people:
            while self.random.random() < revise:
                self.answer(person)

    def messages(self) -> list[Taken]:
        """Every message that has reached a provider."""
        if self.taken:
            return self.taken()
        with self.running.db("log").transaction() as tx:
            rows = tx.all("SELECT delivery_id, recipient, text FROM mailbox.message WHERE direction = 'out'")
        return [Taken(row["delivery_id"], row["recipient"], row["text"]) for row in rows]

    def forget(self, person: Person) -> None:
        """They were erased: nothing of theirs is expected any more, anywhere."""
        self.people.remove(person)
        self.gone.append(person)
        self.acks = [ack for ack in self.acks if ack.person is not person]

    def final(self) -> dict[str, Ack]:
        """Each customer's last acknowledged answer."""
        return {ack.person.id: ack for ack in self.acks}


@dataclass
class Asked(Answers):
    """Answers to real messages of an installation."""

    def invite(self, count: int = 12) -> None:
        """More customers, some of them of one account, are asked by mail. Needs web, survey's sender."""
        run = self.ask(count)
        with self.running.db("survey").transaction() as tx:
            ask.step(tx, run)
        self.collect()

    def ask(self, count: int, texts: int = 0) -> str:
        """Has more customers asked, the last `texts` of them by SMS; returns the id of the ask, which
        survey's clock works off.
        """
        begin, by_text = len(self.people), len(self.people) + count - texts
        new = [
            Person(
                f"person{number}@example.com",
                f"Firm {number // 3}" if number % 2 else None,
                phone=f"+49301234{number:03}" if number >= by_text else "",
            )
            for number in range(begin, begin + count)
        ]
        db = self.running.db("survey")
        prints = opt_out_fingerprints(self.running.settings)
        rows = [
            Row(
                {
                    "phone" if one.phone else "email": one.address,
                    "name": one.email.split("@")[0],
                    "account": one.account,
                },
                {},
            )
            for one in new
        ]
        with db.transaction() as tx:
            company.ensure(tx)
            for one, outcome in zip(new, customers.upsert(tx, rows, prints), strict=True):
                one.id = str(outcome.customer_id)
            program = programs.ensure_default(tx)
            run = ask.start(tx, str(program["id"]), {"all": True}, "test")
        self.people = [*self.people, *new]
        return str(run["id"])

    def collect(self) -> None:
        """Returns when everybody has got their message, and knows their link."""
        self.running.wait(self.reached, None, "the messages")

    def reached(self) -> bool:
        """Notes the link of whoever has got their message; whether all have."""
        found = {message.to: TOKEN.search(message.text) for message in self.messages()}
        for one in self.people:
            match = found.get(one.address)
            if match:
                one.token = match[1]
        return all(one.token for one in self.people)

    def told(self, in_hands: int) -> None:
        """Asserts that nobody's message was lost: it is handed over, or uncertain, as so many are at most."""
        with self.running.db("survey").transaction() as tx:
            found = tx.all(
                "SELECT i.customer_id, d.state FROM invitation i JOIN delivery d ON d.ref_id = i.id"
                " WHERE d.kind = 'invitation'"
            )
        states = Counter(row["state"] for row in found)
        assert {row["customer_id"] for row in found} == {one.id for one in self.people}, "not all are asked"
        assert states.keys() <= {"handed", "delivered", "uncertain"}, states
        assert states["uncertain"] <= in_hands, states


@dataclass
class History(Asked):
    """The same, of an installation whose processes are `cast`."""

    cast: Cast = field(kw_only=True)

    def publish(self, title: str, count: int = 1_000_000) -> str:
        """A change to which so many of the answers led is told to who gave them; returns its id."""
        with self.running.db("followup").transaction() as tx:
            theme = str(theme_queries.active(tx)[0]["id"])
            answers = tx.all("SELECT id FROM response ORDER BY id LIMIT %s", (count,))
            themes.tie(tx, theme, [str(row["id"]) for row in answers], None)
            draft = Draft(title, "Too late.", "On Saturdays.", "en", None, (theme,))
            ann = By(None, "Ann")
            change = changes.create(tx, draft, ann)
            changes.publish(tx, change, ann)
        return str(change)


class Traffic:
    """Customers who answer all the time; that one of them had to try again is an error, raised at the end.

    Unless they are `patient`. By default it is everybody of the history; nobody may be in two at once.
    Between two answers is a `pause`, in seconds.
    """

    def __init__(
        self,
        history: Answers,
        people: Sequence[Person] = (),
        *,
        patient: bool = False,
        pause: float = 0.0,
    ) -> None:
        self.history = history
        self.people = people or history.people
        self.patient = patient
        self.pause = pause
        self.answered = 0
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.history.answer(self.people[self.answered % len(self.people)])
                self.answered += 1
                self._stop.wait(self.pause)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Traffic:
        self._refused = self.history.refused
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        refused = self.history.refused - self._refused
        assert self.patient or not refused, "the web did not accept every answer at once"

    def wait_for_more(self) -> None:
        """Returns when some more have been answered: the web goes on."""
        until = self.answered + 5
        self.history.running.wait(lambda: self.answered >= until or self._error, None, "more answers")
