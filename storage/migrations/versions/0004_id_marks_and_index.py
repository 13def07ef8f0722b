"""Give the ledger an id, which its folder of checkpoints carries too; count the marks of a review."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    meta = sa.table("ledger_meta", sa.column("name", sa.Text), sa.column("value", sa.Text))
    op.bulk_insert(meta, [{"name": "id", "value": uuid.uuid4().hex}])
    op.add_column("review", sa.Column("marks", sa.Integer(), server_default="1", nullable=False))
