"""Learning: the label config by which tasks were read, and since when Label Studio was not told of a version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_learn_config"
down_revision: str | None = "0011_qc_review_interface"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("learn_projects", sa.Column("config", sa.Text(), nullable=False, server_default=""))
    op.add_column("learn_projects", sa.Column("untold_since", sa.Double()))


def downgrade() -> None:
    op.drop_column("learn_projects", "untold_since")
    op.drop_column("learn_projects", "config")
