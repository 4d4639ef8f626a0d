"""Quality control: the labelling interface that a review project was given last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_qc_review_interface"
down_revision: str | None = "0010_learn_found"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("qc_reviews", sa.Column("interface", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("qc_reviews", "interface")
