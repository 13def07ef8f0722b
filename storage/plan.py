"""A plan enters the ledger: changes with reasons, what is held back, what is owed.

One transaction a call. Recording the same plan twice changes nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, exists, select, tuple_

from storage.batching import batches
from storage.database import insert_or_ignore
from storage.held_back import write_held_back
from storage.queue import write_requests
from storage.recording import Recording
from storage.records.planned import ChangeRow, EditRequestRow, PlanReport
from storage.schema.planned import Change, EditRequest, Fact
from storage.schema.pulled import Review
from storage.schema.runs import SyncRun
from storage.scopes import ensure_facts, scope

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy.engine import Connection

    from storage.crash import OnPoint
    from storage.records import Pair


def record_plan(
    connection: Connection,
    model_id: int,
    run: int,
    *,
    now: datetime,
    changes: Sequence[ChangeRow],
    requests: Sequence[EditRequestRow],
    reviewed: Mapping[Pair, int],
    flip_memory: timedelta,
    point: OnPoint,
) -> PlanReport:
    """Record a plan; see the module and `Ledger.record_plan`.

    Raises:
        UnknownStatementError: If a request rests on a statement that was never ingested.
    """
    reference_time = connection.scalars(select(SyncRun.reference_time).where(SyncRun.id == run)).one()
    plan = Recording(connection, model_id, run, now, reference_time, flip_memory)
    spoken_of = [*map(scope, changes), *map(scope, requests)]
    pairs = sorted({*reviewed, *((subject, prop) for subject, prop, _ in spoken_of)})
    scopes = {*(scope(row) for row in changes if row.kind != "unchanged"), *map(scope, requests)}
    plan.facts = ensure_facts(connection, scopes)
    change_ids = _write_changes(plan, changes)
    write_held_back(plan, changes, pairs)
    point("record_plan.changes")
    # A fact whose label changed stands: nothing is taught for it.
    unchanged = {scope(row) for row in changes if row.kind in {"unchanged", "relabel"}}
    write_requests(plan, requests, change_ids, pairs, unchanged=unchanged)
    point("record_plan.requests")
    _clear_marks(plan, reviewed)
    return PlanReport(
        changes=dict(Counter(row.kind for row in changes)),
        queued=plan.counts["queued"],
        known=plan.counts["known"],
        superseded=plan.counts["superseded"],
        held_back=plan.counts["held_back"],
        released=plan.counts["released"],
    )


def _clear_marks(plan: Recording, reviewed: Mapping[Pair, int]) -> None:
    """Clear the marks that were seen; what another model's writer read since then stays marked.

    Marks also stay where an open checkpoint carries a request. It was wished before what marked the group was
    read, and cannot be withdrawn: once the checkpoint is decided about, the model or the queue holds it, and
    only another look at the group takes it out again.
    """
    carried = exists().where(
        EditRequest.model_id == plan.model_id,
        EditRequest.state == "claimed",
        EditRequest.fact_id == Fact.id,
        Fact.subject == Review.subject,
        Fact.property == Review.property,
    )
    seen = sorted((*pair, marks) for pair, marks in reviewed.items())
    for part in batches(seen, 200):
        # A row that another writer holds is being marked again: neither wait for it nor clear it.
        clearable = (
            select(Review.subject, Review.property)
            .where(
                Review.model_id == plan.model_id,
                tuple_(Review.subject, Review.property, Review.marks).in_(part),
                ~carried,
            )
            .with_for_update(skip_locked=True)
        )
        plan.connection.execute(
            delete(Review).where(
                Review.model_id == plan.model_id, tuple_(Review.subject, Review.property).in_(clearable)
            )
        )


def _write_changes(plan: Recording, changes: Sequence[ChangeRow]) -> dict[int, int]:
    """Write the changes that are not `unchanged`.

    Returns:
        Key of this run's change, by fact.
    """
    rows: list[dict[str, Any]] = [
        {
            "model_id": plan.model_id,
            "run_id": plan.run,
            "fact_id": plan.facts[scope(row)],
            "kind": row.kind,
            "reason": row.reason,
            "old_value": row.old_value,
            "old_label": row.old_label,
            "new_value_kind": row.new_value_kind,
            "new_value": row.new_value,
            "new_label": row.new_label,
            "releases_at": row.releases_at,
            "sources": [list(source) for source in row.sources],
            "flags": list(row.flags),
            "created_at": plan.now,
        }
        for row in changes
        if row.kind != "unchanged"
    ]
    if not rows:
        return {}
    plan.connection.execute(insert_or_ignore(plan.connection, Change), rows)
    found: dict[int, int] = {}
    for part in batches(sorted({row["fact_id"] for row in rows})):
        query = select(Change.id, Change.fact_id).where(Change.run_id == plan.run, Change.fact_id.in_(part))
        found.update({row.fact_id: row.id for row in plan.connection.execute(query.order_by(Change.id))})
    return found
