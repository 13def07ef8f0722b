"""The tables, by subject.

Users query the views (`views.sql`), which are a contract; the tables may change with a migration.

Every constraint has a name, so that migrations can find it on both databases. Constraints are in the
database, not in hope: one open checkpoint and one promoted checkpoint a model, one live fact a scope, one
pending request a fact, one current version of a statement.

Whoever imports one table loads all of them, because a foreign key finds its table by name.
"""

from __future__ import annotations

from storage.schema import checkpoints, planned, pulled, runs

__all__ = ["checkpoints", "planned", "pulled", "runs"]
