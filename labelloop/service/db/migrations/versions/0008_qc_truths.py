"""Quality control: tasks whose ground truth is known, who annotated what when, review projects and their copies."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_qc_truths"
down_revision: str | None = "0007_exports"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "qc_truths",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("annotation", sa.Integer(), nullable=False),
        sa.Column("annotators", sa.Integer(), nullable=False),
        sa.Column("ours", sa.Boolean(), nullable=False),
        sa.Column("wanted", sa.Integer()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("carried", sa.Integer(), nullable=False),
    )
    op.create_table(
        "qc_reviews",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("review", sa.Integer()),
        sa.Column("prefilled", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("made_at", sa.Double(), nullable=False),
    )
    op.create_index("qc_reviews_review", "qc_reviews", ["review"])
    op.create_table(
        "qc_copies",
        sa.Column("project", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("task", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("review", sa.Integer(), nullable=False),
        sa.Column("copy", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("mark", sa.Text(), nullable=False),
    )
    op.create_index("qc_copies_copy", "qc_copies", ["review", "copy"])
    op.add_column("qc_annotations", sa.Column("annotator", sa.Integer()))
    op.create_index("qc_annotations_time", "qc_annotations", ["project", "updated_at", "annotator", "task"])
    op.add_column("qc_projects", sa.Column("evaluates", sa.Boolean()))


def downgrade() -> None:
    op.drop_column("qc_projects", "evaluates")
    op.drop_index("qc_annotations_time", "qc_annotations")
    op.drop_column("qc_annotations", "annotator")
    for table in ("qc_copies", "qc_reviews", "qc_truths"):
        op.drop_table(table)
