"""What may go when a ledger grows old, and a copy to keep before it goes.

Edits, requests, checkpoints, holdings, head moves, runs and what was held back are the audit trail: nothing
here touches them. What goes is what they do not rest on: measurements beside the one that proves an edit,
closed versions of statements that no request names, and decisions that edited nothing.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import delete, exists, func, select

from storage.checkpoints import sync_path
from storage.database import raise_os_error, sqlite_path, translated
from storage.errors import LedgerUrlError
from storage.schema.checkpoints import OPEN_STATES, Checkpoint, RecallCheck
from storage.schema.planned import Change, EditRequest, RequestSource
from storage.schema.pulled import Statement

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection, Engine

_BESIDE = ("paraphrase", "neighbourhood", "retention")


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows went, or would go.

    Attributes:
        checks: Paraphrase, neighbourhood and retention measurements; their sums by relation stay.
        statements: Closed versions of statements that no edit request rests on.
        changes: Decisions that led to no request.
    """

    checks: int
    statements: int
    changes: int


def prune(connection: Connection, model_id: int, before: datetime, *, dry_run: bool) -> Pruned:
    """Delete what is older than a moment and backs nothing; see the module.

    Args:
        connection: A writing transaction.
        model_id: The model whose measurements and decisions are meant; statements belong to all models.
        before: What was measured, closed or decided before it may go.
        dry_run: Only count.
    """
    decided = select(Checkpoint.id).where(
        Checkpoint.model_id == model_id, Checkpoint.decided_at < before, Checkpoint.state.not_in(OPEN_STATES)
    )
    rests_on = exists().where(RequestSource.statement_id == Statement.id)
    led_to = exists().where(EditRequest.change_id == Change.id)
    return Pruned(
        checks=_delete(
            connection,
            RecallCheck,
            (RecallCheck.checkpoint_id.in_(decided), RecallCheck.probe.in_(_BESIDE)),
            dry_run=dry_run,
        ),
        statements=_delete(connection, Statement, (Statement.seen_to < before, ~rests_on), dry_run=dry_run),
        changes=_delete(
            connection,
            Change,
            (Change.model_id == model_id, Change.created_at < before, ~led_to),
            dry_run=dry_run,
        ),
    )


def _delete(
    connection: Connection,
    table: type[RecallCheck | Statement | Change],
    conditions: tuple[ColumnElement[bool], ...],
    *,
    dry_run: bool,
) -> int:
    if dry_run:
        return int(connection.scalar(select(func.count()).select_from(table).where(*conditions)) or 0)
    return connection.execute(delete(table).where(*conditions)).rowcount


def archive(engine: Engine, target: Path) -> None:
    """Copy a SQLite ledger as one moment shows it; writers may go on. See `LedgerReader.archive`."""
    path = sqlite_path(engine.url)
    if path is None:
        raise LedgerUrlError("A PostgreSQL ledger is archived with pg_dump.")
    if target.exists():
        raise LedgerUrlError(f"{target} exists already: name another file for the archive.")
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        # Not through a connection of the engine's: those begin a transaction, in which SQLite does not copy.
        with translated(), closing(engine.raw_connection()) as connection:
            connection.cursor().execute("VACUUM INTO ?", (str(part),))
        sync_path(part)
        part.replace(target)
        sync_path(target.parent)
    except OSError as error:
        raise_os_error(error, target)
    finally:
        part.unlink(missing_ok=True)
