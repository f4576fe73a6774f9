"""By which claim a message had the permit that survey is to be told of."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.execute("ALTER TABLE permit_result ADD COLUMN claim text")


def downgrade() -> None:
    raise NotImplementedError("a database goes back by restoring a backup")
