"""Which log the events of followup are on."""

from shared.migrate import execute_file

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    execute_file("events/log_in_use.sql")


def downgrade() -> None:
    raise NotImplementedError("a database goes back by restoring a backup")
