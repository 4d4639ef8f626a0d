"""Learning: the label issues of a project that are not raised, in words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018_label_issues_withheld"
down_revision: str | None = "0017_qc_conflicts"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("learn_projects", sa.Column("withheld", sa.Text()))


def downgrade() -> None:
    op.drop_column("learn_projects", "withheld")
