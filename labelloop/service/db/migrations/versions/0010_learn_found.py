"""Learning: what the version that was served then found on a photo that it had not learned from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_learn_found"
down_revision: str | None = "0009_learn_opinions"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("learn_tasks", sa.Column("found", sa.Text()))


def downgrade() -> None:
    op.drop_column("learn_tasks", "found")
