"""Root causes: added, renamed, retired; never deleted, because resolved tasks and changes name them."""

from __future__ import annotations

from services.followup.domain.change import THEME_LENGTH
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.ids import is_id


def add(tx: Tx, name: str) -> Row:
    """Adds a theme, or brings back a retired one of that name; returns it.

    Raises `Invalid` for a name that is empty or too long, `Conflict` when it is there already.
    """
    name, key = _checked(name)
    row = tx.one(
        "INSERT INTO theme (id, name, name_key) VALUES (%s, %s, %s) ON CONFLICT (name_key)"
        " DO UPDATE SET name = excluded.name, retired_at = NULL WHERE theme.retired_at IS NOT NULL"
        " RETURNING id, name, retired_at",
        (tx.ids.new(), name, key),
    )
    if row is None:
        raise Conflict(
            f"There is a theme called “{name}” already.", fields={"name": "This theme is there already."}
        )
    return row


def rename(tx: Tx, theme_id: str, name: str) -> Row:
    """Gives a theme another name. What was said under the old one stays with it."""
    name, key = _checked(name)
    if tx.one("SELECT 1 FROM theme WHERE name_key = %s AND id <> %s", (key, _id(theme_id))):
        raise Conflict(
            f"Another theme is called “{name}” already.",
            fields={"name": "Another theme has this name already."},
        )
    row = tx.one(
        "UPDATE theme SET name = %s, name_key = %s WHERE id = %s RETURNING id, name, retired_at",
        (name, key, _id(theme_id)),
    )
    if row is None:
        raise NotFound("There is no such theme.")
    return row


def retire(tx: Tx, theme_id: str) -> Row:
    """Takes a theme out of the choice for new tasks and changes; old ones keep it. Can be undone."""
    return _set_retired(tx, theme_id, "coalesce(retired_at, %(now)s)")


def restore(tx: Tx, theme_id: str) -> Row:
    """Puts a retired theme back into the choice."""
    return _set_retired(tx, theme_id, "NULL")


def tie(tx: Tx, theme_id: str, response_ids: list[str], by: str | None) -> int:
    """Ties answers to a theme without a task, a person's judgement; returns how many were not tied yet.

    Raises `NotFound` for a theme or an answer that is not there.
    """
    if tx.one("SELECT 1 FROM theme WHERE id = %s", (_id(theme_id),)) is None:
        raise NotFound("There is no such theme.")
    wanted = list(dict.fromkeys(_id(one) for one in response_ids))
    known = tx.all("SELECT id FROM response WHERE id = ANY(%s::uuid[])", (wanted,))
    if len(known) != len(wanted):
        raise NotFound("One of these answers is not there any more. Nothing was tied.")
    return tx.execute(
        "INSERT INTO response_theme (response_id, theme_id, by, at)"
        " SELECT id, %s, %s, %s FROM unnest(%s::uuid[]) AS id ON CONFLICT DO NOTHING",
        (theme_id, by, tx.now, wanted),
    )


def untie(tx: Tx, theme_id: str, response_id: str) -> None:
    """Undoes `tie`; one that is not there is no error."""
    tx.execute(
        "DELETE FROM response_theme WHERE theme_id = %s AND response_id = %s",
        (_id(theme_id), _id(response_id)),
    )


def _set_retired(tx: Tx, theme_id: str, value: str) -> Row:
    row = tx.one(
        f"UPDATE theme SET retired_at = {value} WHERE id = %(id)s RETURNING id, name, retired_at",  # noqa: S608
        {"id": _id(theme_id), "now": tx.now},
    )
    if row is None:
        raise NotFound("There is no such theme.")
    return row


def _checked(name: str) -> tuple[str, str]:
    name = " ".join(name.split())
    if not name:
        raise Invalid("The theme needs a name.", fields={"name": "Give the theme a name."})
    if len(name) > THEME_LENGTH:
        raise Invalid(
            "The theme's name is too long.", fields={"name": f"Keep it to {THEME_LENGTH} characters."}
        )
    return name, name.casefold()


def _id(text: str) -> str:
    if not is_id(text):
        raise NotFound("There is no such theme or answer.")
    return text
