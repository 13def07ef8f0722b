"""What waits: for its hold window, for a second sighting, for a person.

A plan opens it, counts it again at every pull that still says so, and resolves it; a person may decide. What
a person blocked stays blocked when it goes and comes back.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, and_, insert, or_, select, tuple_, update

from storage.batching import batches, selected
from storage.errors import ConflictStandsError
from storage.recording import EDITING, WAITING
from storage.records.planned import PendingRow
from storage.schema.planned import EditRequest, Fact, HeldBack
from storage.schema.pulled import Entity
from storage.schema.runs import SyncRun
from storage.scopes import Scope, scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstrumentedAttribute

    from storage.recording import Recording
    from storage.records import Pair
    from storage.records.planned import ChangeRow


def write_held_back(plan: Recording, changes: Sequence[ChangeRow], pairs: Sequence[Pair]) -> None:
    """Open, count again or resolve what waits in the reviewed groups."""
    waiting = {plan.facts[scope(row)]: row for row in changes if row.kind in WAITING}
    edited = {plan.facts[scope(row)]: row for row in changes if row.kind in EDITING}
    opened = _open_rows(plan, pairs)
    for fact, known in opened.items():
        row = waiting.pop(fact, None)
        # A conflict has no value either, and is no vacancy for that.
        waited = known.kind == "quarantine"
        if row is None:
            released = waited and fact in edited and edited[fact].new_value == known.value
            _resolve(plan, known.id, "released" if released else "withdrawn")
        elif row.new_value == known.value and row.kind == known.kind:
            _count_again(plan, known, row)
        else:
            _resolve(plan, known.id, "replaced")
            went = [known.value or ""] if waited else []
            _open(plan, fact, row, previous=[*known.previous_values, *went])
    subjects = {row.subject for row in waiting.values()}
    gone = lately_gone(plan.connection, plan.model_id, subjects, plan.reference_time - plan.flip_memory)
    for fact, row in waiting.items():
        _open(plan, fact, row, previous=sorted(gone[scope(row)]))


def lately_gone(
    connection: Connection, model_id: int, subjects: Iterable[str], since: datetime
) -> dict[Scope, set[str]]:
    """Read the values that stood or waited and went since a moment, by fact ("" for a vacancy).

    What was released has not gone: it may still be owed. It has once the model was taught another value.
    """
    found: dict[Scope, set[str]] = defaultdict(set)
    wanted = sorted(subjects)
    waited = (
        select(
            Fact.subject, Fact.property, Fact.slot, HeldBack.value, HeldBack.old_value, HeldBack.resolution
        )
        .join(Fact, Fact.id == HeldBack.fact_id)
        .where(
            HeldBack.model_id == model_id,
            HeldBack.kind == "quarantine",
            HeldBack.resolved_at.is_not(None),
            HeldBack.last_seen_at >= since,
        )
    )
    for row in selected(connection, waited, Fact.subject, wanted):
        if row.resolution != "released":
            found[scope(row)].add(row.value or "")
        if row.old_value:
            found[scope(row)].add(_stood(row.old_value))
    taught = (
        select(Fact.subject, Fact.property, Fact.slot, EditRequest.value, EditRequest.old_value)
        .join(Fact, Fact.id == EditRequest.fact_id)
        .join(SyncRun, SyncRun.id == EditRequest.run_id)
        .where(
            EditRequest.model_id == model_id, EditRequest.state == "applied", SyncRun.reference_time >= since
        )
        .order_by(EditRequest.run_id)
    )
    stood: dict[Scope, str] = {}
    for row in selected(connection, taught, Fact.subject, wanted):
        here = scope(row)
        if row.old_value:
            found[here].add(_stood(row.old_value))
        if here in stood:
            found[here].add(stood[here])
        stood[here] = _stood(row.value)
    return found


def _stood(value: str | None) -> str:
    """What was taught, as it waits: that nothing holds is a vacancy there."""
    return "" if value in {None, "novalue"} else value


def _open_rows(plan: Recording, pairs: Sequence[Pair]) -> dict[int, Row[Any]]:
    found = {}
    for part in batches(pairs):
        query = (
            select(HeldBack)
            .join(Fact, Fact.id == HeldBack.fact_id)
            .where(
                HeldBack.model_id == plan.model_id,
                HeldBack.resolved_at.is_(None),
                tuple_(Fact.subject, Fact.property).in_(part),
            )
        )
        found.update({row.fact_id: row for row in plan.connection.execute(query)})
    return found


def _resolve(plan: Recording, key: int, resolution: str) -> None:
    plan.counts["released"] += 1
    plan.connection.execute(
        update(HeldBack)
        .where(HeldBack.id == key)
        .values(resolved_at=plan.now, resolution=resolution, last_run_id=plan.run)
    )


def _count_again(plan: Recording, known: Row[Any], row: ChangeRow) -> None:
    # The reference time makes a pull: the same night run twice is one sighting.
    later = plan.reference_time > known.last_seen_at
    plan.connection.execute(
        update(HeldBack)
        .where(HeldBack.id == known.id)
        .values(
            sightings=known.sightings + (1 if later else 0),
            last_seen_at=max(plan.reference_time, known.last_seen_at),
            reason=row.reason,
            label=row.new_label,
            releases_at=row.releases_at,
            sources=[list(source) for source in row.sources],
            last_run_id=plan.run,
        )
    )


def _refused(plan: Recording, row: ChangeRow) -> Row[Any] | None:
    """A person's no to this very change, if that was the word when it last waited: it outlasts other nights.

    It holds for what subject and value were merged into, too. A yes does not outlast them: it was to what
    stood then. A vacancy is that of the value it would take away.
    """
    if row.new_value is None:
        value = and_(HeldBack.value.is_(None), HeldBack.old_value.is_not_distinct_from(row.old_value))
    else:
        value = _is(HeldBack.value, row.new_value)
    last = plan.connection.execute(
        select(HeldBack.decision, HeldBack.decided_by)
        .join(Fact, Fact.id == HeldBack.fact_id)
        .where(
            HeldBack.model_id == plan.model_id,
            Fact.property == row.property,
            _is(Fact.subject, row.subject),
            _is(Fact.slot, row.slot),
            HeldBack.kind == "quarantine",
            HeldBack.resolved_at.is_not(None),
            value,
        )
        .order_by(HeldBack.id.desc())
        .limit(1)
    ).one_or_none()
    return last if last is not None and last.decision == "blocked" else None


def _is(column: InstrumentedAttribute[Any], entity: str) -> ColumnElement[bool]:
    """It is this one, or was merged into it."""
    return or_(column == entity, column.in_(select(Entity.id).where(Entity.redirect_to == entity)))


def _open(plan: Recording, fact: int, row: ChangeRow, *, previous: list[str]) -> None:
    plan.counts["held_back"] += 1
    refused = _refused(plan, row) if row.kind == "quarantine" else None
    plan.connection.execute(
        insert(HeldBack).values(
            model_id=plan.model_id,
            fact_id=fact,
            kind=row.kind,
            reason=row.reason,
            value_kind=row.new_value_kind,
            value=row.new_value,
            label=row.new_label,
            old_value=row.old_value,
            old_label=row.old_label,
            sources=[list(source) for source in row.sources],
            first_seen_at=plan.reference_time,
            last_seen_at=plan.reference_time,
            sightings=1,
            previous_values=previous,
            releases_at=row.releases_at,
            decision=refused.decision if refused is not None else None,
            decided_by=refused.decided_by if refused is not None else None,
            first_run_id=plan.run,
            last_run_id=plan.run,
        )
    )


def decide(connection: Connection, model_id: int, pending_id: int, decision: str, *, by: str) -> bool:
    """Write down a person's decision about something that waits; see `Ledger.decide`.

    Raises:
        ConflictStandsError: If it is a conflict.
    """
    waiting = (HeldBack.id == pending_id, HeldBack.model_id == model_id, HeldBack.resolved_at.is_(None))
    if connection.scalar(select(HeldBack.kind).where(*waiting)) == "conflict":
        raise ConflictStandsError(pending_id)
    changed = connection.execute(update(HeldBack).where(*waiting).values(decision=decision, decided_by=by))
    return changed.rowcount == 1


def pending_rows(
    connection: Connection, model_id: int, subjects: Iterable[str] | None
) -> Iterator[PendingRow]:
    """Read what is held back, for some subjects or for all."""
    query = (
        select(HeldBack, Fact.subject, Fact.property, Fact.slot)
        .join(Fact, Fact.id == HeldBack.fact_id)
        .where(HeldBack.model_id == model_id, HeldBack.resolved_at.is_(None))
        .order_by(Fact.subject, Fact.property, Fact.slot)
    )
    for row in selected(connection, query, Fact.subject, subjects):
        yield PendingRow(
            id=row.id,
            subject=row.subject,
            property=row.property,
            slot=row.slot,
            kind=row.kind,
            reason=row.reason,
            value_kind=row.value_kind,
            value=row.value,
            label=row.label,
            first_seen_at=row.first_seen_at,
            last_seen_at=row.last_seen_at,
            sightings=row.sightings,
            previous_values=tuple(row.previous_values),
            releases_at=row.releases_at,
            decision=row.decision,
        )
