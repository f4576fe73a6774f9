"""Alembic's entry for the database of followup: uses the connection that shared.migrate opened."""

from shared.migrate import run

run()
