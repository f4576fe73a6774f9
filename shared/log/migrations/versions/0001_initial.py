"""The first tables of log: the embedded log and the mailbox."""

from shared.migrate import execute_sql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    execute_sql("log")


def downgrade() -> None:
    raise NotImplementedError("the first version has none before it; restore a backup instead")
