"""Finds the answers of a task without reading those of all others."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.execute("CREATE INDEX task_response_task ON task_response (task_id)")


def downgrade() -> None:
    raise NotImplementedError("a database goes back by restoring a backup")
