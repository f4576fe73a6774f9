"""A change's life: drafted, published with its notices in one transaction, told to more, maybe withdrawn."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from services.followup.commands import notices
from services.followup.domain import change as rules
from services.followup.domain.by import By
from services.followup.domain.change import Draft
from services.followup.domain.quote import trim
from services.followup.queries import audience, company, themes
from shared.db import Database, Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.events import outbox
from shared.ids import is_id

BATCH = 1000


def create(tx: Tx, draft: Draft, by: By) -> str:
    """Saves a new draft; returns its id. Raises `Invalid` with what is wrong, by field."""
    draft = _checked(tx, draft)
    change_id = tx.ids.new()
    tx.execute(
        "INSERT INTO change (id, version, title, was_wrong, is_different, language, since, state, created_at,"
        " created_by) VALUES (%s, 1, %s, %s, %s, %s, %s, 'draft', %s, %s)",
        (
            change_id, draft.title, draft.was_wrong, draft.is_different, draft.language, draft.since, tx.now,
            by.staff_id,
        ),
    )  # fmt: skip
    _set_themes(tx, change_id, draft)
    return change_id


def save(tx: Tx, change_id: str, draft: Draft, version: int | None = None) -> Row:
    """Replaces a draft's words; returns the change.

    Raises `Conflict` once it is published (its words are in customers' hands), and when `version` is
    given and somebody else saved in between.
    """
    change = _locked(tx, change_id)
    if change["state"] != "draft":
        raise Conflict("This change is not a draft any more, so its words stay as they were sent.")
    _same_version(change, version)
    draft = _checked(tx, draft, keep=_theme_ids(tx, change_id))
    tx.execute(
        "UPDATE change SET version = version + 1, title = %s, was_wrong = %s, is_different = %s,"
        " language = %s, since = %s WHERE id = %s",
        (draft.title, draft.was_wrong, draft.is_different, draft.language, draft.since, change_id),
    )
    tx.execute("DELETE FROM change_theme WHERE change_id = %s", (change_id,))
    _set_themes(tx, change_id, draft)
    return _locked(tx, change_id)


def publish(
    tx: Tx, change_id: str, by: By, *, version: int | None = None, expected: int | None = None
) -> tuple[Row, bool, int]:
    """Makes a draft known, and queues one notice for each customer of its audience, in this transaction.

    Returns the change, whether this call did it, and how many of those customers can be reached: a
    change that is published already comes back as it is, so a double click and two leads at once tell
    everybody once. `version` is the change as it was previewed and `expected` the number of customers
    who could be reached then; `Conflict` when either is not true any more, because telling cannot be
    undone.
    """
    change = _locked(tx, change_id)
    if change["state"] == "published":
        return change, False, 0
    if change["state"] == "withdrawn":
        raise Conflict("This change is withdrawn. Make it a draft again to publish it.")
    _same_version(change, version)
    told, reachable = _queue_notices(tx, change, expected)
    row = tx.one(
        "UPDATE change SET version = version + 1, state = 'published', published_at = %s, published_by = %s,"
        " published_by_name = %s, audience_count = %s WHERE id = %s RETURNING *",
        (tx.now, by.staff_id, by.name, told, change_id),
    )
    assert row is not None  # noqa: S101 - its row is locked
    _append(tx, row)
    return row, True, reachable


def tell_more(tx: Tx, change_id: str, *, expected: int | None = None) -> tuple[Row, int]:
    """Tells a published change to those whose answer from before was tied to its themes only later.

    Returns the change and how many of them can be reached. Nobody gets a second notice.
    """
    change = _locked(tx, change_id)
    if change["state"] != "published":
        raise Conflict("Only a published change can be told to more customers.")
    told, reachable = _queue_notices(tx, change, expected)
    if told:
        row = tx.one(
            "UPDATE change SET version = version + 1, audience_count = audience_count + %s"
            " WHERE id = %s RETURNING *",
            (told, change_id),
        )
        assert row is not None  # noqa: S101 - its row is locked
        _append(tx, row)
        change = row
    return change, reachable


def withdraw(tx: Tx, change_id: str) -> tuple[Row, int]:
    """Takes a change back; returns it and how many notices were still waiting and will not go out.

    Those that were sent cannot be called back. Twice is once.
    """
    change = _locked(tx, change_id)
    if change["state"] == "withdrawn":
        return change, 0
    row = tx.one(
        "UPDATE change SET version = version + 1, state = 'withdrawn', withdrawn_at = %s"
        " WHERE id = %s RETURNING *",
        (tx.now, change_id),
    )
    assert row is not None  # noqa: S101 - its row is locked
    if change["state"] == "draft":
        return row, 0
    _append(tx, row)
    return row, notices.cancel_waiting(tx, change_id, "withdrawn")


def restore(tx: Tx, change_id: str) -> Row:
    """Makes a withdrawn change that was never published a draft again."""
    change = _locked(tx, change_id)
    if change["state"] == "draft":
        return change
    if change["published_at"]:
        raise Conflict("Customers have read this change. Write a new one instead of changing it.")
    tx.execute(
        "UPDATE change SET version = version + 1, state = 'draft', withdrawn_at = NULL WHERE id = %s",
        (change_id,),
    )
    return _locked(tx, change_id)


def republish(db: Database) -> int:
    """Publishes the present state of every change that was ever published again, marked as replay; returns
    how many."""
    count, after = 0, None
    while True:
        with db.transaction() as tx:
            rows = tx.all(
                "SELECT * FROM change WHERE published_at IS NOT NULL"
                " AND (%(after)s::uuid IS NULL OR id > %(after)s::uuid)"
                " ORDER BY id LIMIT 100 FOR NO KEY UPDATE",
                {"after": after},
            )
            for row in rows:
                _append(tx, row, replay=True)
        if not rows:
            return count
        count, after = count + len(rows), rows[-1]["id"]


def _queue_notices(tx: Tx, change: Row, expected: int | None) -> tuple[int, int]:
    """One notice and one delivery for each customer of the audience; returns how many, and how many of
    them can be reached as far as we know (survey's permit decides about every one)."""
    reachable = audience.size(tx, change).reachable
    if expected is not None and expected != reachable:
        raise Conflict(
            f"The audience has changed meanwhile: {reachable} customers instead of {expected}."
            " Nothing was sent; please look at it once more.",
            slug="audience-changed",
        )
    told = 0
    for found in audience.batches(tx, change, BATCH):
        people = _still_there(tx, found)
        rows = [
            (
                tx.ids.new(), change["id"], person["customer_id"], person["response_id"],
                trim(person["comment"], rules.QUOTE_LENGTH) or None, tx.ids.new(),
            )
            for person in people
        ]  # fmt: skip
        made = tx.values(
            "INSERT INTO notice (id, version, change_id, customer_id, response_id, quote, state, delivery_id,"
            " created_at) VALUES %s ON CONFLICT (change_id, customer_id) DO NOTHING"
            " RETURNING id, delivery_id, customer_id,"
            " (SELECT channel FROM response WHERE id = response_id) AS channel",
            [(*row, tx.now) for row in rows],
            template="(%s, 1, %s, %s, %s, %s, 'queued', %s, %s)",
            fetch=True,
        )
        notices.queue(tx, made)
        told += len(made)
    return told, min(told, reachable)


def _still_there(tx: Tx, people: list[Row]) -> list[Row]:
    """Those nobody has erased since they were found; an erasure that comes now waits for their notices."""
    ids = [person["customer_id"] for person in people]
    tx.all("SELECT 1 FROM customer WHERE id = ANY(%s::uuid[]) ORDER BY id FOR KEY SHARE", (ids,))
    rows = tx.all("SELECT customer_id FROM erased WHERE customer_id = ANY(%s::uuid[])", (ids,))
    erased = {row["customer_id"] for row in rows}
    return [person for person in people if person["customer_id"] not in erased]


def _append(tx: Tx, change: Row, *, replay: bool = False) -> None:
    withdrawn = change["state"] == "withdrawn"
    data: dict[str, Any] = {
        "change_id": change["id"],
        "title": change["title"],
        "was_wrong": change["was_wrong"],
        "is_different": change["is_different"],
        "language": change["language"],
        "themes": [{"id": row["id"], "name": row["name"]} for row in themes.of_change(tx, change["id"])],
        "published_at": change["published_at"],
        "published_by": change["published_by_name"],
        "audience_count": change["audience_count"],
        "withdrawn_at": change["withdrawn_at"],
    }
    occurred: datetime = change["withdrawn_at"] if withdrawn else change["published_at"]
    outbox.append(
        tx,
        "change.withdrawn" if withdrawn else "change.published",
        change["id"],
        change["version"],
        data,
        replay=replay,
        occurred_at=occurred if replay else None,
    )


def _locked(tx: Tx, change_id: str) -> Row:
    row = None
    if is_id(change_id):
        row = tx.one("SELECT * FROM change WHERE id = %s FOR NO KEY UPDATE", (change_id,))
    if row is None:
        raise NotFound("There is no such change.")
    return row


def _same_version(change: Row, version: int | None) -> None:
    if version is not None and version != change["version"]:
        raise Conflict(
            "Somebody else has edited this change meanwhile. Nothing was saved or sent; please look again."
        )


def _checked(tx: Tx, draft: Draft, keep: frozenset[str] = frozenset()) -> Draft:
    draft = draft.tidy()
    wrong = rules.mistakes(draft, company.today(company.settings(tx), tx.now))
    choice = {row["id"] for row in themes.active(tx)} | keep
    if not choice.issuperset(draft.theme_ids):
        wrong["theme_ids"] = "One of these themes is not in use. Choose others."
    if wrong:
        raise Invalid("The change is not saved yet: something is missing.", fields=wrong)
    return draft


def _theme_ids(tx: Tx, change_id: str) -> frozenset[str]:
    return frozenset(row["id"] for row in themes.of_change(tx, change_id))


def _set_themes(tx: Tx, change_id: str, draft: Draft) -> None:
    tx.values(
        "INSERT INTO change_theme (change_id, theme_id) VALUES %s",
        [(change_id, theme_id) for theme_id in draft.theme_ids],
    )
