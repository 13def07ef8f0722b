"""Remember which views stand; index what the documented queries ask for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ledger_meta",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_ledger_meta")),
        sqlite_strict=True,
    )
    op.drop_index("ix_holding_held_from", table_name="holding")
    op.create_index("ix_holding_held_from", "holding", ["held_from"])
    op.create_index("ix_request_source_guid", "request_source", ["guid"])
    op.create_index("ix_recall_summary_property", "recall_summary", ["property", "checkpoint_id"])
