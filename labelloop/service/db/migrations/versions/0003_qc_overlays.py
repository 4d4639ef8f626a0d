"""Quality control: for which state of a task its overlays were settled."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_qc_overlays"
down_revision: str | None = "0002_qc"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("qc_tasks", sa.Column("overlay", sa.Text()))


def downgrade() -> None:
    op.drop_column("qc_tasks", "overlay")
