"""Customers who were asked and have not answered yet, many at once; and the forms they will send."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from services.survey.commands import company, programs
from shared.ids import SystemIds, hash_token
from tests.bench.ground import SCORES
from tests.bench.load import post
from tests.support.running import Running

_COMMENTS = ("too slow", "", "nobody called back when they had promised to", "", "")
# Every second customer belongs to an account, and an account has so many of them.
_PER_ACCOUNT = 4


@dataclass
class Answer:
    """A form that is about to be sent."""

    token: str
    nonce: str
    score: int
    customer_id: str

    @property
    def request(self) -> bytes:
        """As the answer page's script sends it: the mail's score, confirmed, perhaps with words."""
        place = int(self.customer_id[-4:], 16) % len(_COMMENTS)
        return post(
            f"/a/{self.token}",
            f"pending={self.score}&comment={_COMMENTS[place].replace(' ', '+')}&nonce={self.nonce}&seen=0"
            "&gesture=pointerdown&ms=2312&webdriver=0",
        )


@dataclass
class Campaign:
    """Invitations that are out, and which of them were answered with what has been acknowledged."""

    running: Running
    fresh: list[Answer] = field(default_factory=list)
    acknowledged: list[Answer] = field(default_factory=list)

    def invite(self, count: int) -> None:
        """Adds customers with an invitation and its link, as if their mails had just left."""
        ids = SystemIds()
        with self.running.db("survey").transaction() as tx:
            company.ensure(tx)
            program = programs.ensure_default(tx)
            accounts = [ids.new() for _ in range(max(1, count // 2 // _PER_ACCOUNT))]
            tx.values(
                "INSERT INTO account (id, version, name, name_key) VALUES %s",
                [(id_, 1, f"Firm {id_}", f"firm {id_}") for id_ in accounts],
            )
            people = [
                (
                    ids.new(),
                    ids.new(),
                    secrets.token_urlsafe(16),
                    accounts[n // 2 % len(accounts)] if n % 2 else None,
                )
                for n in range(count)
            ]
            tx.values(
                "INSERT INTO customer (id, version, email, email_key, name, account_id, last_asked_at,"
                " created_at, updated_at) VALUES %s",
                [
                    (
                        who,
                        1,
                        f"{who}@example.com",
                        f"{who}@example.com",
                        f"Customer {who[-6:]}",
                        account,
                        tx.now,
                        tx.now,
                        tx.now,
                    )
                    for who, _, _, account in people
                ],
            )
            expires = tx.now + timedelta(days=30)
            tx.values(
                "INSERT INTO invitation (id, version, program_id, customer_id, channel, touchpoint, state,"
                " created_at, sent_at, expires_at) VALUES %s",
                [
                    (id_, 1, program["id"], who, "email", "Order", "sent", tx.now, tx.now, expires)
                    for who, id_, _, _ in people
                ],
            )
            tx.values(
                "INSERT INTO token (hash, purpose, customer_id, invitation_id, channel, created_at,"
                " expires_at) VALUES %s",
                [
                    (hash_token(token), "answer", who, id_, "email", tx.now, expires + timedelta(days=365))
                    for who, id_, token, _ in people
                ],
            )
        made = [
            Answer(token, secrets.token_urlsafe(16), SCORES[n % len(SCORES)], who)
            for n, (who, _, token, _) in enumerate(people)
        ]
        self.fresh += made
        with contextlib.closing(self.running.db("survey").connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cur:
                cur.execute("VACUUM ANALYZE")

    def take(self, count: int) -> list[Answer]:
        """The next forms to send; more are invited when there are too few."""
        if len(self.fresh) < count:
            self.invite(count - len(self.fresh))
        taken, self.fresh = self.fresh[:count], self.fresh[count:]
        return taken

    def book(self, sent: Sequence[Answer], places: Sequence[int], used: int) -> None:
        """Notes which of `sent` were acknowledged; those beyond the first `used` were never sent."""
        self.acknowledged += [sent[place] for place in places]
        self.fresh = [*sent[used:], *self.fresh]

    def counted(self) -> tuple[int, int]:
        """How many acknowledged answers are missing in survey's database, and how many are there twice."""
        with self.running.db("survey").transaction() as tx:
            row = tx.one(
                """WITH acked AS (SELECT * FROM unnest(%s::text[], %s::int[]) AS a (nonce, score)),
                kept AS (
                    SELECT v.nonce, v.score, count(*) AS times FROM response_version v GROUP BY 1, 2
                ), several AS (
                    SELECT response_id FROM response_version GROUP BY 1 HAVING count(*) > 1
                )
                SELECT (SELECT count(*) FROM acked LEFT JOIN kept USING (nonce, score)
                        WHERE kept.nonce IS NULL) AS missing,
                    (SELECT count(*) FROM acked JOIN kept USING (nonce, score) WHERE times > 1)
                        + (SELECT count(*) FROM several) AS doubled""",
                ([one.nonce for one in self.acknowledged], [one.score for one in self.acknowledged]),
            )
        assert row is not None
        return int(row["missing"]), int(row["doubled"])

    def detractors(self) -> Iterator[Answer]:
        return (one for one in self.acknowledged if one.score <= 6)
