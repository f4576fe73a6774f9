"""Each channel of survey's messages is claimed by itself."""

from shared.migrate import execute_file

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    execute_file("channels/queue_of_a_channel.sql")


def downgrade() -> None:
    raise NotImplementedError("a database goes back by restoring a backup")
