"""Alembic's entry for the database of log: uses the connection that shared.migrate opened."""

from shared.migrate import run

run()
