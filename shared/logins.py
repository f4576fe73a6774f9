"""A database and a login for each part: made on a server that is there, each closed to all other logins."""

from __future__ import annotations

from collections.abc import Mapping

import psycopg2.extensions
from psycopg2 import sql


def create_databases(cur: psycopg2.extensions.cursor, passwords: Mapping[str, str]) -> None:
    """Makes what is missing: for each name a login with its password, and a database that only it can enter.

    `cur` is a superuser's, and commits by itself. A login that is there gets the password it should have.
    """
    for name, password in passwords.items():
        role = sql.Identifier(name)
        cur.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,))
        if cur.fetchone() is None:
            cur.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        cur.execute(sql.SQL("ALTER ROLE {} PASSWORD %s").format(role), (password,))
        create_database(cur, name, name)
    # Nobody but the superuser has business in the databases that come with the server.
    cur.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
    cur.execute("REVOKE CONNECT ON DATABASE template1 FROM PUBLIC")


def create_database(
    cur: psycopg2.extensions.cursor, name: str, role: str, template: str = "template0"
) -> None:
    """Makes the database `name`, owned by `role` and closed to other roles, unless it is there."""
    cur.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
    if cur.fetchone() is None:
        cur.execute(
            sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
                sql.Identifier(name), sql.Identifier(role), sql.Identifier(template)
            )
        )
    cur.execute(sql.SQL("REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
