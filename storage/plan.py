"""A plan enters the ledger: changes with reasons, desired facts, what is held back, what is owed.

One transaction a call, and a call may cover only part of the groups: a large plan is recorded in batches.
Recording the same batch twice changes nothing.

An edit request's identity is (fact, operation, value, templates, statements with revisions, digest of the
checkpoint whose fact it replaces). The revisions are in it so that A→B→A is three wishes, not one; the
replaced checkpoint is in it so that a statement that vanished and came back at its old revision is wished
anew. No surrogate key is in it: a run that crashed and ran again wishes the same as one that never did.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, delete, exists, insert, select, tuple_, update
from sqlalchemy.orm import aliased

from storage.batching import batches
from storage.database import insert_or_ignore
from storage.errors import UnknownStatementError
from storage.facts import held_rows
from storage.records import ChangeRow, EditRequestRow, Pair, PlanReport, Source
from storage.schema import (
    Change,
    DesiredFact,
    EditRequest,
    Fact,
    HeldBack,
    RequestSource,
    Review,
    Statement,
    SyncRun,
)
from storage.types import dump

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

Scope = tuple[str, str, str]

_FLIP_MEMORY = timedelta(days=30)
_WAITING = ("conflict", "quarantine")
_EDITING = ("insert", "replace", "retract", "suppress", "vacate")
_REVIVED = ("superseded", "rolled_back", "applied")


@dataclass(slots=True)
class _Plan:
    """One call's work in progress."""

    connection: Connection
    model_id: int
    run: int
    now: datetime
    reference_time: datetime
    facts: dict[Scope, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


def record_plan(
    connection: Connection,
    model_id: int,
    run: int,
    *,
    now: datetime,
    changes: Sequence[ChangeRow],
    requests: Sequence[EditRequestRow],
    reviewed: Iterable[Pair],
    point: Callable[[str], None],
) -> PlanReport:
    """Record a plan, or a part of one; see the module and `Ledger.record_plan`.

    Raises:
        UnknownStatementError: If a request rests on a statement that was never ingested.
    """
    reference_time = connection.scalars(select(SyncRun.reference_time).where(SyncRun.id == run)).one()
    plan = _Plan(connection, model_id, run, now, reference_time)
    spoken_of = [*map(_scope, changes), *map(_scope, requests)]
    pairs = sorted({*reviewed, *((subject, prop) for subject, prop, _ in spoken_of)})
    scopes = {*(_scope(row) for row in changes if row.kind != "unchanged"), *map(_scope, requests)}
    plan.facts = ensure_facts(connection, scopes)
    change_ids = _write_changes(plan, changes)
    _write_desired(plan, changes)
    _write_held_back(plan, changes, pairs)
    point("record_plan.changes")
    _write_requests(plan, requests, change_ids, pairs)
    point("record_plan.requests")
    for part in batches(pairs):
        connection.execute(
            delete(Review).where(
                Review.model_id == model_id, tuple_(Review.subject, Review.property).in_(part)
            )
        )
    return PlanReport(
        changes=dict(Counter(row.kind for row in changes)),
        queued=plan.counts["queued"],
        known=plan.counts["known"],
        superseded=plan.counts["superseded"],
        held_back=plan.counts["held_back"],
        released=plan.counts["released"],
    )


def _scope(row: ChangeRow | EditRequestRow) -> Scope:
    return row.subject, row.property, row.slot


def ensure_facts(connection: Connection, scopes: Iterable[Scope]) -> dict[Scope, int]:
    """Give every scope its fact, and the facts' keys."""
    ordered = sorted(scopes)
    if ordered:
        connection.execute(
            insert_or_ignore(connection, Fact),
            [{"subject": subject, "property": prop, "slot": slot} for subject, prop, slot in ordered],
        )
    return fact_ids(connection, ordered)


def fact_ids(connection: Connection, scopes: Iterable[Scope]) -> dict[Scope, int]:
    """Find the keys of the facts that exist among these scopes."""
    found = {}
    for part in batches(scopes, 200):
        query = select(Fact).where(tuple_(Fact.subject, Fact.property, Fact.slot).in_(part))
        for row in connection.execute(query):
            found[row.subject, row.property, row.slot] = row.id
    return found


def _write_changes(plan: _Plan, changes: Sequence[ChangeRow]) -> dict[int, int]:
    """Write the changes that are not `unchanged`.

    Returns:
        Key of this run's change, by fact.
    """
    rows: list[dict[str, Any]] = [
        {
            "model_id": plan.model_id,
            "run_id": plan.run,
            "fact_id": plan.facts[_scope(row)],
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


def _write_desired(plan: _Plan, changes: Sequence[ChangeRow]) -> None:
    """Close and open desired facts; what is held back is not desired yet, what conflicts stays as it was."""
    wanted = {
        plan.facts[_scope(row)]: row
        for row in changes
        if row.kind in {*_EDITING, "relabel"} and _scope(row) in plan.facts
    }
    current: dict[int, Row[Any]] = {}
    for part in batches(sorted(wanted)):
        query = select(DesiredFact).where(
            DesiredFact.model_id == plan.model_id,
            DesiredFact.fact_id.in_(part),
            DesiredFact.known_to.is_(None),
        )
        current.update({row.fact_id: row for row in plan.connection.execute(query)})
    closing, opening = [], []
    for fact, row in wanted.items():
        known = current.get(fact)
        if known is not None and (known.value, known.label, known.valid_from, known.valid_to) == (
            row.new_value,
            row.new_label,
            row.valid_from,
            row.valid_to,
        ):
            continue
        if known is not None:
            closing.append({"key": known.id, "until": max(plan.now, known.known_from)})
        if row.new_value is not None:
            opening.append(
                {
                    "model_id": plan.model_id,
                    "fact_id": fact,
                    "value_kind": row.new_value_kind,
                    "value": row.new_value,
                    "label": row.new_label,
                    "valid_from": row.valid_from,
                    "valid_to": row.valid_to,
                    "known_from": plan.now,
                    "run_id": plan.run,
                }
            )
    for entry in closing:
        plan.connection.execute(
            update(DesiredFact).where(DesiredFact.id == entry["key"]).values(known_to=entry["until"])
        )
    if opening:
        plan.connection.execute(insert(DesiredFact), opening)


def _write_held_back(plan: _Plan, changes: Sequence[ChangeRow], pairs: Sequence[Pair]) -> None:
    """Open, count again or resolve what waits in the reviewed groups."""
    waiting = {plan.facts[_scope(row)]: row for row in changes if row.kind in _WAITING}
    edited = {plan.facts[_scope(row)]: row for row in changes if row.kind in _EDITING}
    opened = _open_rows(plan, pairs)
    for fact, known in opened.items():
        row = waiting.pop(fact, None)
        if row is None:
            released = fact in edited and edited[fact].new_value == known.value
            _resolve(plan, known.id, "released" if released else "withdrawn")
        elif row.new_value == known.value and row.kind == known.kind:
            _count_again(plan, known, row)
        else:
            _resolve(plan, known.id, "replaced")
            _open(plan, fact, row, previous=[*known.previous_values, known.value or ""])
    for fact, row in waiting.items():
        _open(plan, fact, row, previous=_came_and_went(plan, fact))


def _came_and_went(plan: _Plan, fact: int) -> list[str]:
    """Values that waited for a fact lately, and those they meant to replace: one that returns is a flip."""
    rows = plan.connection.execute(
        select(HeldBack.value, HeldBack.old_value).where(
            HeldBack.model_id == plan.model_id,
            HeldBack.fact_id == fact,
            HeldBack.kind == "quarantine",
            HeldBack.resolved_at.is_not(None),
            HeldBack.last_seen_at >= plan.reference_time - _FLIP_MEMORY,
        )
    ).all()
    return sorted({row.value or "" for row in rows} | {row.old_value for row in rows if row.old_value})


def _open_rows(plan: _Plan, pairs: Sequence[Pair]) -> dict[int, Row[Any]]:
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


def _resolve(plan: _Plan, key: int, resolution: str) -> None:
    plan.counts["released"] += 1
    plan.connection.execute(
        update(HeldBack)
        .where(HeldBack.id == key)
        .values(resolved_at=plan.now, resolution=resolution, last_run_id=plan.run)
    )


def _count_again(plan: _Plan, known: Row[Any], row: ChangeRow) -> None:
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


def _open(plan: _Plan, fact: int, row: ChangeRow, *, previous: list[str]) -> None:
    plan.counts["held_back"] += 1
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
            first_run_id=plan.run,
            last_run_id=plan.run,
        )
    )


def _write_requests(
    plan: _Plan, requests: Sequence[EditRequestRow], change_ids: Mapping[int, int], pairs: Sequence[Pair]
) -> None:
    """Queue what is wished now; withdraw pending wishes of the reviewed groups that are wished no more."""
    live = {
        _scope_of(row): row.checkpoint
        for row in held_rows(plan.connection, plan.model_id, {request.subject for request in requests})
    }
    statements = _statement_keys(plan.connection, requests)
    pending = _pending(plan, pairs)
    keys = {_scope(row): _identity(row, live.get(_scope(row))) for row in requests}
    for scope, (key, identity) in pending.items():
        if keys.get(scope) != identity:
            _supersede(plan, key)
    known = _known(plan, keys.values())
    for row in requests:
        identity = keys[_scope(row)]
        found = known.get(identity)
        if found is None:
            change = change_ids.get(plan.facts[_scope(row)])
            _queue(plan, row, identity, change, [(statements[guid], guid, rev) for guid, rev in row.sources])
        elif found.state in _REVIVED:
            _revive(plan, found.id)
        else:
            plan.counts["known"] += 1


def _scope_of(row: Any) -> Scope:  # noqa: ANN401  any record with a scope
    return row.subject, row.property, row.slot


def _identity(row: EditRequestRow, replaces: str | None) -> str:
    said = [
        *_scope(row),
        row.op,
        row.value_kind,
        row.value,
        row.target,
        row.template_digest or list(row.prompts),
        sorted(list(source) for source in row.sources),
        replaces,
    ]
    return hashlib.sha256(dump(said).encode()).hexdigest()


def _pending(plan: _Plan, pairs: Sequence[Pair]) -> dict[Scope, tuple[int, str]]:
    found = {}
    for part in batches(pairs):
        query = (
            select(EditRequest.id, EditRequest.idem_key, Fact.subject, Fact.property, Fact.slot)
            .join(Fact, Fact.id == EditRequest.fact_id)
            .where(
                EditRequest.model_id == plan.model_id,
                EditRequest.state == "pending",
                tuple_(Fact.subject, Fact.property).in_(part),
            )
        )
        for row in plan.connection.execute(query):
            found[row.subject, row.property, row.slot] = (row.id, row.idem_key)
    return found


def _supersede(plan: _Plan, key: int) -> None:
    plan.counts["superseded"] += 1
    plan.connection.execute(
        update(EditRequest).where(EditRequest.id == key).values(state="superseded", updated_at=plan.now)
    )


def _known(plan: _Plan, identities: Iterable[str]) -> dict[str, Row[Any]]:
    found: dict[str, Row[Any]] = {}
    for part in batches(sorted(identities)):
        query = select(EditRequest.id, EditRequest.idem_key, EditRequest.state).where(
            EditRequest.model_id == plan.model_id, EditRequest.idem_key.in_(part)
        )
        found.update({row.idem_key: row for row in plan.connection.execute(query)})
    return found


def _revive(plan: _Plan, key: int) -> None:
    plan.counts["queued"] += 1
    plan.connection.execute(
        update(EditRequest)
        .where(EditRequest.id == key)
        .values(state="pending", run_id=plan.run, checkpoint_id=None, updated_at=plan.now)
    )


def _queue(
    plan: _Plan,
    row: EditRequestRow,
    identity: str,
    change: int | None,
    sources: Sequence[tuple[int, str, int]],
) -> None:
    plan.counts["queued"] += 1
    key = plan.connection.execute(
        insert(EditRequest)
        .values(
            model_id=plan.model_id,
            fact_id=plan.facts[_scope(row)],
            run_id=plan.run,
            change_id=change,
            idem_key=identity,
            op=row.op,
            state="pending",
            attempts=0,
            subject_label=row.subject_label,
            target=row.target,
            prompts=list(row.prompts),
            heldback=list(row.heldback),
            value_kind=row.value_kind,
            value=row.value,
            old_value=row.old_value,
            old_label=row.old_label,
            valid_from=row.valid_from,
            valid_to=row.valid_to,
            template_digest=row.template_digest,
            created_at=plan.now,
            updated_at=plan.now,
        )
        .returning(EditRequest.id)
    ).scalar_one()
    if sources:
        plan.connection.execute(
            insert_or_ignore(plan.connection, RequestSource),
            [
                {"request_id": key, "statement_id": sid, "guid": guid, "revision": rev}
                for sid, guid, rev in sources
            ],
        )


def _statement_keys(connection: Connection, requests: Sequence[EditRequestRow]) -> dict[str, int]:
    """Find the version of each source statement: the one that stands, or else the last that did."""
    wanted = sorted({guid for row in requests for guid, _ in row.sources})
    found: dict[str, int] = {}
    # Two questions, because two partial indexes answer them.
    for part in batches(wanted):
        query = select(Statement.guid, Statement.id).where(Statement.guid.in_(part)).order_by(Statement.id)
        closed = connection.execute(query.where(Statement.seen_to.is_not(None)))
        found.update({row.guid: row.id for row in closed})
        standing = connection.execute(query.where(Statement.seen_to.is_(None)))
        found.update({row.guid: row.id for row in standing})
    for guid in wanted:
        if guid not in found:
            raise UnknownStatementError(guid)
    return found


def request_rows(connection: Connection, rows: Sequence[Row[Any]]) -> list[EditRequestRow]:
    """Read requests with their sources; the rows carry all columns of `edit_request` and the fact's scope."""
    sources: dict[int, list[Source]] = {row.id: [] for row in rows}
    for part in batches(sources):
        query = select(RequestSource).where(RequestSource.request_id.in_(part)).order_by(RequestSource.guid)
        for source in connection.execute(query):
            sources[source.request_id].append((source.guid, source.revision))
    return [
        EditRequestRow(
            subject=row.subject,
            property=row.property,
            slot=row.slot,
            op=row.op,
            subject_label=row.subject_label,
            target=row.target,
            prompts=tuple(row.prompts),
            heldback=tuple(row.heldback),
            value_kind=row.value_kind,
            value=row.value,
            old_value=row.old_value,
            old_label=row.old_label,
            valid_from=row.valid_from,
            valid_to=row.valid_to,
            template_digest=row.template_digest,
            sources=tuple(sources[row.id]),
            id=row.id,
            state=row.state,
            attempts=row.attempts,
            created_at=row.created_at,
        )
        for row in rows
    ]


def owed(connection: Connection, model_id: int, limit: int | None) -> list[EditRequestRow]:
    """Read the pending requests, oldest first."""
    query = (
        select(EditRequest, Fact.subject, Fact.property, Fact.slot)
        .join(Fact, Fact.id == EditRequest.fact_id)
        .where(EditRequest.model_id == model_id, EditRequest.state == "pending")
        .order_by(EditRequest.id)
        .limit(limit)
    )
    return request_rows(connection, list(connection.execute(query)))


def claimed(connection: Connection, checkpoint: int) -> list[EditRequestRow]:
    """Read the requests that an open checkpoint carries, oldest first."""
    query = (
        select(EditRequest, Fact.subject, Fact.property, Fact.slot)
        .join(Fact, Fact.id == EditRequest.fact_id)
        .where(EditRequest.checkpoint_id == checkpoint, EditRequest.state == "claimed")
        .order_by(EditRequest.id)
    )
    return request_rows(connection, list(connection.execute(query)))


def retry(
    connection: Connection, model_id: int, request_ids: Collection[int] | None, *, now: datetime
) -> int:
    """Put failed requests back into the queue.

    Args:
        connection: A writing transaction.
        model_id: The model.
        request_ids: Which, or all.
        now: The time.

    Returns:
        How many are pending again.
    """
    newer = aliased(EditRequest)
    failed = (
        EditRequest.model_id == model_id,
        EditRequest.state == "failed",
        ~exists().where(
            newer.model_id == model_id, newer.fact_id == EditRequest.fact_id, newer.id > EditRequest.id
        ),
    )
    statement = update(EditRequest).where(*failed).values(state="pending", checkpoint_id=None, updated_at=now)
    if request_ids is None:
        return connection.execute(statement).rowcount
    return sum(
        connection.execute(statement.where(EditRequest.id.in_(part))).rowcount
        for part in batches(sorted(request_ids))
    )
