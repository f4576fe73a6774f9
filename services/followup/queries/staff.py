"""Who has a login, which keys there are, and who can take a task."""

from __future__ import annotations

from shared.db import Row, Tx
from shared.errors import NotFound
from shared.ids import is_id


def people(tx: Tx) -> list[Row]:
    """All staff with their deputy's name and how many open tasks they have; the disabled last."""
    return tx.all(
        """SELECT s.*, d.name AS deputy_name,
                  (SELECT count(*) FROM task t WHERE t.owner_id = s.id AND t.state = 'open') AS open_tasks
           FROM staff s LEFT JOIN staff d ON d.id = s.deputy_id ORDER BY s.disabled, lower(s.name), s.id"""
    )


def person(tx: Tx, staff_id: str) -> Row:
    """One of them. Raises `NotFound`."""
    row = (
        tx.one(
            """SELECT s.*, d.name AS deputy_name,
                      (SELECT count(*) FROM task t WHERE t.owner_id = s.id AND t.state = 'open') AS open_tasks
               FROM staff s LEFT JOIN staff d ON d.id = s.deputy_id WHERE s.id = %s""",
            (staff_id,),
        )
        if is_id(staff_id)
        else None
    )
    if row is None:
        raise NotFound("There is no such person here.")
    return row


def owners(tx: Tx) -> list[Row]:
    """Who can be given a task: id, name, and whether they are away on the company's `today`."""
    return tx.all(
        """SELECT id, name, absent_from, absent_until FROM staff WHERE NOT disabled AND role <> 'viewer'
           ORDER BY lower(name), id"""
    )


def is_first_login(tx: Tx) -> bool:
    """Whether the first administrator has not said yet who they are."""
    return tx.value("SELECT 1 FROM staff WHERE email = 'admin'") is not None


def unknown_managers(tx: Tx) -> list[Row]:
    """Account managers without a login, with how many open tasks wait for them; the most waited-for first."""
    return tx.all(
        """SELECT a.manager_email AS email, count(*) AS tasks
           FROM task t JOIN account a ON a.id = t.account_id
           WHERE t.state = 'open' AND a.manager_email IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM staff s WHERE s.email = a.manager_email AND NOT s.disabled)
           GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20"""
    )


def keys(tx: Tx) -> list[Row]:
    """All API keys with who made them; the disabled last."""
    return tx.all(
        """SELECT k.id, k.name, k.scopes, k.disabled, k.created_at, s.name AS created_by_name
           FROM apikey k LEFT JOIN staff s ON s.id = k.created_by
           ORDER BY k.disabled, k.created_at DESC, k.id"""
    )
