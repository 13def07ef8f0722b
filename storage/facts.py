"""What a model holds: now (the view `live_facts`) or at a checkpoint, and where its states lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, and_, exists, func, select
from sqlalchemy.orm import aliased

from storage.batching import selected
from storage.records.facts import HeldRow, SubjectStateRow
from storage.schema.checkpoints import LIVE_STATES, Checkpoint, Edit, SubjectState
from storage.schema.planned import EditRequest, Fact

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection
    from sqlalchemy.sql import Select


def _columns() -> Select[Any]:
    return (
        select(
            Fact.subject,
            Fact.property,
            Fact.slot,
            EditRequest.value_kind,
            EditRequest.value,
            EditRequest.target,
            EditRequest.subject_label,
            EditRequest.prompts,
            EditRequest.heldback,
            Edit.op,
            Edit.id.label("edit_id"),
            Edit.request_id,
            Checkpoint.id.label("checkpoint_id"),
            Checkpoint.digest,
            Checkpoint.decided_at,
        )
        .select_from(Fact)
        .join(Edit, Edit.fact_id == Fact.id)
        .join(Checkpoint, Checkpoint.id == Edit.checkpoint_id)
        .join(EditRequest, EditRequest.id == Edit.request_id)
    )


def live_query(model_id: int, line: Collection[int] | None = None) -> Select[Any]:
    """Say what is live: the newest applied edit a fact along the head's lineage, unless it retracts.

    The same words as the view `live_facts`, with the columns a record needs.

    Args:
        model_id: The model.
        line: Another lineage than the head's, by its checkpoints.
    """
    newer, on = aliased(Edit), aliased(Checkpoint)
    return _columns().where(
        _standing(Checkpoint, model_id, line),
        Edit.status == "applied",
        Edit.op != "retract",
        ~exists().where(
            newer.fact_id == Edit.fact_id,
            newer.id > Edit.id,
            newer.status == "applied",
            on.id == newer.checkpoint_id,
            _standing(on, model_id, line),
        ),
    )


def _standing(
    checkpoint: type[Checkpoint], model_id: int, line: Collection[int] | None
) -> ColumnElement[bool]:
    if line is not None:
        return checkpoint.id.in_(line)
    return and_(checkpoint.model_id == model_id, checkpoint.state.in_(LIVE_STATES))


def held_rows(
    connection: Connection,
    model_id: int,
    subjects: Iterable[str] | None = None,
    line: Collection[int] | None = None,
) -> Iterator[HeldRow]:
    """Read what the model holds, in order of (subject, property, slot).

    Args:
        connection: A transaction.
        model_id: The model.
        subjects: Only these, or all.
        line: The checkpoints of a lineage, or the head's.

    Yields:
        Each fact.
    """
    query = live_query(model_id, line).order_by(Fact.subject, Fact.property, Fact.slot)
    for row in selected(connection, query, Fact.subject, subjects):
        yield _held(row)


def _held(row: Row[Any]) -> HeldRow:
    return HeldRow(
        subject=row.subject,
        property=row.property,
        slot=row.slot,
        value_kind=row.value_kind or "",
        value=row.value,
        label=row.target,
        op=row.op,
        subject_label=row.subject_label,
        prompts=tuple(row.prompts),
        heldback=tuple(row.heldback),
        edit_id=row.edit_id,
        request_id=row.request_id,
        checkpoint_id=row.checkpoint_id,
        checkpoint=row.digest,
        held_since=row.decided_at,
    )


def subject_states(connection: Connection, model_id: int) -> list[SubjectStateRow]:
    """Say which checkpoint carries each live subject's state: the newest on the lineage that wrote it."""
    live = live_query(model_id).with_only_columns(Fact.subject).distinct().subquery()
    newest = (
        select(SubjectState.subject, func.max(SubjectState.checkpoint_id).label("checkpoint_id"))
        .join(live, live.c.subject == SubjectState.subject)
        .join(Checkpoint, Checkpoint.id == SubjectState.checkpoint_id)
        .where(Checkpoint.model_id == model_id, Checkpoint.state.in_(LIVE_STATES))
        .group_by(SubjectState.subject)
        .subquery()
    )
    rows = connection.execute(
        select(newest.c.subject, newest.c.checkpoint_id, Checkpoint.digest)
        .join(Checkpoint, Checkpoint.id == newest.c.checkpoint_id)
        .order_by(newest.c.subject)
    )
    return [SubjectStateRow(row.subject, row.checkpoint_id, row.digest) for row in rows]
