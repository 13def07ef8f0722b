"""Models, the right to write them, and the runs that do: what a writer begins with and ends with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import insert, select, update

from storage import reading, review
from storage.database import insert_or_ignore
from storage.errors import LockHeldError, ModelMismatchError, StaleLeaseError, UnknownModelError
from storage.ingest import take_turn
from storage.records.runs import Lease, Model
from storage.schema.runs import Model as ModelTable
from storage.schema.runs import SyncRun

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from storage.records import Json


def ensure_model(connection: Connection, name: str, base_ref: str, base_digest: str, now: datetime) -> Model:
    """Register a model, or find it; see `Ledger.ensure_model`.

    Raises:
        ModelMismatchError: If the name stands for another base.
    """
    known = {model.name for model in reading.models(connection)}
    if name not in known:
        # A pull under way would neither mark its news for this model nor show them to it.
        take_turn(connection)
    connection.execute(
        insert_or_ignore(connection, ModelTable).values(
            name=name, base_ref=base_ref, base_digest=base_digest, lock_epoch=0, created_at=now
        )
    )
    model = reading.model_named(connection, name)
    if model.base_digest != base_digest:
        raise ModelMismatchError(name, model.base_digest, base_digest)
    if name not in known:
        review.mark_all(connection, model.id, now)
    return model


def lock_held(connection: Connection, model: Model) -> LockHeldError:
    """Say who holds the lock of a model."""
    row = connection.execute(select(ModelTable).where(ModelTable.id == model.id)).one()
    return LockHeldError(model.name, row.holder or "another process", row.held_since)


def take(connection: Connection, model: Model, holder: str, now: datetime) -> Lease:
    """Begin a new epoch: whoever wrote before writes no more."""
    epoch = connection.scalars(
        update(ModelTable)
        .where(ModelTable.id == model.id)
        .values(lock_epoch=ModelTable.lock_epoch + 1, holder=holder, held_since=now)
        .returning(ModelTable.lock_epoch)
    ).one()
    return Lease(reading.model_named(connection, model.name), epoch, holder)


def fence(connection: Connection, lease: Lease) -> None:
    """Refuse a writer whose epoch is over.

    Raises:
        UnknownModelError: If its model is gone.
        StaleLeaseError: If somebody else took the lease.
    """
    query = select(ModelTable.lock_epoch).where(ModelTable.id == lease.model.id)
    # Not a full row lock: rows of other tables that name this model may still be inserted beside us.
    epoch = connection.scalars(query.with_for_update(key_share=True)).one_or_none()
    if epoch is None:
        raise UnknownModelError(lease.model.name)
    if epoch != lease.epoch:
        raise StaleLeaseError(lease.model.name, lease.epoch, epoch)


def give_back(connection: Connection, lease: Lease) -> None:
    """Say that nobody writes the model, unless somebody took the lease meanwhile."""
    connection.execute(
        update(ModelTable)
        .where(ModelTable.id == lease.model.id, ModelTable.lock_epoch == lease.epoch)
        .values(holder=None, held_since=None)
    )


def begin(
    connection: Connection,
    lease: Lease,
    kind: str,
    *,
    reference_time: datetime,
    flow_run_id: str | None,
    params: Json | None,
    now: datetime,
) -> int:
    """Open a run; see `Ledger.begin_run`."""
    run: int = connection.execute(
        insert(SyncRun)
        .values(
            model_id=lease.model.id,
            kind=kind,
            flow_run_id=flow_run_id,
            reference_time=reference_time,
            params=dict(params or {}),
            state="running",
            epoch=lease.epoch,
            counters={},
            started_at=now,
        )
        .returning(SyncRun.id)
    ).scalar_one()
    return run


def finish(
    connection: Connection,
    lease: Lease,
    run: int,
    state: str,
    *,
    counters: Json | None,
    error: str | None,
    now: datetime,
) -> None:
    """Close a run; see `Ledger.finish_run`."""
    connection.execute(
        update(SyncRun)
        .where(SyncRun.id == run, SyncRun.model_id == lease.model.id)
        .values(state=state, counters=dict(counters or {}), error=error, finished_at=now)
    )
