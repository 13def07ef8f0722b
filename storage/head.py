"""Where the head is: promotion and rollback, one compare-and-swap in one transaction each.

The states of the lineage and the record of what was held when (`holding`) follow in the same transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, and_, bindparam, insert, select, text, update
from sqlalchemy.orm import aliased

from storage.batching import batches
from storage.database import insert_or_ignore
from storage.errors import StaleLeaseError
from storage.lifecycle import expect, get, refuse_open
from storage.schema.checkpoints import LIVE_STATES, Checkpoint, Edit, HeadMove
from storage.schema.planned import EditRequest, Fact
from storage.schema.pulled import Review
from storage.schema.runs import Model
from storage.types import Moment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection
    from sqlalchemy.sql import Select

    from storage.crash import OnPoint
    from storage.records.runs import Lease


def promote(
    connection: Connection,
    lease: Lease,
    checkpoint: int,
    *,
    reason: str,
    now: datetime,
    point: OnPoint,
) -> None:
    """Make a candidate the head.

    Raises:
        CheckpointStateError: If it is no candidate.
        StaleLeaseError: If the head is no longer its parent.
    """
    row = get(connection, checkpoint)
    expect(row, "promoted", "candidate")
    connection.execute(update(Edit).where(Edit.checkpoint_id == checkpoint).values(status="applied"))
    _move_head(
        connection, lease, row.parent_id, checkpoint, added=[checkpoint], removed=[], now=now, point=point
    )
    connection.execute(
        update(Checkpoint).where(Checkpoint.id == checkpoint).values(decided_at=now, reason=reason)
    )
    connection.execute(
        update(EditRequest)
        .where(EditRequest.checkpoint_id == checkpoint, EditRequest.state == "claimed")
        .values(state="applied", updated_at=now)
    )
    _log_move(connection, lease, row.parent_id, checkpoint, kind="promote", reason=reason, now=now)


def walk(connection: Connection, checkpoint: int | None) -> list[int]:
    """Walk from a checkpoint to its root; keys, newest first."""
    if checkpoint is None:
        return []
    start = (
        select(Checkpoint.id, Checkpoint.parent_id)
        .where(Checkpoint.id == checkpoint)
        .cte("up", recursive=True)
    )
    # UNION, not UNION ALL: a cycle, should one ever be made by hand, ends the walk instead of never ending.
    step = select(Checkpoint.id, Checkpoint.parent_id).join(start, Checkpoint.id == start.c.parent_id)
    rows = connection.execute(select(start.union(step).c.id))
    return sorted((row.id for row in rows), reverse=True)


def rollback(
    connection: Connection,
    lease: Lease,
    target: int | None,
    *,
    reason: str,
    review: bool,
    now: datetime,
    point: OnPoint,
) -> None:
    """Move the head to a checkpoint that was live before, or to the base.

    Raises:
        CheckpointStateError: If the target was never promoted.
        OpenCheckpointError: If a candidate waits on top of the head.
    """
    if target is not None:
        expect(get(connection, target), "the head again", *LIVE_STATES, "rolled_back")
    refuse_open(connection, lease.model.id)
    head = connection.scalars(select(Model.head_checkpoint_id).where(Model.id == lease.model.id)).one()
    if head == target:
        if review:
            _wish_again(connection, lease.model.id, now)
        return
    before, after = set(walk(connection, head)), set(walk(connection, target))
    added, removed = sorted(after - before), sorted(before - after)
    _move_head(connection, lease, head, target, added=added, removed=removed, now=now, point=point)
    # What was superseded is queued again where it is wished again, what was rolled back is not.
    undone = "superseded" if review else "rolled_back"
    for checkpoints, old, new in (
        (removed, ("applied",), undone),
        (added, ("rolled_back", "superseded", "pending", "failed"), "applied"),
    ):
        for part in batches(checkpoints):
            behind = select(Edit.request_id).where(Edit.checkpoint_id.in_(part), Edit.status == "applied")
            connection.execute(
                update(EditRequest)
                .where(EditRequest.id.in_(behind), EditRequest.state.in_(old))
                .values(state=new, error=None, updated_at=now)
            )
    if review:
        _review_again(connection, lease.model.id, [*added, *removed], now)
    _log_move(connection, lease, head, target, kind="rollback", reason=reason, now=now)


def _wish_again(connection: Connection, model: int, now: datetime) -> None:
    """Let what was undone for good be queued where it is wished again: a person thought better of it."""
    undone = and_(EditRequest.model_id == model, EditRequest.state == "rolled_back")
    facts: Select[Any] = (
        select(bindparam("model", model), Fact.subject, Fact.property, bindparam("marked", now, Moment()))
        .join(EditRequest, EditRequest.fact_id == Fact.id)
        .where(undone)
        .distinct()
    )
    connection.execute(
        insert_or_ignore(connection, Review).from_select(
            ["model_id", "subject", "property", "marked_at"], facts
        )
    )
    connection.execute(update(EditRequest).where(undone).values(state="superseded", updated_at=now))


def _review_again(connection: Connection, model: int, checkpoints: Sequence[int], now: datetime) -> None:
    for part in batches(checkpoints):
        facts: Select[Any] = (
            select(bindparam("model", model), Fact.subject, Fact.property, bindparam("marked", now, Moment()))
            .join(Edit, Edit.fact_id == Fact.id)
            .where(Edit.checkpoint_id.in_(part))
            .distinct()
        )
        connection.execute(
            insert_or_ignore(connection, Review).from_select(
                ["model_id", "subject", "property", "marked_at"], facts
            )
        )


def _log_move(
    connection: Connection,
    lease: Lease,
    old: int | None,
    new: int | None,
    *,
    kind: str,
    reason: str,
    now: datetime,
) -> None:
    connection.execute(
        insert(HeadMove).values(
            model_id=lease.model.id,
            from_checkpoint_id=old,
            to_checkpoint_id=new,
            kind=kind,
            reason=reason,
            epoch=lease.epoch,
            moved_at=now,
        )
    )


def _move_head(
    connection: Connection,
    lease: Lease,
    old: int | None,
    new: int | None,
    *,
    added: Sequence[int],
    removed: Sequence[int],
    now: datetime,
    point: OnPoint,
) -> None:
    """Swap the head, set the states of the lineage, and record from when on which facts are held."""
    moved = connection.execute(
        update(Model)
        .where(
            Model.id == lease.model.id,
            Model.head_checkpoint_id.is_not_distinct_from(old),
            Model.lock_epoch == lease.epoch,
        )
        .values(head_checkpoint_id=new)
    )
    if moved.rowcount != 1:
        current = connection.scalars(select(Model.lock_epoch).where(Model.id == lease.model.id)).one()
        raise StaleLeaseError(lease.model.name, lease.epoch, current)
    model = lease.model.id
    promoted = and_(Checkpoint.model_id == model, Checkpoint.state == "promoted")
    connection.execute(update(Checkpoint).where(promoted).values(state="superseded"))
    for checkpoints, state in ((removed, "rolled_back"), (added, "superseded")):
        for part in batches(checkpoints):
            connection.execute(update(Checkpoint).where(Checkpoint.id.in_(part)).values(state=state))
    if new is not None:
        connection.execute(update(Checkpoint).where(Checkpoint.id == new).values(state="promoted"))
    point("promote.head")
    for part in batches([*added, *removed], 50):
        _move_holdings(connection, model, part, now)
    if new is not None:
        connection.execute(
            update(Checkpoint)
            .where(Checkpoint.id == new, Checkpoint.live_facts.is_(None))
            .values(live_facts=_live_count(connection, old, new))
        )
    point("promote.holdings")


_CLOSE = """
UPDATE holding SET held_to = CASE WHEN held_from > :now THEN held_from ELSE :now END
WHERE model_id = :model AND held_to IS NULL
AND fact_id IN (SELECT fact_id FROM edit WHERE checkpoint_id IN :checkpoints)
AND NOT EXISTS (SELECT 1 FROM live_facts l WHERE l.edit_id = holding.edit_id AND l.model_id = :model)
"""
_OPEN_HOLDINGS = """
INSERT INTO holding (model_id, fact_id, edit_id, held_from)
SELECT l.model_id, l.fact_id, l.edit_id, :now
FROM live_facts l
WHERE l.model_id = :model
AND l.fact_id IN (SELECT fact_id FROM edit WHERE checkpoint_id IN :checkpoints)
AND NOT EXISTS (
    SELECT 1 FROM holding h WHERE h.model_id = :model AND h.fact_id = l.fact_id AND h.held_to IS NULL)
"""


def _move_holdings(connection: Connection, model: int, checkpoints: Sequence[int], now: datetime) -> None:
    bound = {"now": now, "model": model, "checkpoints": list(checkpoints)}
    for sql in (_CLOSE, _OPEN_HOLDINGS):
        clause = text(sql).bindparams(
            bindparam("now", type_=Moment()), bindparam("checkpoints", expanding=True)
        )
        connection.execute(clause, bound)


def _live_count(connection: Connection, old: int | None, new: int) -> int:
    """Count a new head's facts: its parent's, plus what its own edits opened, minus what they closed."""
    before = 0
    if old is not None:
        before = connection.scalars(select(Checkpoint.live_facts).where(Checkpoint.id == old)).one() or 0
    earlier, on = aliased(Edit), aliased(Checkpoint)
    held_before = (
        select(earlier.op)
        .join(on, on.id == earlier.checkpoint_id)
        .where(
            earlier.fact_id == Edit.fact_id,
            earlier.checkpoint_id != new,
            earlier.status == "applied",
            on.model_id == Checkpoint.model_id,
            on.state.in_(LIVE_STATES),
        )
        .order_by(earlier.id.desc())
        .limit(1)
        .scalar_subquery()
    )
    rows: list[Row[Any]] = list(
        connection.execute(
            select(Edit.op, held_before.label("before"))
            .join(Checkpoint, Checkpoint.id == Edit.checkpoint_id)
            .where(Edit.checkpoint_id == new, Edit.status == "applied")
        )
    )
    opened = sum(int(row.op != "retract") for row in rows)
    closed = sum(int(row.before not in {None, "retract"}) for row in rows)
    return before + opened - closed
