"""Staff's mails are found at once, however many notices wait on the same channel."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX delivery_queued_staff ON delivery (not_before, id)"
        " WHERE state = 'queued' AND kind = 'staff'"
    )


def downgrade() -> None:
    raise NotImplementedError("a database goes back by restoring a backup")
