"""Let a change suppress; keep the rank of the old answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("edit", sa.Column("rank_old_before", sa.Integer(), nullable=True))
    op.add_column("edit", sa.Column("rank_old_after", sa.Integer(), nullable=True))
    op.add_column("recall_check", sa.Column("rank_old", sa.Integer(), nullable=True))
    with op.batch_alter_table("change", table_kwargs={"sqlite_strict": True}) as batch:
        batch.drop_constraint(op.f("ck_change_kind"), type_="check")
        batch.create_check_constraint(
            op.f("ck_change_kind"),
            "kind IN ('insert', 'replace', 'retract', 'suppress', 'relabel', 'vacate', 'conflict', "
            "'quarantine')",
        )
