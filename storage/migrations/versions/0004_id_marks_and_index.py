"""Give the ledger an id; count the marks of a review; index what pruning asks of each change."""

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
    op.create_index(op.f("ix_edit_request_change_id"), "edit_request", ["change_id"])
