"""Which themes there are, and what hangs on them."""

from __future__ import annotations

from shared.db import Row, Tx
from shared.errors import NotFound
from shared.ids import is_id


def active(tx: Tx) -> list[Row]:
    """The themes to choose from (`id`, `name`), by name."""
    return tx.all("SELECT id, name FROM theme WHERE retired_at IS NULL ORDER BY name_key")


def one(tx: Tx, theme_id: str) -> Row:
    """A theme (`id`, `name`, `retired_at`). Raises `NotFound`."""
    row = None
    if is_id(theme_id):
        row = tx.one("SELECT id, name, retired_at FROM theme WHERE id = %s", (theme_id,))
    if row is None:
        raise NotFound("There is no such theme.")
    return row


def every(tx: Tx) -> list[Row]:
    """All themes with what hangs on them: `tasks` (resolved with it), `answers` (tied), `changes`.

    Those in use first, by name.
    """
    return tx.all(
        """
        SELECT t.id, t.name, t.retired_at,
               (SELECT count(*) FROM task WHERE theme_id = t.id AND state = 'resolved') AS tasks,
               (SELECT count(*) FROM response_theme WHERE theme_id = t.id) AS answers,
               (SELECT count(*) FROM change_theme ct JOIN change c ON c.id = ct.change_id
                 WHERE ct.theme_id = t.id AND c.state = 'published') AS changes
        FROM theme t ORDER BY t.retired_at IS NOT NULL, t.name_key
        """
    )


def of_change(tx: Tx, change_id: str) -> list[Row]:
    """A change's themes (`id`, `name`), by name."""
    return tx.all(
        "SELECT t.id, t.name FROM change_theme ct JOIN theme t ON t.id = ct.theme_id"
        " WHERE ct.change_id = %s ORDER BY t.name_key",
        (change_id,),
    )
