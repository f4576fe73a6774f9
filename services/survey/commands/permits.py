"""Permits (rule 7): survey's short-lived leave to hand one message to one customer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from psycopg2.extras import Json

from services.survey import facts
from services.survey.addresses import Fingerprints
from services.survey.commands import tokens
from services.survey.domain import budget
from services.survey.domain.budget import Contact
from services.survey.queries.company import company
from services.survey.words import language_of
from shared.channels import ledger
from shared.db import Row, Tx

LIFETIME = timedelta(seconds=15)

Kind = Literal["invitation", "notice", "reply"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a sender wants to hand over. `id` is the delivery's and will be the permit's.

    `response_id` is what a notice is about; `prefer_channel` where a notice would rather go. A
    `channel` is fixed for messages whose text is made for it (invitations, replies). `claim` says which of
    the asker's tries this is; whoever settles the permit says it again.
    """

    id: str
    kind: Kind
    ref_id: str
    customer_id: str
    response_id: str | None = None
    prefer_channel: str | None = None
    channel: str | None = None
    claim: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to hand over one message within `LIFETIME`; its links are fresh."""

    id: str
    customer_id: str
    channel: str
    to: str
    name: str | None
    language: str
    links: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason as a skip has it ('expired' among them), or 'unknown_customer', 'settled'."""

    id: str
    reason: str


# What has reached the customer, or may have; a refused, failed or bounced message gives its place back.
SPENT = ("claimed", "handed", "delivered", "uncertain")

_CONTACTS = """SELECT c.id, c.email, c.phone, c.name, c.language,
    c.email_opt_out_at, c.sms_opt_out_at, c.email_bounced_at, c.sms_bounced_at,
    d.spent, d.last_asked
    FROM customer c LEFT JOIN LATERAL (
        SELECT count(*) FILTER (WHERE kind <> 'reply' AND at > %(window)s) AS spent,
               max(at) FILTER (WHERE kind = 'invitation') AS last_asked
        FROM (SELECT kind, coalesce(handed_at, claimed_at, created_at) AS at FROM delivery
              WHERE customer_id = c.id AND state = ANY(%(states)s) AND NOT id = ANY(%(except)s::uuid[])
                AND created_at > %(oldest)s AND NOT data ? 'test') m) d ON true
    WHERE c.id = ANY(%(ids)s::uuid[])"""


def contacts(
    tx: Tx,
    customer_ids: Sequence[str],
    *,
    excluding: Sequence[str] = (),
    states: Sequence[str] = SPENT,
    gap_days: int = 30,
) -> dict[str, tuple[Contact, Row]]:
    """What is known of reaching these customers; the budget is counted from the deliveries themselves."""
    rows = tx.all(
        _CONTACTS,
        {
            "ids": list(customer_ids),
            "except": list(excluding),
            "states": list(states),
            "window": tx.now - budget.BUDGET_WINDOW,
            # A message may have waited in the queue for long; none older than this matters.
            "oldest": tx.now - max(budget.BUDGET_WINDOW, timedelta(days=gap_days)) - timedelta(days=30),
        },
    )
    return {str(row["id"]): (_contact(row), row) for row in rows}


def _contact(row: Row) -> Contact:
    def those(what: str) -> frozenset[str]:
        return frozenset(channel for channel in budget.CHANNELS if row[f"{channel}_{what}_at"] is not None)

    return Contact(
        row["email"], row["phone"], those("opt_out"), those("bounced"), row["spent"], row["last_asked"]
    )


def take(
    tx: Tx, requests: Sequence[Request], public_url: str, fingerprints: Fingerprints
) -> tuple[list[Permit], list[Refusal]]:
    """Decides about each request, in order; what is granted is claimed for 15 seconds and spends the budget.

    Each claim keeps the fingerprint of the address written to (`written_to`), for reports that come late.
    Commit before handing over. The customers' rows are locked first and read afterwards, so an
    opt-out either is seen here or sees these permits.
    """
    facts.lock_customers(tx, [request.customer_id for request in requests])
    here = company(tx)
    known = contacts(
        tx,
        [request.customer_id for request in requests],
        excluding=[request.id for request in requests],
        gap_days=here["ask_gap_days"],
    )
    earlier = {
        str(row["id"]): row
        for row in tx.all(
            "SELECT id, state FROM delivery WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE",
            ([request.id for request in requests],),
        )
    }
    over = {
        str(row["id"])
        for row in tx.all(
            "SELECT id FROM invitation WHERE id = ANY(%s::uuid[]) AND expires_at <= %s",
            ([request.ref_id for request in requests if request.kind == "invitation"], tx.now),
        )
    }
    granted: list[tuple[Request, str]] = []
    refused: list[Refusal] = []
    used: dict[str, int] = {}
    for request in requests:
        found = known.get(request.customer_id)
        state = earlier[request.id]["state"] if request.id in earlier else None
        expired = request.kind == "invitation" and request.ref_id in over
        spent = used.get(request.customer_id, 0)
        channel, reason = _decide(request, state, found, spent, here, tx.now, expired=expired)
        if channel is None:
            refused.append(Refusal(request.id, reason or "unknown_customer"))
            continue
        granted.append((request, channel))
        if request.kind != "reply":
            used[request.customer_id] = used.get(request.customer_id, 0) + 1
    to = {r.id: known[r.customer_id][0].address(channel) or "" for r, channel in granted}
    written_to = {r.id: fingerprints(channel, to[r.id])[-1].hex() for r, channel in granted}
    _claim(tx, granted, written_to)
    links = tokens.mint(tx, [(r.id, r.customer_id, _about(r), channel) for r, channel in granted], public_url)
    permits = []
    for request, channel in granted:
        row = known[request.customer_id][1]
        language = language_of(row["language"], here["language"])
        permits.append(
            Permit(
                request.id,
                request.customer_id,
                channel,
                to[request.id],
                row["name"],
                language,
                links[request.id],
            )
        )
    return permits, refused


def _about(request: Request) -> tuple[str, str | None]:
    """Which invitation the message's trail link leads to: by its own id, or by its response's."""
    if request.kind == "invitation":
        return "invitation", request.ref_id
    if request.kind == "notice":
        return "response", request.response_id
    return "invitation", request.data.get("invitation_id")


def _decide(
    request: Request,
    state: str | None,
    found: tuple[Contact, Row] | None,
    used: int,
    here: Row,
    now: datetime,
    *,
    expired: bool,
) -> tuple[str | None, str | None]:
    if state not in (None, "queued", "claimed", "failed"):
        return None, "settled"
    if found is None:
        return None, "unknown_customer"
    if expired:  # it would ask a question that is closed
        return None, "expired"
    contact = found[0]
    if request.channel:
        reason = budget.channel_refusal(contact, request.channel)
        channel = request.channel if reason is None else None
    else:
        first = [request.prefer_channel] if request.prefer_channel in budget.CHANNELS else []
        order = [*first, *(c for c in budget.CHANNELS if c not in first)]
        channel, reason = budget.choose_channel(contact, order)
    if channel is None:
        return None, reason
    if request.kind == "reply" or request.data.get("test"):
        return channel, None
    contact = Contact(spent=contact.spent + used, last_asked=contact.last_asked)
    limit = here["contact_limit"]
    if request.kind == "invitation" and not request.data.get("again_of"):
        reason = "recently_asked" if used else budget.may_ask(contact, now, here["ask_gap_days"], limit)
    else:
        reason = budget.may_send(contact, limit)
    return (None, reason) if reason else (channel, None)


def _claim(tx: Tx, granted: Sequence[tuple[Request, str]], written_to: Mapping[str, str]) -> None:
    tx.values(
        "INSERT INTO delivery (id, kind, ref_id, customer_id, channel, state, created_at, not_before,"
        " claimed_at,"
        " permit_expires_at, attempts, data) VALUES %s"
        " ON CONFLICT (id) DO UPDATE SET state = 'claimed', channel = EXCLUDED.channel, reason = NULL,"
        # By the time of its claim our own sender knows a message as its own.
        " claimed_at = CASE WHEN delivery.state = 'claimed' AND delivery.kind <> 'notice'"
        " THEN delivery.claimed_at ELSE EXCLUDED.claimed_at END,"
        " permit_expires_at = EXCLUDED.permit_expires_at,"
        " settled_at = NULL, data = delivery.data || EXCLUDED.data",
        [
            (
                r.id,
                r.kind,
                r.ref_id,
                r.customer_id,
                channel,
                "claimed",
                tx.now,
                tx.now,
                tx.now,
                tx.now + LIFETIME,
                1,
                Json({"written_to": written_to[r.id]} | ({"claim": r.claim} if r.kind == "notice" else {})),
            )
            for r, channel in granted
        ],
    )


def outstanding(tx: Tx, customer_id: str, channel: str) -> bool:
    """Whether a message may be on its way to this customer: nobody has settled its permit, or it is
    uncertain because the provider has not said in time whether it takes it, and may take it yet.

    Either counts for a minute; by then a sender that died is given up, and so is such a provider.
    """
    return (
        tx.one(
            "SELECT 1 FROM delivery WHERE customer_id = %s AND channel = %s"
            " AND (permit_expires_at IS NOT NULL OR state = 'uncertain') AND claimed_at > %s LIMIT 1",
            (customer_id, channel, tx.now - ledger.CLAIM_LIFETIME),
        )
        is not None
    )
