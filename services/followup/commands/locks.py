"""The order in which rows are locked: accounts, customers, tasks, notices, deliveries, each sorted.

Unknown accounts and customers become stubs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.db import Tx
from shared.events.envelope import Event


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a task is about: an account, or a customer who belongs to none."""

    account_id: str | None
    customer_id: str


def lock(tx: Tx, accounts: Iterable[str], customers: Iterable[str]) -> None:
    """Locks these rows until the transaction ends; unknown ones become stubs, erased customers do not."""
    ids = sorted(set(accounts))
    if ids:
        tx.execute(
            "INSERT INTO account (id) SELECT unnest(%s::uuid[]) ORDER BY 1 ON CONFLICT DO NOTHING", (ids,)
        )
        tx.all("SELECT 1 FROM account WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE", (ids,))
    ids = sorted(set(customers))
    if ids:
        # Nothing is tried for one who is there: it would wait for who erases them, and then bring them back.
        made = tx.execute(
            """INSERT INTO customer (id)
               SELECT id FROM unnest(%s::uuid[]) AS them (id)
               WHERE NOT EXISTS (SELECT 1 FROM customer c WHERE c.id = them.id)
                 AND NOT EXISTS (SELECT 1 FROM erased WHERE customer_id = them.id) ORDER BY 1
               ON CONFLICT DO NOTHING""",
            (ids,),
        )
        if made:
            # They may have been told of, and erased, while this waited.
            tx.later(
                "DELETE FROM customer WHERE id = ANY(%s::uuid[])"
                " AND id IN (SELECT customer_id FROM erased WHERE customer_id = ANY(%s::uuid[]))",
                (ids, ids),
            )
        tx.all("SELECT 1 FROM customer WHERE id = ANY(%s::uuid[]) ORDER BY id FOR NO KEY UPDATE", (ids,))


def lock_subject(tx: Tx, subject: Subject) -> None:
    """Locks what allows at most one open task for this subject."""
    if subject.account_id:
        lock(tx, [subject.account_id], [])
    else:
        lock(tx, [], [subject.customer_id])


def lock_for(tx: Tx, events: Sequence[Event]) -> None:
    """Locks, in order, everything that applying these events may touch: two consumers never wait in a ring.

    Events that carry no answer or customer need nothing.
    """
    accounts: set[str] = set()
    customers: set[str] = set()
    responses: set[str] = set()
    erased: set[str] = set()
    notices: set[str] = set()
    deliveries: set[str] = set()
    for event in events:
        if event.topic not in ("customers", "responses", "deliveries"):
            continue
        customers.add(event.key)
        data = event.data or {}
        account = data.get("account")
        if isinstance(account, dict) and isinstance(account.get("id"), str):
            accounts.add(account["id"])
        if isinstance(data.get("response_id"), str):
            responses.add(data["response_id"])
        if event.topic == "customers" and event.data is None:
            erased.add(event.key)
        if event.topic == "deliveries" and data.get("kind") == "notice":
            notices.add(data["ref_id"])
            deliveries.add(data["delivery_id"])
    if not customers:
        return
    # A revision or an erasure also touches the task that the answer is behind already.
    for row in tx.all(
        """SELECT DISTINCT t.account_id, t.customer_id FROM task_response tr JOIN task t ON t.id = tr.task_id
           WHERE tr.response_id = ANY(%s::uuid[]) OR tr.customer_id = ANY(%s::uuid[])""",
        (sorted(responses), sorted(customers)),
    ):
        if row["account_id"]:
            accounts.add(row["account_id"])
        else:
            customers.add(row["customer_id"])
    lock(tx, accounts, customers)
    if notices or erased:
        _lock_messages(tx, sorted(erased), sorted(notices), sorted(deliveries))


def _lock_messages(tx: Tx, erased: list[str], notices: list[str], deliveries: list[str]) -> None:
    """Notices and deliveries that reports are about, or that an erasure takes the words from.

    A sender locks some without their customers, and of who is erased there is no row to lock.
    """
    # Erasing deletes the row; a change being published holds it, one customer after the other.
    tx.later("SELECT 1 FROM customer WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE", (erased,))
    tx.later(
        "SELECT 1 FROM notice WHERE id = ANY(%s::uuid[]) OR customer_id = ANY(%s::uuid[])"
        " ORDER BY id FOR NO KEY UPDATE",
        (notices, erased),
    )
    # A notice that was sent again has another delivery, which is not needed once the first has arrived.
    tx.later(
        "SELECT 1 FROM delivery WHERE id = ANY(%s::uuid[]) OR customer_id = ANY(%s::uuid[])"
        " OR ref_id = ANY(%s::uuid[]) AND kind = 'notice' ORDER BY id FOR UPDATE",
        (deliveries, erased, notices),
    )
