"""Questions to the ledger that the program itself asks. People ask the views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, and_, func, or_, select
from sqlalchemy.orm import aliased

from storage.batching import batches
from storage.errors import UnknownCheckpointError, UnknownModelError
from storage.head import walk
from storage.queue import sources
from storage.records.checkpoints import CheckpointRow
from storage.records.facts import HistoryRow
from storage.records.runs import Model, RunRow, Status
from storage.review import entity
from storage.schema.checkpoints import LIVE_STATES, OPEN_STATES, Checkpoint, Edit, HeadMove, Holding
from storage.schema.planned import EditRequest, Fact, HeldBack
from storage.schema.pulled import Entity, Review, SourceCursor, Statement
from storage.schema.runs import Model as ModelTable
from storage.schema.runs import SyncRun

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.engine import Connection
    from sqlalchemy.sql import Select
    from sqlalchemy.sql.selectable import ScalarSelect

    from storage.records.pulled import EntityRow

_parent = aliased(Checkpoint, name="parent")
_SYNCED = SyncRun.source.is_not(None)
"""A sync names its source in the transaction that stores what it read; one that died before read nothing."""


def _model_query() -> Select[Any]:
    query: Select[Any] = select(ModelTable, Checkpoint.digest.label("head_digest")).outerjoin(
        Checkpoint, Checkpoint.id == ModelTable.head_checkpoint_id
    )
    return query


def model_named(connection: Connection, name: str) -> Model:
    """Read a model.

    Raises:
        UnknownModelError: If there is none of this name.
    """
    row = connection.execute(_model_query().where(ModelTable.name == name)).one_or_none()
    if row is None:
        raise UnknownModelError(name)
    return _model(row)


def models(connection: Connection) -> list[Model]:
    """Read all models, by name."""
    return [_model(row) for row in connection.execute(_model_query().order_by(ModelTable.name))]


def _model(row: Row[Any]) -> Model:
    return Model(
        row.id,
        row.name,
        row.base_ref,
        row.base_digest,
        row.head_checkpoint_id,
        row.head_digest,
        row.lock_epoch,
    )


def _checkpoint_query() -> Select[Any]:
    query: Select[Any] = select(Checkpoint, _parent.digest.label("parent_digest")).outerjoin(
        _parent, _parent.id == Checkpoint.parent_id
    )
    return query


def _checkpoint(row: Row[Any]) -> CheckpointRow:
    return CheckpointRow(
        id=row.id,
        digest=row.digest,
        parent=row.parent_id,
        parent_digest=row.parent_digest,
        run=row.run_id,
        state=row.state,
        algorithm=row.algorithm,
        settings=row.settings,
        metrics=row.metrics,
        from_base=bool(row.from_base),
        edits=row.edits,
        live_facts=row.live_facts,
        path=row.path,
        size_bytes=row.size_bytes,
        files=row.files,
        created_at=row.created_at,
        decided_at=row.decided_at,
        reason=row.reason,
    )


def checkpoint(connection: Connection, model_id: int, which: int | str) -> CheckpointRow:
    """Read a checkpoint by key, digest or the beginning of its digest.

    Raises:
        UnknownCheckpointError: If there is none, or the beginning fits several contents.
    """
    query = _checkpoint_query().where(Checkpoint.model_id == model_id)
    if isinstance(which, int):
        query = query.where(Checkpoint.id == which)
    else:
        query = query.where(Checkpoint.digest >= which, Checkpoint.digest < which + "g")
    rows = list(connection.execute(query.order_by(Checkpoint.id.desc())))
    if not rows or len({row.digest for row in rows}) > 1:
        raise UnknownCheckpointError(which)
    # The same content may have been made twice (rejected, then made again): the one that is live speaks for
    # it, or else the one that was.
    return _checkpoint(min(rows, key=lambda row: (row.state not in LIVE_STATES, row.state != "rolled_back")))


def checkpoints(connection: Connection, model_id: int) -> list[CheckpointRow]:
    """Read all checkpoints of a model, oldest first."""
    query = _checkpoint_query().where(Checkpoint.model_id == model_id).order_by(Checkpoint.id)
    return [_checkpoint(row) for row in connection.execute(query)]


def lineage(connection: Connection, model_id: int, head: int | None) -> list[CheckpointRow]:
    """Read a checkpoint and its ancestors, root first."""
    found: list[CheckpointRow] = []
    for part in batches(sorted(walk(connection, head))):
        query = _checkpoint_query().where(Checkpoint.model_id == model_id, Checkpoint.id.in_(part))
        found.extend(_checkpoint(row) for row in connection.execute(query.order_by(Checkpoint.id)))
    return found


def head_at(connection: Connection, model_id: int, at: datetime) -> int | None:
    """Say which checkpoint was the head at a moment, None for the base itself."""
    query = (
        select(HeadMove.to_checkpoint_id)
        .where(HeadMove.model_id == model_id, HeadMove.moved_at <= at)
        # By their order, not by the clock, which may have been put back between two moves.
        .order_by(HeadMove.id.desc())
        .limit(1)
    )
    return connection.scalars(query).one_or_none()


def undone(connection: Connection, model_id: int) -> dict[int, tuple[datetime, str]]:
    """Say when and why each checkpoint was last taken off the lineage, by its key."""
    moves = connection.execute(
        select(HeadMove)
        .where(HeadMove.model_id == model_id, HeadMove.kind == "rollback")
        .order_by(HeadMove.id)
    ).all()
    return {
        left: (move.moved_at, move.reason)
        for move in moves
        for left in {*walk(connection, move.from_checkpoint_id)} - {*walk(connection, move.to_checkpoint_id)}
    }


def cursor(connection: Connection, source: str) -> datetime | None:
    """Say how far a source was read."""
    return connection.scalars(select(SourceCursor.read_to).where(SourceCursor.source == source)).one_or_none()


def read_last(connection: Connection, model_name: str) -> frozenset[str] | None:
    """Say for which relations a model's last sync read items; see `LedgerReader`."""
    last = connection.execute(_last_sync(model_name)).one_or_none()
    return frozenset(last.params["read"]) if last is not None and "read" in last.params else None


def _last_sync(model_name: str) -> Select[tuple[int, datetime, dict[str, Any]]]:
    return (
        select(SyncRun.id, SyncRun.started_at, SyncRun.params)
        .join(ModelTable, ModelTable.id == SyncRun.model_id)
        .where(ModelTable.name == model_name, _SYNCED)
        .order_by(SyncRun.id.desc())
        .limit(1)
    )


def read_beside(connection: Connection, model_name: str) -> frozenset[str] | None:
    """Say for which relations items were read by others than a model's last sync; see `LedgerReader`."""
    query = select(SyncRun.params).where(or_(_SYNCED, SyncRun.kind == "backfill"))
    last = connection.execute(_last_sync(model_name)).one_or_none()
    if last is not None:
        # Beside it, too: what began earlier and ended later may have stored what it read after it.
        open_then = or_(SyncRun.finished_at.is_(None), SyncRun.finished_at >= last.started_at)
        query = query.where(SyncRun.id != last.id, or_(SyncRun.id > last.id, open_then))
    found = [frozenset(params["read"]) for params in connection.scalars(query) if "read" in params]
    return frozenset.intersection(*found) if found else None


def tracked(connection: Connection, properties: Iterable[str] | None) -> list[EntityRow]:
    """Read the items that are followed, or those of them that have current statements of some relations."""
    query = select(Entity).where(Entity.tracked).order_by(Entity.id)
    if properties is not None:
        standing = select(Statement.subject).where(
            Statement.property.in_(sorted(properties)), Statement.seen_to.is_(None)
        )
        query = query.where(Entity.id.in_(standing))
    return [entity(row) for row in connection.execute(query)]


def history(connection: Connection, model_id: int, subject: str) -> list[HistoryRow]:
    """Read all edits of a subject's facts, oldest first, with the statements behind them."""
    query = (
        select(
            Fact.subject,
            Fact.property,
            Fact.slot,
            Edit,
            EditRequest.old_label,
            EditRequest.value,
            EditRequest.target,
            Checkpoint.digest,
            Checkpoint.state.label("checkpoint_state"),
            Checkpoint.decided_at,
            Holding.id.label("holding_id"),
        )
        .select_from(Fact)
        .join(Edit, Edit.fact_id == Fact.id)
        .join(EditRequest, EditRequest.id == Edit.request_id)
        .join(Checkpoint, Checkpoint.id == Edit.checkpoint_id)
        .outerjoin(Holding, and_(Holding.edit_id == Edit.id, Holding.held_to.is_(None)))
        .where(Fact.subject == subject, Checkpoint.model_id == model_id)
        .order_by(Edit.id)
    )
    rows = list(connection.execute(query))
    found = sources(connection, [row.request_id for row in rows])
    return [
        HistoryRow(
            subject=row.subject,
            property=row.property,
            slot=row.slot,
            op=row.op,
            old_label=row.old_label,
            new_value=row.value,
            new_label=row.target,
            status=row.status,
            p_new_before=row.p_new_before,
            p_new_after=row.p_new_after,
            p_old_after=row.p_old_after,
            exact=row.exact,
            checkpoint=row.digest,
            checkpoint_state=row.checkpoint_state,
            decided_at=row.decided_at,
            live=row.holding_id is not None,
            sources=tuple(found[row.request_id]),
        )
        for row in rows
    ]


def _run(row: Row[Any]) -> RunRow:
    return RunRow(
        row.id,
        row.kind,
        row.state,
        row.flow_run_id,
        row.reference_time,
        row.started_at,
        row.finished_at,
        row.counters,
        row.error,
    )


def _count(table: type[Any], *conditions: Any) -> ScalarSelect[int]:  # noqa: ANN401  column expressions
    return select(func.count()).select_from(table).where(*conditions).scalar_subquery()


def status(connection: Connection, model: Model) -> Status:
    """Say where a model stands, in four questions; nothing here counts a table that grows with the years."""
    numbers = connection.execute(
        select(
            ModelTable.holder,
            _count(EditRequest, EditRequest.model_id == model.id, EditRequest.state == "pending").label(
                "owed"
            ),
            _count(HeldBack, HeldBack.model_id == model.id, HeldBack.resolved_at.is_(None)).label(
                "held_back"
            ),
            _count(Review, Review.model_id == model.id).label("to_review"),
        ).where(ModelTable.id == model.id)
    ).one()
    head, still_open = _head_and_open(connection, model)
    last_run, last_success = _last_runs(connection, model)
    cursors = connection.execute(
        select(SourceCursor.source, SourceCursor.read_to).order_by(SourceCursor.source)
    )
    return Status(
        model=model,
        head=head,
        live_facts=0 if head is None else head.live_facts or 0,
        owed=numbers.owed,
        held_back=numbers.held_back,
        to_review=numbers.to_review,
        last_run=last_run,
        last_success=last_success,
        cursors={row.source: row.read_to for row in cursors},
        holder=numbers.holder,
        open_checkpoint=still_open,
    )


def _head_and_open(connection: Connection, model: Model) -> tuple[CheckpointRow | None, CheckpointRow | None]:
    being_made = select(Checkpoint.id).where(
        Checkpoint.model_id == model.id, Checkpoint.state.in_(OPEN_STATES)
    )
    query = _checkpoint_query().where(Checkpoint.id.in_([model.head, being_made.scalar_subquery()]))
    found = [_checkpoint(row) for row in connection.execute(query)]
    return (
        next((one for one in found if one.id == model.head), None),
        next((one for one in found if one.id != model.head), None),
    )


def _last_runs(connection: Connection, model: Model) -> tuple[RunRow | None, RunRow | None]:
    newest = select(SyncRun.id).where(SyncRun.model_id == model.id).order_by(SyncRun.id.desc()).limit(1)
    succeeded = newest.where(SyncRun.state == "succeeded")
    wanted = [newest.scalar_subquery(), succeeded.scalar_subquery()]
    query = select(SyncRun).where(SyncRun.id.in_(wanted)).order_by(SyncRun.id.desc())
    found = [_run(row) for row in connection.execute(query)]
    return (
        next(iter(found), None),
        next((one for one in found if one.state == "succeeded"), None),
    )
