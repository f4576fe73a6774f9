"""Filling replicas again: what survey forgets of others, and what it publishes again of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from services.survey import facts, store
from services.survey.addresses import fingerprints
from services.survey.commands import company, erase, opt_out
from services.survey.handlers import GROUP
from shared.db import Database, Row, Tx
from shared.events import outbox
from shared.settings import Settings

BATCH = 500
TOPICS = ("settings", "customers", "invitations", "responses", "deliveries")
# What others keep of it, and what it keeps of others, so that they can be compared (`shared.agreement`).
OWNED = {
    "answers": "SELECT id, version, concat(score, ' ', state) AS said FROM response WHERE true",
    "invitations": "SELECT id, 1 AS version, '' AS said FROM invitation"
    " WHERE sent_at IS NOT NULL AND NOT test",
}
HEARD = {"tasks": "SELECT id, version, '' AS said FROM task_replica WHERE true"}
_FIRST = "00000000-0000-0000-0000-000000000000"


def clear(tx: Tx) -> None:
    """Empties the replicas and forgets what was consumed; never what survey owns, nor who was erased.

    Staff and keys stay until their owner says them again (as version 0, which anything beats): nobody
    is locked out meanwhile, and who was disabled stays so.
    """
    for table in ("task_response", "task_replica", "change_replica", "notice_replica"):
        tx.execute(f"DELETE FROM {table}")  # noqa: S608
    tx.execute("UPDATE staff SET version = 0")
    tx.execute("UPDATE apikey SET version = 0")
    tx.execute("DELETE FROM inbox WHERE consumer = %s", (GROUP,))


def republish(db: Database, topics: Sequence[str] | None = None) -> int:
    """Publishes the present state of everything survey owns (of some `topics` only) once more.

    Same event ids and versions, marked as replay; in batches, each of which locks its customers.
    Returns how many customers and settings were gone through.
    """
    wanted = TOPICS if topics is None else topics
    count = 0
    if "settings" in wanted:
        with db.transaction() as tx:
            row = tx.one("SELECT * FROM company FOR NO KEY UPDATE")
            if row is not None:
                company.announce(tx, row, replay=True)
                count += 1
        count += _stream(db, "program", _programs)
    steps = [step for topic, step in _BY_TOPIC.items() if topic in wanted]
    if steps:
        count += _stream(db, "customer", lambda tx, ids: [step(tx, ids) for step in steps])
    if "customers" in wanted:
        count += _stream(db, "erased", _erasures, "customer_id")
    return count


def erase_again(db: Database, heard: Database, settings: Settings) -> int:
    """Erases whom survey has again after a restore, though another service `heard` of their erasure.

    Returns how many. What others keep of an erased customer is the id and nothing else.
    """
    known = fingerprints(settings.keys("opt-out"))
    count, after = 0, _FIRST
    while True:
        with heard.transaction() as tx:
            ids = [
                str(row["customer_id"])
                for row in tx.all(
                    "SELECT customer_id FROM erased WHERE customer_id > %s ORDER BY customer_id LIMIT %s",
                    (after, BATCH),
                )
            ]
        if not ids:
            return count
        for customer_id in ids:
            with db.transaction() as tx:
                count += erase.erase(tx, customer_id, known)
        after = ids[-1]


def opt_out_again(db: Database, heard: Iterable[tuple[str, str, str]], settings: Settings) -> int:
    """Opts out who did so after the state that survey is in again, by (customer, channel, address) as another
    service has `heard`; returns how many. Who is not known any more is so by the address."""
    known = fingerprints(settings.keys("opt-out"))
    count = 0
    for customer_id, channel, address in heard:
        with db.transaction() as tx:
            if store.lock_customer(tx, customer_id) is not None:
                count += opt_out.opt_out(tx, customer_id, channel, "staff", known)
            elif not store.opted_out(tx, [(channel, digest) for digest in known(channel, address)]):
                opt_out.stop_address(tx, channel, address, "staff", known)
                count += 1
    return count


def _stream(db: Database, table: str, publish: Callable[[Tx, list[str]], object], id_: str = "id") -> int:
    """All ids of a table, in batches of one transaction, their rows locked."""
    count, after = 0, _FIRST
    while True:
        with db.transaction() as tx:
            rows = tx.all(
                f"SELECT {id_} AS id FROM {table} WHERE {id_} > %s"  # noqa: S608 (names from below)
                f" ORDER BY {id_} LIMIT %s FOR NO KEY UPDATE",
                (after, BATCH),
            )
            if rows:
                publish(tx, [row["id"] for row in rows])
        if not rows:
            return count
        count, after = count + len(rows), rows[-1]["id"]


def _programs(tx: Tx, ids: list[str]) -> None:
    rows = tx.all("SELECT * FROM program WHERE id = ANY(%s::uuid[]) ORDER BY id", (ids,))
    facts.publish(tx, [facts.program_changed(row, replay=True) for row in rows])


def _customers(tx: Tx, ids: list[str]) -> None:
    store.announce(tx, ids, replay=True)


def _erasures(tx: Tx, ids: list[str]) -> None:
    # A relay that stood still may have put an old state behind the erasure, which compaction then keeps; and
    # on a log that events moved back to, the customer may never have been erased.
    rows = tx.all("SELECT customer_id, version FROM erased WHERE customer_id = ANY(%s::uuid[])", (ids,))
    outbox.append_many(
        tx,
        [
            outbox.New("customer.changed", row["customer_id"], row["version"], None, replay=True)
            for row in rows
        ],
    )


def _invitations(tx: Tx, ids: list[str]) -> None:
    sent = tx.all(
        facts.INVITATIONS
        + " WHERE i.customer_id = ANY(%s::uuid[]) AND i.sent_at IS NOT NULL ORDER BY i.created_at",
        (ids,),
    )
    skips = tx.all(facts.SKIPS + " WHERE s.customer_id = ANY(%s::uuid[]) ORDER BY s.at", (ids,))
    events = [facts.invitation_sent(row, replay=True) for row in sent]
    events += [facts.invitation_expired(row, replay=True) for row in sent if row["state"] == "expired"]
    facts.publish(tx, events + [facts.skipped(row, replay=True) for row in skips])


def _responses(tx: Tx, ids: list[str]) -> None:
    rows = tx.all(facts.RESPONSES + " WHERE r.customer_id = ANY(%s::uuid[]) ORDER BY r.answered_at", (ids,))
    events = [
        facts.excluded_event(row, row["revised_at"], replay=True)
        if _was_excluded(row)
        else facts.response_event(row, replay=True)
        for row in rows
    ]
    clicks = tx.all(
        facts.UNCONFIRMED + " WHERE i.customer_id = ANY(%s::uuid[]) AND k.reported ORDER BY k.at", (ids,)
    )
    facts.publish(tx, events + [facts.unconfirmed(row, replay=True) for row in clicks])


def _was_excluded(row: Row) -> bool:
    """Whether the answer's present version is the event that excluded it (or took it back)."""
    return row["state"] == "excluded" and not row["test"]


def _deliveries(tx: Tx, ids: list[str]) -> None:
    rows = tx.all(
        "SELECT id, kind, ref_id, customer_id, channel, state, reason,"
        " coalesce((data->>'reported_at')::timestamptz, settled_at, created_at) AS at,"
        " (data->>'complained_at')::timestamptz AS complained_at"
        " FROM delivery WHERE customer_id = ANY(%s::uuid[]) AND kind <> 'staff'"
        " AND (state IN ('delivered', 'bounced', 'failed') OR data ? 'complained_at') ORDER BY created_at",
        (ids,),
    )
    events = [
        facts.delivery_reported(row, row["state"], row["reason"], row["at"], replay=True)
        for row in rows
        if row["state"] in ("delivered", "bounced", "failed")
    ]
    events += [
        facts.delivery_reported(row, "complained", None, row["complained_at"], replay=True)
        for row in rows
        if row["complained_at"]
    ]
    texts = tx.all(
        "SELECT b.id, b.customer_id, c.account_id, b.channel, b.text, b.at FROM inbound b"
        " JOIN customer c ON c.id = b.customer_id"
        " WHERE b.customer_id = ANY(%s::uuid[]) AND b.effect = 'message' ORDER BY b.at",
        (ids,),
    )
    facts.publish(tx, events + [facts.message_received(row, replay=True) for row in texts])


_BY_TOPIC: dict[str, Callable[[Tx, list[str]], None]] = {
    "customers": _customers,
    "invitations": _invitations,
    "responses": _responses,
    "deliveries": _deliveries,
}
