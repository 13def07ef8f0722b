"""Run by Alembic: migrate on the connection it was given (`storage.migrate.upgrade`)."""

from __future__ import annotations

from alembic import context

from storage.schema.base import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
    transaction_per_migration=False,
)
context.run_migrations()
