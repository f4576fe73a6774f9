"""As which version each erasure was published, so that it can be published again."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.execute("ALTER TABLE erased ADD COLUMN version bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    raise NotImplementedError("a database goes back by restoring a backup")
