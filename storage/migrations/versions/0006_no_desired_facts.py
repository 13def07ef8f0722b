"""Drop what nothing read: the desired facts, and an end of validity that no request carried.

The view `fact_history` takes the end from the statements behind a request.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_table("desired_fact")
    op.drop_column("edit_request", "valid_to")
