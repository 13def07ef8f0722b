"""What was pulled enters the ledger: set-based, in one transaction, keyed by (statement id, revision).

Rows go into a temporary table and are compared with the ledger in SQL, so a million statements need no
million objects in memory. A statement known with the same content is not touched at all. A statement
missing from a group that was pulled completely was deleted, unless the answer is older than what the ledger
knows already (a lagging replica): stale answers change nothing. The statements are in `ingest_sql`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import bindparam, text, update

from storage import ingest_sql as sql
from storage import staging
from storage.batching import batches
from storage.database import insert_or_ignore
from storage.errors import CursorPastLagError
from storage.records.pulled import EntityRow, IngestReport, StatementRow
from storage.schema.pulled import Entity
from storage.types import Moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from storage.crash import OnPoint
    from storage.records import Pair

_INGEST_LOCK = 0x66616374_696E6765


def ingest(
    connection: Connection,
    run: int,
    *,
    now: datetime,
    source: str,
    cursor_to: datetime | None,
    lag_at: datetime | None,
    entities: Iterable[EntityRow],
    statements: Iterable[StatementRow],
    pulled_groups: Iterable[Pair],
    point: OnPoint,
) -> IngestReport:
    """Store what was pulled; see the module and `Ledger.ingest`.

    Raises:
        CursorPastLagError: If the cursor would pass the source's own time.
    """
    if cursor_to is not None and lag_at is not None and cursor_to > lag_at:
        raise CursorPastLagError(source, cursor_to, lag_at)
    take_turn(connection)
    if connection.dialect.name == "postgresql":
        # A night fits in memory when hashed; the default of 4 MB would write it to disk and read it again.
        connection.exec_driver_sql("SET LOCAL work_mem = '128MB'")
    incoming = _stage(connection, entities, statements, pulled_groups)
    point("ingest.staged")
    report = _merge(connection, run, now, incoming, point)
    if cursor_to is not None:
        bound = {"source": source, "read_to": cursor_to, "lag_at": lag_at, "run": run, "now": now}
        connection.execute(_typed(sql.RUN_CURSOR), {"source": source, "read_to": cursor_to, "run": run})
        connection.execute(_typed(sql.MOVE_CURSOR), bound)
    staging.drop(connection, *sql.TABLES)
    return report


def take_turn(connection: Connection) -> None:
    """Wait until no other writer ingests: the models share the statements and mark each other's reviews."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _INGEST_LOCK})


def _stage(
    connection: Connection,
    entities: Iterable[EntityRow],
    statements: Iterable[StatementRow],
    groups: Iterable[Pair],
) -> int:
    for name, columns in sql.TABLES.items():
        staging.make(connection, name, columns)
    incoming = staging.fill(connection, "in_statement", sql.STATEMENT, _statement_tuples(statements))
    items = staging.fill(connection, "in_entity", sql.ENTITY, _entity_tuples(entities))
    staging.fill(connection, "in_group", sql.GROUP, _unique(groups))
    staging.prepare(connection, "in_statement", "guid")
    staging.prepare(connection, "in_entity", "id")
    if connection.dialect.name == "postgresql":
        staging.prepare(connection, "in_group", "subject")
        connection.execute(text(sql.FIND_DIFF_AT_ONCE))
        staging.prepare(connection, "in_diff", "guid")
    else:
        connection.execute(text(sql.FIND_KNOWN))
        staging.prepare(connection, "in_known", "guid")
        connection.execute(text(sql.FIND_DIFF))
    if items:
        connection.execute(text(sql.FIND_LOW))
        staging.prepare(connection, "in_low", "subject")
        connection.execute(text(sql.LOWER_REVISIONS))
    return incoming


def _merge(connection: Connection, run: int, now: datetime, incoming: int, point: OnPoint) -> IngestReport:
    bound = {"now": now, "run": run}
    connection.execute(text(sql.FIND_CHANGED), {"no": False})
    connection.execute(text(sql.FIND_NEW), {"no": False})
    stale = int(connection.scalar(text("SELECT count(*) FROM in_delta WHERE stale")) or 0)
    changed = connection.execute(_typed(sql.CLOSE_CHANGED), bound).rowcount
    point("ingest.closed")
    written = connection.execute(_typed(sql.INSERT), bound).rowcount
    point("ingest.inserted")
    connection.execute(text(sql.FIND_GONE))
    deleted = connection.execute(_typed(sql.CLOSE_GONE), bound).rowcount
    touched = connection.execute(_typed(sql.TOUCH_CHANGED), {"now": now}).rowcount
    if connection.execute(text(sql.FIND_RELABELLED)).rowcount:
        staging.prepare(connection, "in_moved", "id")
        touched += connection.execute(_typed(sql.TOUCH_MOVED), {"now": now}).rowcount
    connection.execute(_typed(sql.UPSERT_ENTITY), {**bound, "no": False})
    connection.execute(text(sql.UNNAME))
    return IngestReport(
        inserted=written - changed,
        changed=changed,
        deleted=deleted,
        unchanged=incoming - written - stale,
        stale=stale,
        touched=touched,
    )


def track(connection: Connection, subjects: Sequence[str]) -> int:
    """Follow items from now on; gives how many were not followed before."""
    added = 0
    for part in batches(subjects):
        connection.execute(
            insert_or_ignore(connection, Entity),
            [{"id": subject, "deleted": False, "tracked": False} for subject in part],
        )
        added += connection.execute(
            update(Entity).where(Entity.id.in_(part), ~Entity.tracked).values(tracked=True)
        ).rowcount
    return added


def _typed(statement: str) -> Any:  # noqa: ANN401  a text clause whose moments are bound as moments
    clause = text(statement)
    names = [name for name in ("now", "read_to", "lag_at") if f":{name}" in statement]
    return clause.bindparams(*(bindparam(name, type_=Moment()) for name in names))


def _statement_tuples(rows: Iterable[StatementRow]) -> Iterator[tuple[Any, ...]]:
    for row in rows:
        yield (
            row.id,
            row.subject,
            row.property,
            row.value_kind,
            row.value,
            row.rank,
            row.revision,
            row.content_hash,
            # Of texts, whole numbers and nulls the same text as `types.dump`, in a tenth of its time.
            orjson.dumps(row.qualifiers, option=orjson.OPT_SORT_KEYS).decode(),
            row.reference_count,
            row.valid_from,
            row.valid_to,
        )


def _entity_tuples(rows: Iterable[EntityRow]) -> Iterator[tuple[Any, ...]]:
    # One row an item: probes and labels of one pull may speak of the same item one after the other.
    merged: dict[str, EntityRow] = {}
    for row in rows:
        known = merged.get(row.id)
        merged[row.id] = row if known is None else _joined(known, row)
    for row in merged.values():
        yield (row.id, row.label, row.language, row.revision, row.modified_at, row.redirect_to, row.deleted)


def _joined(one: EntityRow, other: EntityRow) -> EntityRow:
    probed = other if other.revision is not None or other.redirect_to or other.deleted else one
    named = other if other.label is not None else one
    return EntityRow(
        one.id,
        named.label,
        named.language,
        probed.revision,
        probed.modified_at,
        probed.redirect_to,
        probed.deleted,
    )


def _unique(pairs: Iterable[Pair]) -> Iterator[Pair]:
    yield from dict.fromkeys(pairs)
