"""Drop an edit's own failure: nothing wrote one; a request that fails says why itself."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("edit", table_kwargs={"sqlite_strict": True}) as batch:
        batch.drop_column("error")
        batch.drop_constraint(op.f("ck_edit_status"), type_="check")
        batch.create_check_constraint(
            op.f("ck_edit_status"), "status IN ('planned', 'written', 'applied', 'dropped')"
        )
