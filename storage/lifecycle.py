"""The life of a checkpoint until its decision: building → candidate → promoted or rejected.

Each step is one transaction. Promotion is in `head`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, and_, insert, select, update

from storage.batching import batches
from storage.database import insert_or_ignore
from storage.errors import CheckpointStateError, OpenCheckpointError, UnknownCheckpointError
from storage.outcomes import planned_edits, write_checks, write_edits
from storage.queue import claim, request_rows, requeue
from storage.records.checkpoints import CheckpointIntent, CheckRow, EditRow
from storage.schema.checkpoints import OPEN_STATES, Checkpoint, Edit, SubjectState
from storage.schema.planned import EditRequest
from storage.schema.runs import Model

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from storage.crash import OnPoint
    from storage.records import Json
    from storage.records.runs import Lease


def get(connection: Connection, checkpoint: int) -> Row[Any]:
    """Read one checkpoint's row.

    Raises:
        UnknownCheckpointError: If there is none.
    """
    row = connection.execute(select(Checkpoint).where(Checkpoint.id == checkpoint)).one_or_none()
    if row is None:
        raise UnknownCheckpointError(checkpoint)
    return row


def expect(row: Row[Any], step: str, *states: str) -> None:
    """Refuse a step that does not fit the checkpoint's state.

    Raises:
        CheckpointStateError: If its state is none of these.
    """
    if row.state not in states:
        raise CheckpointStateError(row.id, row.state, step)


def refuse_open(connection: Connection, model: int) -> None:
    """Refuse a step that needs a model without an open checkpoint.

    Raises:
        OpenCheckpointError: If one is being built or waits for its decision.
    """
    row = connection.execute(
        select(Checkpoint.id, Checkpoint.state).where(
            Checkpoint.model_id == model, Checkpoint.state.in_(OPEN_STATES)
        )
    ).one_or_none()
    if row is not None:
        raise OpenCheckpointError(row.id, row.state)


def begin(
    connection: Connection,
    lease: Lease,
    run: int,
    request_ids: Collection[int],
    *,
    algorithm: str,
    settings: Json,
    from_base: bool,
    now: datetime,
    point: OnPoint,
) -> CheckpointIntent:
    """Write down what is about to be made: the checkpoint, its claims and its planned edits.

    Raises:
        OpenCheckpointError: If another checkpoint of the model is open.
        CheckpointStateError: If a request is not pending.
    """
    model = lease.model.id
    refuse_open(connection, model)
    parent = connection.execute(
        select(Checkpoint.id, Checkpoint.digest, Checkpoint.depth)
        .join(Model, Model.head_checkpoint_id == Checkpoint.id)
        .where(Model.id == model)
    ).one_or_none()
    checkpoint: int = connection.execute(
        insert(Checkpoint)
        .values(
            model_id=model,
            parent_id=parent.id if parent else None,
            run_id=run,
            state="building",
            files={},
            algorithm=algorithm,
            settings=dict(settings),
            metrics={},
            from_base=from_base,
            depth=parent.depth + 1 if parent else 0,
            edits=len(request_ids),
            epoch=lease.epoch,
            created_at=now,
        )
        .returning(Checkpoint.id)
    ).scalar_one()
    rows = claim(connection, model, checkpoint, request_ids, now)
    point("begin_checkpoint.claimed")
    if rows:
        connection.execute(
            insert(Edit),
            [
                {
                    "checkpoint_id": checkpoint,
                    "fact_id": row.fact_id,
                    "request_id": row.id,
                    "op": row.op,
                    "status": "planned",
                    "prompt": row.prompts[0] if row.prompts else "",
                }
                for row in rows
            ],
        )
    return CheckpointIntent(
        checkpoint,
        parent.id if parent else None,
        parent.digest if parent else None,
        tuple(replace(row, state="claimed") for row in request_rows(connection, rows)),
    )


def record_candidate(
    connection: Connection,
    model: int,
    checkpoint: int,
    *,
    digest: str,
    path: str,
    size_bytes: int,
    files: Json,
    metrics: Json,
    edits: Sequence[EditRow],
    checks: Sequence[CheckRow],
    subjects: Collection[str] | None,
    point: OnPoint,
    now: datetime,
) -> None:
    """Write down that the files exist, and what was measured.

    Raises:
        CheckpointStateError: If it is not being built.
    """
    row = get(connection, checkpoint)
    expect(row, "recorded as candidate", "building")
    planned = planned_edits(connection, checkpoint)
    write_edits(connection, checkpoint, planned, edits)
    point("record_candidate.edits")
    write_checks(connection, checkpoint, checks)
    stated = {subject for subject, _, _ in planned} if subjects is None else set(subjects)
    if stated:
        connection.execute(
            insert_or_ignore(connection, SubjectState),
            [{"checkpoint_id": checkpoint, "subject": subject} for subject in sorted(stated)],
        )
    connection.execute(
        update(Checkpoint)
        .where(Checkpoint.id == checkpoint, Checkpoint.model_id == model)
        .values(
            state="candidate",
            digest=digest,
            path=path,
            size_bytes=size_bytes,
            files=dict(files),
            metrics=dict(metrics),
            decided_at=now,
        )
    )


def reject(
    connection: Connection,
    checkpoint: int,
    *,
    reason: str,
    again: bool,
    failed: Collection[int],
    attempt: int,
    state: str,
    now: datetime,
) -> int:
    """Turn a checkpoint down; its requests go back into the queue, or fail.

    Args:
        connection: A writing transaction.
        checkpoint: Key of an open checkpoint.
        reason: Why.
        again: True to give the requests back, False to fail them all.
        failed: Requests that fail in any case.
        attempt: What the requests' count of attempts grows by.
        state: rejected or abandoned.
        now: The time.

    Returns:
        How many requests are pending again.

    Raises:
        CheckpointStateError: If it is not open.
    """
    row = get(connection, checkpoint)
    expect(row, state, *OPEN_STATES)
    connection.execute(
        update(Checkpoint)
        .where(Checkpoint.id == checkpoint)
        .values(state=state, decided_at=now, reason=reason)
    )
    connection.execute(update(Edit).where(Edit.checkpoint_id == checkpoint).values(status="dropped"))
    failing = and_(EditRequest.checkpoint_id == checkpoint, EditRequest.state == "claimed")
    values = {
        "state": "failed",
        "error": reason,
        "attempts": EditRequest.attempts + attempt,
        "updated_at": now,
    }
    if not again:
        connection.execute(update(EditRequest).where(failing).values(**values))
    for part in batches(sorted(failed)):
        connection.execute(update(EditRequest).where(failing, EditRequest.id.in_(part)).values(**values))
    return requeue(connection, checkpoint, now=now, attempt=attempt)
