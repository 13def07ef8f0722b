"""Named points at which a test may end the process.

Product code calls `point(name)` at every place where a crash must be survivable. Nothing happens there unless
a callback was given when the ledger (or the checkpoint folder) was opened.
"""

from __future__ import annotations

from collections.abc import Callable

OnPoint = Callable[[str], None]

TRANSACTIONS = (
    "ensure_model",
    "writer",
    "recover",
    "begin_run",
    "track",
    "ingest",
    "record_plan",
    "decide",
    "prune",
    "begin_checkpoint",
    "record_candidate",
    "promote",
    "reject",
    "rollback",
    "finish_run",
)
"""Steps of the ledger: each is one transaction with a point before and a point after its commit."""

STEPS = (
    "ingest.staged",
    "ingest.closed",
    "ingest.inserted",
    "record_plan.changes",
    "record_plan.requests",
    "begin_checkpoint.claimed",
    "record_candidate.edits",
    "promote.head",
    "promote.holdings",
    "recover.settled",
    "recover.orphans",
)
"""Points inside a transaction, where its work is half done."""

FILES = (
    "files.before",
    "files.half_written",
    "files.written",
    "files.synced",
    "files.renamed",
    "files.folder_synced",
)
"""Points while a checkpoint's files are put in place."""

POINTS = (
    *(f"{step}.{side}" for step in TRANSACTIONS for side in ("before_commit", "after_commit")),
    *STEPS,
    *FILES,
)
"""Every name that can be passed to the callback."""


def silent(name: str) -> None:
    """Do nothing at a point: the default callback."""
    del name
