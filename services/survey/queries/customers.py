"""Reads customers: lists, search, one of them; an agent sees only theirs."""

from __future__ import annotations

import re
from typing import Any

from services.survey import store
from services.survey.commands.permits import contacts
from services.survey.domain import budget
from services.survey.queries.company import company
from shared.db import Row, Tx
from shared.errors import Invalid, NotFound
from shared.ids import is_id
from shared.web.access import Actor
from shared.web.paging import Cursor

_WORDS = (
    "words(coalesce(c.name, '') || ' ' || coalesce(c.email, '') || ' ' || coalesce(c.phone, '') || ' '"
    " || coalesce(c.external_id, ''))"
)
# What a list calls a customer, and is sorted by.
_NAME = "lower(coalesce(c.name, c.email, c.phone, c.external_id))"
_SELECT = (
    f"SELECT c.*, {_NAME} AS by_name, {store.ACCOUNT_BLOCK} AS account,"  # noqa: S608
    " r.score AS last_score, r.answered_at AS last_answered_at"
    " FROM customer c LEFT JOIN account a ON a.id = c.account_id"
    " LEFT JOIN LATERAL (SELECT score, answered_at FROM response"
    "  WHERE customer_id = c.id AND state = 'counted' ORDER BY answered_at DESC LIMIT 1) r ON true"
)
# An agent's customers: of the accounts they manage, and of the tasks that are theirs or nobody's.
_MINE = (
    "c.id IN (SELECT m.id FROM customer m JOIN account n ON n.id = m.account_id"
    "  WHERE n.manager_email = %(me)s"
    " UNION ALL SELECT (jsonb_array_elements_text(t.data->'customer_ids'))::uuid FROM task_replica t"
    "  WHERE t.owner_email = %(me)s OR t.owner_email IS NULL)"
)
# Who matches a term, found from the term: fast as long as it is not almost everybody.
_WHO = (
    f"SELECT c.id FROM customer c WHERE {_WORDS} @@ %(term)s::tsquery"  # noqa: S608
    " UNION ALL SELECT k.id FROM account n JOIN customer k ON k.account_id = n.id"
    "  WHERE words(n.name) @@ %(term)s::tsquery"
    " UNION ALL SELECT customer_id FROM response WHERE words(comment) @@ %(term)s::tsquery"
)
# Whether one customer matches a term, for terms that match so many that the first page is soon full.
_WHETHER = (
    f"({_WORDS} @@ %(term)s::tsquery OR words(a.name) @@ %(term)s::tsquery OR EXISTS ("  # noqa: S608
    "SELECT 1 FROM response q WHERE q.customer_id = c.id AND words(q.comment) @@ %(term)s::tsquery))"
)
BROAD = 2_000
MAX_TERMS = 6


def find(
    tx: Tx,
    who: Actor,
    *,
    q: str = "",
    account_id: str | None = None,
    external_id: str | None = None,
    email: str | None = None,
    phone: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> tuple[list[Row], str | None]:
    """Customers that match all of what is given, by name, and the cursor of the next page.

    `q` is beginnings of words, each of which must be found in the name, an address, the account or a
    comment. Raises `Invalid` for a damaged cursor.
    """
    where, args = ["true"], dict[str, Any]()
    if who.is_agent:
        where.append(_MINE)
        args["me"] = who.email
    for n, term in enumerate(terms(q)):
        args[f"q{n}"] = f"'{term}':*"
        broad = tx.value(f"SELECT count(*) FROM ({_WHO} LIMIT {BROAD}) w", {"term": args[f"q{n}"]}) == BROAD  # noqa: S608
        condition = _WHETHER if broad else f"c.id IN ({_WHO})"
        where.append(condition.replace("%(term)s", f"%(q{n})s"))
    for column, value in (
        ("account_id", account_id),
        ("external_id", external_id),
        ("email_key", email.casefold() if email else None),
        ("phone", phone),
    ):
        if value:
            where.append(f"c.{column} = %({column})s")
            args[column] = value
    after = _after(cursor)
    if after:
        where.append(f"({_NAME}, c.id) > (%(name)s, %(id)s::uuid)")
        args["name"], args["id"] = after
    rows = tx.all(
        # What is shown of each is read for the page only.
        f"WITH page AS MATERIALIZED (SELECT c.id, {_NAME} AS by_name FROM customer c"  # noqa: S608
        f" LEFT JOIN account a ON a.id = c.account_id WHERE {' AND '.join(where)}"
        f" ORDER BY {_NAME}, c.id LIMIT %(limit)s)"
        f" {_SELECT} JOIN page p ON p.id = c.id ORDER BY p.by_name, c.id",
        {**args, "limit": limit + 1},
    )
    more = len(rows) > limit
    rows = [_with_flags(row) for row in rows[:limit]]
    return rows, Cursor.encode(rows[-1]["by_name"], rows[-1]["id"]) if more else None


def terms(q: str) -> list[str]:
    """The words of a search; a phone number however it is spaced is one word."""
    text = q.strip()
    if re.fullmatch(r"[+\d][\d\s()/.-]{4,}", text):
        text = re.sub(r"\D", "", text)
    found = re.split(r"[@._+\-/\\'\"()<>:&,;!|*\s\0]+", text.lower())
    return [term[:60] for term in found if term][:MAX_TERMS]


def _after(cursor: str | None) -> tuple[str, str] | None:
    values = Cursor.decode(cursor, 2)
    if values is None:
        return None
    if not is_id(str(values[1])) or "\0" in str(values[0]):
        raise Invalid(
            "This page's cursor is damaged: start again from the first page.", fields={"cursor": "damaged"}
        )
    return str(values[0]), str(values[1])


def _with_flags(row: Row) -> Row:
    return {**row, "may_email": store.may(row, "email"), "may_sms": store.may(row, "sms")}


def get(tx: Tx, who: Actor, customer_id: str) -> Row:
    """One customer. Raises `NotFound` when there is none, or none that the agent may see."""
    row = None
    if is_id(customer_id):
        mine = f" AND {_MINE}" if who.is_agent else ""
        row = tx.one(f"{_SELECT} WHERE c.id = %(id)s{mine}", {"id": customer_id, "me": who.email})
    if row is None:
        raise NotFound("There is no such customer.")
    return _with_flags(row)


def count(tx: Tx) -> int:
    """How many customers there are; above 100,000 the planner's estimate."""
    found = tx.value("SELECT count(*) FROM (SELECT 1 FROM customer LIMIT 100001) c")
    if found <= 100_000:
        return int(found)
    return int(
        tx.value("SELECT greatest(reltuples, 100000)::bigint FROM pg_class WHERE oid = 'customer'::regclass")
    )


def why_not(tx: Tx, customer_ids: list[str]) -> dict[str, tuple[str | None, str | None]]:
    """For each customer the channel they would be asked on now, or the reason why they would not be."""
    here = company(tx)
    found: dict[str, tuple[str | None, str | None]] = {}
    for customer_id, (contact, _) in contacts(tx, customer_ids, gap_days=here["ask_gap_days"]).items():
        channel, reason = budget.choose_channel(contact, budget.CHANNELS)
        if channel is not None:
            reason = budget.may_ask(contact, tx.now, here["ask_gap_days"], here["contact_limit"])
        found[customer_id] = (None, reason) if reason else (channel, None)
    return found
