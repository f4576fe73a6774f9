"""What followup knew of answers behind a task when its replicas were emptied: it tells what is new."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE response_before (LIKE response, at timestamptz NOT NULL, PRIMARY KEY (id));
        CREATE INDEX response_before_customer ON response_before (customer_id);
        """
    )


def downgrade() -> None:
    raise NotImplementedError("a database goes back by restoring a backup")
