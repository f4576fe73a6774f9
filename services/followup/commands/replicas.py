"""Followup's copies of what survey owns: company, programs, accounts, customers, answers, messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg2.extras import Json

from services.followup.domain.triage import Answer, Callback
from shared.db import Row, Tx


def is_erased(tx: Tx, customer_id: str) -> bool:
    """Whether this customer was erased: nothing about them is kept any more, however late it comes."""
    return tx.value("SELECT 1 FROM erased WHERE customer_id = %s", (customer_id,)) is not None


def store_company(tx: Tx, version: int, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """Keeps newer settings; returns the ones before ({} for the first), or None when these are old."""
    before = tx.one("SELECT version, data FROM company FOR NO KEY UPDATE")
    if before and before["version"] >= version:
        return None
    tx.execute(
        """INSERT INTO company (version, data) VALUES (%s, %s)
           ON CONFLICT (only_row) DO UPDATE SET version = excluded.version, data = excluded.data
           WHERE company.version < excluded.version""",
        (version, Json(dict(data))),
    )
    return dict(before["data"]) if before else {}


def store_program(tx: Tx, program_id: str, version: int, data: Mapping[str, Any]) -> None:
    """Keeps a newer program."""
    tx.execute(
        """INSERT INTO program (id, version, name, data) VALUES (%s, %s, %s, %s)
           ON CONFLICT (id) DO UPDATE SET version = excluded.version, name = excluded.name,
               data = excluded.data
           WHERE program.version < excluded.version""",
        (program_id, version, data["name"], Json(dict(data))),
    )


def store_accounts(tx: Tx, accounts: Iterable[Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    """Keeps what is newer of many accounts, whose rows the caller has locked.

    Returns the id and the manager before of each whose manager is another one now.
    """
    newest: dict[str, Mapping[str, Any]] = {}
    for account in accounts:
        if account["id"] not in newest or newest[account["id"]]["version"] < account["version"]:
            newest[account["id"]] = account
    known = {
        row["id"]: row
        for row in tx.all(
            "SELECT id, version, manager_email FROM account WHERE id = ANY(%s::uuid[])", (list(newest),)
        )
    }
    rows, changed = [], []
    for id_, account in sorted(newest.items()):
        before = known.get(id_)
        if before and before["version"] >= account["version"]:
            continue
        manager = (account["manager_email"] or "").strip().casefold() or None
        was = before["manager_email"] if before else None
        if was != manager:
            changed.append((id_, was))
        rows.append(
            (id_, account["version"], account["name"], account["tier"], account["annual_value"], manager)
        )
    tx.values(
        """INSERT INTO account (id, version, name, tier, annual_value, manager_email) VALUES %s
           ON CONFLICT (id) DO UPDATE SET version = excluded.version, name = excluded.name,
               tier = excluded.tier, annual_value = excluded.annual_value,
               manager_email = excluded.manager_email
           WHERE account.version < excluded.version""",
        rows,
        template="(%s::uuid, %s, %s, %s, %s::numeric, %s)",
    )
    return changed


def store_customers(tx: Tx, customers: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Keeps what is newer of many customers (version and data), whose rows, stubs at least, the caller has
    locked; erased ones are refused."""
    newest: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for version, data in customers:
        if data["id"] not in newest or newest[data["id"]][0] < version:
            newest[data["id"]] = (version, data)
    erased = {
        row["customer_id"]
        for row in tx.all(
            "SELECT customer_id FROM erased WHERE customer_id = ANY(%s::uuid[])", (list(newest),)
        )
    }
    tx.values(
        """INSERT INTO customer (id, version, name, email, phone, account_id, language, time_zone, data)
           VALUES %s
           ON CONFLICT (id) DO UPDATE SET version = excluded.version, name = excluded.name,
               email = excluded.email, phone = excluded.phone, account_id = excluded.account_id,
               language = excluded.language, time_zone = excluded.time_zone, data = excluded.data
           WHERE customer.version < excluded.version""",
        [
            (
                id_,
                version,
                data["name"],
                data["email"],
                data["phone"],
                data["account"]["id"] if data["account"] else None,
                data["language"],
                data["time_zone"],
                Json(dict(data)),
            )
            for id_, (version, data) in sorted(newest.items())
            if id_ not in erased
        ],
        template="(%s::uuid, %s, %s, %s, %s, %s::uuid, %s, %s, %s)",
    )


def known_responses(tx: Tx, ids: Sequence[str]) -> set[str]:
    """Which of these answers are there, in whatever version."""
    return {row["id"] for row in tx.all("SELECT id FROM response WHERE id = ANY(%s::uuid[])", (list(ids),))}


def erased_of(tx: Tx, customers: Sequence[str]) -> set[str]:
    """Which of these customers were erased."""
    return {
        row["customer_id"]
        for row in tx.all(
            "SELECT customer_id FROM erased WHERE customer_id = ANY(%s::uuid[])", (list(customers),)
        )
    }


def store_first_responses(tx: Tx, responses: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Answer]:
    """Keeps answers (version and data) that are not there yet, all at once; returns them in their order.

    None of them is `perhaps_unhappy`, and the caller holds the locks of their customers.
    """
    names = (
        "response_id", "customer_id", "invitation_id", "program_name", "touchpoint", "channel", "score",
        "band", "comment", "callback", "answered_at", "state",
    )  # fmt: skip
    tx.values(
        """INSERT INTO response (id, customer_id, invitation_id, program_name, touchpoint, channel, score,
                                 band, comment, callback, answered_at, state, version, account_id, data)
           VALUES %s""",
        [
            (
                *(data[name] for name in names),
                version,
                data["account"]["id"] if data["account"] else None,
                Json({name: data.get(name) for name in _KEPT}),
            )
            for version, data in responses
        ],
    )
    tx.values(
        """INSERT INTO response_version (response_id, version, score, comment, callback, at) VALUES %s
           ON CONFLICT DO NOTHING""",
        [
            (
                data["response_id"],
                version,
                data["score"],
                data["comment"],
                data["callback"],
                data["revised_at"],
            )
            for version, data in responses
        ],
    )
    tx.execute(
        "DELETE FROM unconfirmed WHERE invitation_id = ANY(%s::uuid[])",
        ([data["invitation_id"] for _, data in responses],),
    )
    return [
        Answer(
            response_id=data["response_id"],
            customer_id=data["customer_id"],
            score=data["score"],
            comment=data["comment"],
            callback=Callback(data["callback"]) if data["callback"] else None,
            state=data["state"],
            answered_at=datetime.fromisoformat(data["answered_at"]),
            revised_at=datetime.fromisoformat(data["revised_at"]),
        )
        for _, data in responses
    ]


def store_response(tx: Tx, version: int, data: Mapping[str, Any]) -> tuple[Answer | None, Answer] | None:
    """Keeps a newer version of an answer; returns it after the one before, or None when this one is old."""
    before = tx.one("SELECT * FROM response WHERE id = %s", (data["response_id"],))
    if before and before["version"] >= version:
        return None
    # While replicas are filled again: what was known of it before they were emptied, if that was more.
    aside = tx.one("SELECT * FROM response_before WHERE id = %s", (data["response_id"],))
    known = aside if aside and (before is None or before["version"] < aside["version"]) else before
    row = tx.one(
        """INSERT INTO response (id, version, customer_id, account_id, invitation_id, program_name,
                                 touchpoint, channel, score, band, comment, callback, answered_at, state,
                                 data)
           VALUES (%(response_id)s, %(version)s, %(customer_id)s, %(account_id)s, %(invitation_id)s,
                   %(program_name)s, %(touchpoint)s, %(channel)s, %(score)s, %(band)s, %(comment)s,
                   %(callback)s, %(answered_at)s, %(state)s, %(data)s)
           ON CONFLICT (id) DO UPDATE SET version = excluded.version, score = excluded.score,
               band = excluded.band, comment = excluded.comment, callback = excluded.callback,
               state = excluded.state, program_name = excluded.program_name,
               touchpoint = excluded.touchpoint, data = excluded.data
           RETURNING *""",
        {
            **data,
            "version": version,
            "account_id": data["account"]["id"] if data["account"] else None,
            "data": Json({name: data.get(name) for name in _KEPT}),
        },
    )
    assert row is not None  # noqa: S101 - for the type checker
    # Every version is kept, but not those that only changed how the answer counts.
    if before is None or any(before[name] != row[name] for name in ("score", "comment", "callback")):
        tx.execute(
            """INSERT INTO response_version (response_id, version, score, comment, callback, at)
               VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
            (row["id"], version, row["score"], row["comment"], row["callback"], data["revised_at"]),
        )
    if known and known["version"] >= version:
        known = row  # triage has seen this, and more
    return (answer_of(known) if known else None), answer_of(row)


# What pages want of an answer beside its columns; the account lives in its own table.
_KEPT = ("program_id", "language", "time_zone", "revised_at", "source", "test", "reason", "by")


def answer_of(row: Row) -> Answer:
    """A row of `response` as triage sees it."""
    revised = row["data"].get("revised_at")
    return Answer(
        response_id=row["id"],
        customer_id=row["customer_id"],
        score=row["score"],
        comment=row["comment"],
        callback=Callback(row["callback"]) if row["callback"] else None,
        state=row["state"],
        answered_at=row["answered_at"],
        revised_at=datetime.fromisoformat(revised) if revised else row["answered_at"],
    )


def store_unconfirmed(
    tx: Tx, data: Mapping[str, Any], *, score: int, at: str | datetime, kind: str = "unconfirmed"
) -> None:
    """Notes somebody as perhaps unhappy, unless their answer is there already.

    One that was dismissed stays so until they say something else.
    """
    account = data["account"]
    tx.execute(
        """INSERT INTO unconfirmed (invitation_id, kind, customer_id, account_id, manager_email, program_name,
                                    touchpoint, score, at)
           SELECT %(invitation)s, %(kind)s, %(customer)s, %(account)s, %(manager)s, %(program)s,
                  %(touchpoint)s, %(score)s, %(at)s
           WHERE %(kind)s = 'quarantined' OR NOT EXISTS (
               SELECT 1 FROM response WHERE invitation_id = %(invitation)s)
           ON CONFLICT (invitation_id) DO UPDATE SET kind = excluded.kind, score = excluded.score,
               at = excluded.at, dismissed_at = NULL, dismissed_by = NULL
           WHERE (unconfirmed.kind, unconfirmed.score) <> (excluded.kind, excluded.score)""",
        {
            "invitation": data["invitation_id"],
            "kind": kind,
            "customer": data["customer_id"],
            "account": account["id"] if account else None,
            "manager": ((account or {}).get("manager_email") or "").casefold() or None,
            "program": data["program_name"],
            "touchpoint": data["touchpoint"],
            "score": score,
            "at": at,
        },
    )


def forget_unconfirmed(tx: Tx, invitation_id: str) -> None:
    """The answer came: nobody has to guess any more."""
    tx.execute("DELETE FROM unconfirmed WHERE invitation_id = %s", (invitation_id,))


def store_message(tx: Tx, data: Mapping[str, Any]) -> bool:
    """Keeps a customer's text; returns whether it is new."""
    return bool(
        tx.execute(
            """INSERT INTO inbound_message (id, customer_id, text, at) VALUES (%s, %s, %s, %s)
               ON CONFLICT DO NOTHING""",
            (data["message_id"], data["customer_id"], data["text"], data["at"]),
        )
    )
