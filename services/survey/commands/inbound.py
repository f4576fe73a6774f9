"""What customers write back by SMS: answers, further words, STOP, START and HELP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from psycopg2.extras import Json

from services.survey import facts
from services.survey.addresses import Fingerprints
from services.survey.commands import answers, opt_out
from services.survey.domain import sms
from services.survey.domain.answer import tidy_comment
from shared.db import Row, Tx, storable

# An auto-responder that answers our replies is not answered for ever.
REPLIES_AN_HOUR = 5
MAX_TEXT = 2000


@dataclass(frozen=True, slots=True)
class Received:
    """What a text did: its effect, and the customer whose permits an opt-out has to wait for."""

    effect: str
    stopped: str | None = None


def receive(
    tx: Tx,
    provider_id: str,
    phone: str,
    text: str,
    at: datetime,
    fingerprints: Fingerprints,
    keyword: sms.Keyword | None = None,
) -> Received:
    """Takes in one text message. The same `provider_id` again does nothing (of two at once the caller lets
    the second wait).

    `keyword` is what the provider took the text for, by words of its own, and has answered itself: it
    then counts, and gets no second reply.
    """
    if tx.one("SELECT 1 FROM inbound WHERE provider_id = %s", (provider_id,)):
        return Received("repeated")
    text = storable(tidy_comment(text) or "")[:MAX_TEXT]
    customer = tx.one(
        "SELECT id, account_id, sms_opt_out_at FROM customer WHERE phone = %s FOR NO KEY UPDATE", (phone,)
    )
    reading = sms.read(text, stopped=customer is not None and customer["sms_opt_out_at"] is not None)
    if keyword:
        reading = replace(reading, keyword=keyword)
    if customer is None:
        if reading.keyword == "stop":
            opt_out.stop_address(tx, "sms", phone, "stop", fingerprints)
        _keep(tx, provider_id, None, None, "", "unknown_sender", at)
        return Received("unknown_sender")
    customer_id = str(customer["id"])
    invitation = _invitation(tx, customer_id)
    invitation_id = str(invitation["id"]) if invitation else None
    if invitation and invitation["answered"] and not keyword and sms.counts_something(text):
        reading = sms.Reading(comment=text)
    effect = "message"
    answered = False
    if reading.score is not None and invitation_id:
        _answer(tx, invitation_id, provider_id, reading)
        effect, answered = "answer", True
    elif reading.keyword is None and invitation and invitation["answered"] and reading.comment:
        _add_words(tx, invitation_id or "", provider_id, invitation, reading.comment)
        effect = "answer"
    if reading.keyword == "stop":
        opt_out.opt_out(tx, customer_id, "sms", "stop", fingerprints)
        effect = "answer" if answered else "stop"
    elif reading.keyword == "start":
        opt_out.opt_in(tx, customer_id, "sms", fingerprints)
        effect = "start"
    elif reading.keyword == "help":
        effect = "help"
    inbound_id = _keep(tx, provider_id, customer_id, invitation_id, text, effect, at)
    if effect == "message":
        row = {
            "id": inbound_id,
            "customer_id": customer_id,
            "account_id": customer["account_id"],
            "channel": "sms",
        }
        facts.publish(tx, [facts.message_received(row | {"text": text, "at": at})])
    if reading.keyword != "stop" and not keyword and (answered or effect in ("start", "help")):
        _reply(
            tx,
            inbound_id,
            customer_id,
            invitation_id,
            "answered" if answered else "started" if effect == "start" else effect,
            reading.score,
        )
    return Received(effect, customer_id if reading.keyword == "stop" else None)


def stopped_by(tx: Tx, provider_id: str) -> str | None:
    """The customer whom a text that was taken in before has opted out; None when it has not."""
    row = tx.one("SELECT customer_id, text, effect FROM inbound WHERE provider_id = %s", (provider_id,))
    if row is None or row["customer_id"] is None:
        return None
    stopped = row["effect"] == "stop" or sms.read(row["text"]).keyword == "stop"
    return str(row["customer_id"]) if stopped else None


def _invitation(tx: Tx, customer_id: str) -> Row | None:
    """The question a text answers: the last one asked by SMS that is still open, with what was answered."""
    return tx.one(
        "SELECT i.id, r.id IS NOT NULL AS answered, r.comment FROM invitation i"
        " LEFT JOIN response r ON r.invitation_id = i.id"
        " WHERE i.customer_id = %s AND i.channel = 'sms' AND i.expires_at > %s"
        " AND (i.state IN ('sent', 'uncertain') OR EXISTS (SELECT 1 FROM delivery d WHERE d.ref_id = i.id"
        "      AND d.kind = 'invitation' AND d.state IN ('claimed', 'handed', 'delivered', 'uncertain')))"
        " ORDER BY i.created_at DESC, i.id DESC LIMIT 1",
        (customer_id, tx.now),
    )


def _answer(tx: Tx, invitation_id: str, provider_id: str, reading: sms.Reading) -> None:
    """A text that begins with a score answers, or revises; a score without words keeps earlier words."""
    form = answers.Form(
        nonce=f"sms:{provider_id}",
        seen=None,
        score=reading.score,
        comment=reading.comment,
        set_comment=reading.comment is not None,
        source="sms",
    )
    answers.record_by_invitation(tx, invitation_id, form)


def _add_words(tx: Tx, invitation_id: str, provider_id: str, invitation: Row, words: str) -> None:
    comment = f"{invitation['comment']}\n{words}" if invitation["comment"] else words
    form = answers.Form(
        nonce=f"sms:{provider_id}", seen=None, comment=comment, set_comment=True, source="sms"
    )
    answers.record_by_invitation(tx, invitation_id, form)


def _keep(
    tx: Tx,
    provider_id: str,
    customer_id: str | None,
    invitation_id: str | None,
    text: str,
    effect: str,
    at: datetime,
) -> str:
    id_ = tx.ids.new()
    tx.execute(
        "INSERT INTO inbound (id, provider_id, channel, customer_id, invitation_id, text, effect, at)"
        " VALUES (%s, %s, 'sms', %s, %s, %s, %s, %s)",
        (id_, provider_id, customer_id, invitation_id, text, effect, at),
    )
    return id_


def _reply(
    tx: Tx, inbound_id: str, customer_id: str, invitation_id: str | None, what: str, score: int | None
) -> None:
    """Queues one short text back; what it says is built when it leaves."""
    recent = tx.value(
        "SELECT count(*) FROM delivery WHERE customer_id = %s AND kind = 'reply' AND created_at > %s",
        (customer_id, tx.now - timedelta(hours=1)),
    )
    if recent >= REPLIES_AN_HOUR:
        return
    data = {"what": what, "invitation_id": invitation_id, "score": score}
    tx.execute(
        "INSERT INTO delivery (id, kind, ref_id, customer_id, channel, state, created_at, not_before, data)"
        " VALUES (%s, 'reply', %s, %s, 'sms', 'queued', %s, %s, %s)",
        (tx.ids.new(), inbound_id, customer_id, tx.now, tx.now, Json(data)),
    )
