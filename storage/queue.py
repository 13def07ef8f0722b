"""What is owed: the durable queue of edit requests.

An edit request's identity is (fact, operation, value, templates, statements with revisions, digest of the
checkpoint whose fact it replaces). The revisions are in it so that A→B→A is three wishes, not one; the
replaced checkpoint is in it so that a statement that vanished and came back at its old revision is wished
anew. No surrogate key is in it: a run that crashed and ran again wishes the same as one that never did.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, and_, exists, insert, select, tuple_, update
from sqlalchemy.orm import aliased

from storage.batching import batches
from storage.database import insert_or_ignore
from storage.errors import CheckpointStateError, UnknownStatementError
from storage.facts import held_rows
from storage.records.planned import EditRequestRow
from storage.schema.planned import EditRequest, Fact, RequestSource
from storage.schema.pulled import Statement
from storage.scopes import Scope, scope
from storage.types import dump

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection
    from sqlalchemy.sql import Select

    from storage.recording import Recording
    from storage.records import Pair, Source

_REVIVED = ("superseded", "applied")


def write_requests(
    plan: Recording,
    requests: Sequence[EditRequestRow],
    change_ids: Mapping[int, int],
    pairs: Sequence[Pair],
    *,
    unchanged: Collection[Scope] = (),
) -> None:
    """Queue what is wished now; withdraw pending wishes of the reviewed groups that are wished no more.

    What a rollback undid is not queued again while the statements behind it are the same, whatever else of it
    has changed. A retraction rests on none: it may be made again once something stood in between.

    Args:
        plan: The recording.
        requests: What is wished.
        change_ids: Key of this run's change, by fact.
        pairs: The reviewed groups.
        unchanged: Scopes of facts that the model holds as they stand.
    """
    live = {
        scope(row): row.checkpoint
        for row in held_rows(plan.connection, plan.model_id, {request.subject for request in requests})
    }
    statements = _statement_keys(plan.connection, requests)
    pending = _pending(plan, pairs)
    keys = {scope(row): _identity(row, live.get(scope(row))) for row in requests}
    for wished, (key, identity) in pending.items():
        if keys.get(wished) != identity:
            _supersede(plan, key)
    stands = {*unchanged, *(scope(row) for row in requests if row.op != "retract")}
    undone = _undone(plan, pairs, stands)
    known = _known(plan, keys.values())
    for row in requests:
        if _resting_on(row) in undone[scope(row)]:
            plan.counts["known"] += 1
            continue
        identity = keys[scope(row)]
        found = known.get(identity)
        if found is None:
            change = change_ids.get(plan.facts[scope(row)])
            _queue(plan, row, identity, change, [(statements[guid], guid, rev) for guid, rev in row.sources])
        elif found.state in _REVIVED:
            _revive(plan, found.id, row.subject_label)
        else:
            plan.counts["known"] += 1
            _rename(plan, found, row.subject_label)


def _identity(row: EditRequestRow, replaces: str | None) -> str:
    said = [
        *scope(row),
        row.op,
        row.value_kind,
        row.value,
        row.target,
        row.template_digest or list(row.prompts),
        sorted(list(source) for source in row.sources),
        replaces,
    ]
    return hashlib.sha256(dump(said).encode()).hexdigest()


def _pending(plan: Recording, pairs: Sequence[Pair]) -> dict[Scope, tuple[int, str]]:
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


_RestingOn = tuple[str | None, frozenset["Source"]]


def _resting_on(row: EditRequestRow) -> _RestingOn:
    """The value that comes or leaves, and the statements that say so."""
    return row.old_value if row.op == "retract" else row.value, frozenset(row.sources)


def _undone(
    plan: Recording, pairs: Sequence[Pair], stands: Collection[Scope]
) -> dict[Scope, set[_RestingOn]]:
    """Read what a rollback undid in the reviewed groups, and let go of retractions of what stands again."""
    found: dict[Scope, set[_RestingOn]] = defaultdict(set)
    for part in batches(pairs):
        query = _with_scope().where(
            EditRequest.model_id == plan.model_id,
            EditRequest.state.in_(("rolled_back", "failed")),
            tuple_(Fact.subject, Fact.property).in_(part),
        )
        rows = list(plan.connection.execute(query))
        for row, request in zip(rows, request_rows(plan.connection, rows), strict=True):
            if row.op == "retract" and scope(request) in stands:
                _supersede(plan, row.id)
            elif row.state == "rolled_back":
                found[scope(request)].add(_resting_on(request))
    return found


def _supersede(plan: Recording, key: int) -> None:
    plan.counts["superseded"] += 1
    plan.connection.execute(
        update(EditRequest).where(EditRequest.id == key).values(state="superseded", updated_at=plan.now)
    )


def _known(plan: Recording, identities: Iterable[str]) -> dict[str, Row[Any]]:
    found: dict[str, Row[Any]] = {}
    for part in batches(sorted(identities)):
        query = select(
            EditRequest.id, EditRequest.idem_key, EditRequest.state, EditRequest.subject_label
        ).where(EditRequest.model_id == plan.model_id, EditRequest.idem_key.in_(part))
        found.update({row.idem_key: row for row in plan.connection.execute(query)})
    return found


def _revive(plan: Recording, key: int, subject_label: str) -> None:
    plan.counts["queued"] += 1
    plan.connection.execute(
        update(EditRequest)
        .where(EditRequest.id == key)
        .values(
            state="pending",
            subject_label=subject_label,
            run_id=plan.run,
            checkpoint_id=None,
            updated_at=plan.now,
        )
    )


def _rename(plan: Recording, found: Row[Any], subject_label: str) -> None:
    """Teach what waits under the name that its subject has today; a name is no part of a wish."""
    if found.state == "pending" and found.subject_label != subject_label:
        plan.connection.execute(
            update(EditRequest)
            .where(EditRequest.id == found.id)
            .values(subject_label=subject_label, updated_at=plan.now)
        )


def _queue(
    plan: Recording,
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
            fact_id=plan.facts[scope(row)],
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


def _with_scope() -> Select[Any]:
    """All columns of `edit_request` and the fact's scope, oldest first."""
    return (
        select(EditRequest, Fact.subject, Fact.property, Fact.slot)
        .join(Fact, Fact.id == EditRequest.fact_id)
        .order_by(EditRequest.id)
    )


def request_rows(connection: Connection, rows: Sequence[Row[Any]]) -> list[EditRequestRow]:
    """Read requests with their sources; the rows carry the fact's scope too."""
    behind = sources(connection, (row.id for row in rows))
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
            template_digest=row.template_digest,
            sources=tuple(behind[row.id]),
            id=row.id,
            state=row.state,
            attempts=row.attempts,
            created_at=row.created_at,
        )
        for row in rows
    ]


def sources(connection: Connection, requests: Iterable[int]) -> dict[int, list[Source]]:
    """Read the statements behind edit requests, with their revisions, by request."""
    found: dict[int, list[Source]] = defaultdict(list)
    for part in batches(sorted(set(requests))):
        query = select(RequestSource).where(RequestSource.request_id.in_(part)).order_by(RequestSource.guid)
        for row in connection.execute(query):
            found[row.request_id].append((row.guid, row.revision))
    return found


def owed(connection: Connection, model_id: int) -> list[EditRequestRow]:
    """Read the pending requests, oldest first."""
    query = _with_scope().where(EditRequest.model_id == model_id, EditRequest.state == "pending")
    return request_rows(connection, list(connection.execute(query)))


def claimed(connection: Connection, checkpoint: int) -> list[EditRequestRow]:
    """Read the requests that an open checkpoint carries, oldest first."""
    query = _with_scope().where(EditRequest.checkpoint_id == checkpoint, EditRequest.state == "claimed")
    return request_rows(connection, list(connection.execute(query)))


def claim(
    connection: Connection, model: int, checkpoint: int, request_ids: Collection[int], now: datetime
) -> list[Row[Any]]:
    """Claim pending requests for a checkpoint; gives them as `request_rows` reads them, oldest first.

    Raises:
        CheckpointStateError: If a request is not pending.
    """
    rows: list[Row[Any]] = []
    for part in batches(sorted(request_ids)):
        mine = and_(EditRequest.model_id == model, EditRequest.id.in_(part))
        query = _with_scope().where(mine, EditRequest.state == "pending")
        found = list(connection.execute(query))
        if len(found) != len(part):
            missing = sorted(set(part) - {row.id for row in found})
            raise CheckpointStateError(
                checkpoint, f"asking for requests {missing} that are not pending", "begun"
            )
        connection.execute(
            update(EditRequest).where(mine).values(state="claimed", checkpoint_id=checkpoint, updated_at=now)
        )
        rows.extend(found)
    return rows


def requeue(connection: Connection, checkpoint: int, *, now: datetime, attempt: int) -> int:
    """Give a checkpoint's claims back to the queue; a claim that a newer wish overtook gives way to it.

    Returns:
        How many requests are pending again.
    """
    newer = aliased(EditRequest)
    carried = and_(EditRequest.checkpoint_id == checkpoint, EditRequest.state == "claimed")
    overtaken = exists().where(
        newer.model_id == EditRequest.model_id, newer.fact_id == EditRequest.fact_id, newer.state == "pending"
    )
    connection.execute(
        update(EditRequest).where(carried, overtaken).values(state="superseded", updated_at=now)
    )
    done = connection.execute(
        update(EditRequest)
        .where(carried)
        .values(state="pending", checkpoint_id=None, attempts=EditRequest.attempts + attempt, updated_at=now)
    )
    return done.rowcount
