"""What was pulled enters the ledger: set-based, in one transaction, keyed by (statement id, revision).

Rows go into a temporary table and are compared with the ledger in SQL, so a million statements need no
million objects in memory. A statement known with the same content is not touched at all. A statement
missing from a group that was pulled completely was deleted, unless the answer is older than what the ledger
knows already (a lagging replica): stale answers change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, text

from storage import staging
from storage.errors import CursorPastLagError
from storage.records import EntityRow, IngestReport, Pair, StatementRow
from storage.types import Moment, dump

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from storage.crash import OnPoint

_INGEST_LOCK = 0x66616374_696E6765

_STATEMENT: staging.Columns = (
    ("guid", "text"),
    ("subject", "text"),
    ("property", "text"),
    ("value_kind", "text"),
    ("value", "text"),
    ("rank", "text"),
    ("revision", "integer"),
    ("content_hash", "text"),
    ("qualifiers", "doc"),
    ("reference_count", "integer"),
    ("valid_from", "text"),
    ("valid_to", "text"),
)
_ENTITY: staging.Columns = (
    ("id", "text"),
    ("label", "text"),
    ("language", "text"),
    ("revision", "integer"),
    ("modified_at", "moment"),
    ("redirect_to", "text"),
    ("deleted", "flag"),
)
_GROUP: staging.Columns = (("subject", "text"), ("property", "text"))
_KNOWN: staging.Columns = (
    ("id", "integer"),
    ("guid", "text"),
    ("subject", "text"),
    ("property", "text"),
    ("revision", "integer"),
    ("content_hash", "text"),
)
_DIFF: staging.Columns = (
    ("id", "integer"),
    ("old_subject", "text"),
    ("old_property", "text"),
    ("old_revision", "integer"),
    ("guid", "text"),
    ("subject", "text"),
    ("property", "text"),
    ("revision", "integer"),
    ("content_hash", "text"),
)
_DELTA: staging.Columns = (
    ("guid", "text"),
    ("revision", "integer"),
    ("old_id", "integer"),
    ("subject", "text"),
    ("property", "text"),
    ("old_subject", "text"),
    ("old_property", "text"),
    ("stale", "flag"),
)
_GONE: staging.Columns = (("id", "integer"), ("subject", "text"), ("property", "text"))

_TABLES: dict[str, staging.Columns] = {
    "in_statement": _STATEMENT,
    "in_entity": _ENTITY,
    "in_group": _GROUP,
    "in_known": _KNOWN,
    "in_diff": _DIFF,
    "in_low": (("subject", "text"), ("revision", "integer")),
    "in_delta": _DELTA,
    "in_gone": _GONE,
    "in_moved": (("id", "text"),),
}

_NAMES = ", ".join(name for name, _ in _STATEMENT)

# The ledger is visited once a group that was pulled completely; only new statements and those of other groups
# are looked up one by one.
_KNOWN_ROWS = """
SELECT t.id, t.guid, t.subject, t.property, t.revision, t.content_hash
FROM in_group g
JOIN statement t ON t.subject = g.subject AND t.property = g.property AND t.seen_to IS NULL
"""
_FIND_KNOWN = f"INSERT INTO in_known {_KNOWN_ROWS}"

# What the pull and the ledger do not agree on: rows with both sides differ, rows with one side stand there
# alone. PostgreSQL hashes the pull once and writes nothing down of what agrees; SQLite joins by index only,
# and some of its supported versions know no full join.
_DIFFERS = "(t.content_hash <> s.content_hash OR t.subject <> s.subject OR t.property <> s.property)"
_BOTH_SIDES = """
SELECT t.id, t.subject, t.property, t.revision, s.guid, s.subject, s.property, s.revision, s.content_hash
"""
_FIND_DIFF_AT_ONCE = f"""
INSERT INTO in_diff {_BOTH_SIDES} FROM ({_KNOWN_ROWS}) t FULL JOIN in_statement s ON s.guid = t.guid
WHERE t.id IS NULL OR s.guid IS NULL OR {_DIFFERS}
"""
_FIND_DIFF = f"""
INSERT INTO in_diff {_BOTH_SIDES} FROM in_known t LEFT JOIN in_statement s ON s.guid = t.guid
WHERE s.guid IS NULL OR {_DIFFERS}
UNION ALL
SELECT NULL, NULL, NULL, NULL, s.guid, s.subject, s.property, s.revision, s.content_hash
FROM in_statement s WHERE NOT EXISTS (SELECT 1 FROM in_known k WHERE k.guid = s.guid)
"""

# An answer older than the ledger's own revision of the statement is stale; one that brings back a statement
# that a newer revision of its item no longer had, too. Equal revisions are compared by content: the same
# revision read again after a repair of our own reading must be able to correct a row.
_FIND_CHANGED = """
INSERT INTO in_delta
SELECT guid, revision, id, subject, property, old_subject, old_property, revision < old_revision
FROM in_diff WHERE id IS NOT NULL AND guid IS NOT NULL
"""
_FIND_NEW = f"""
INSERT INTO in_delta
SELECT
    s.guid, s.revision, t.id, s.subject, s.property, t.subject, t.property,
    COALESCE(s.revision < t.revision, s.revision < e.revision, :no)
FROM in_diff s
LEFT JOIN statement t ON t.guid = s.guid AND t.seen_to IS NULL
LEFT JOIN entity e ON e.id = s.subject
WHERE s.id IS NULL AND (t.id IS NULL OR {_DIFFERS})
"""

# A probe and its statements may come from two replicas. The item counts as read at the older of the two
# revisions, so that the next probe finds it changed and reads it again.
_LOWER_REVISIONS = """
UPDATE in_entity SET revision = (SELECT l.revision FROM in_low l WHERE l.subject = in_entity.id)
WHERE revision > (SELECT l.revision FROM in_low l WHERE l.subject = in_entity.id)
"""
_FIND_LOW = "INSERT INTO in_low SELECT subject, min(revision) FROM in_statement GROUP BY subject"

# In order of key, as the rows of one item lie together: one visit a page, not one a row.
_CLOSE = """
UPDATE statement SET
    seen_to = CASE WHEN seen_from > :now THEN seen_from ELSE :now END, ending = '{ending}', last_run_id = :run
FROM ({ids}) c
WHERE statement.id = c.id
"""
_CLOSE_CHANGED = _CLOSE.format(
    ending="changed",
    ids="SELECT DISTINCT old_id AS id FROM in_delta WHERE old_id IS NOT NULL AND NOT stale ORDER BY 1",
)

# The newest of several copies wins; the partial unique index turns the others away. In order of guid the
# entries of an item go to one place of the indexes: without it, bulk is paid in random pages.
_INSERT = f"""
INSERT INTO statement ({_NAMES}, seen_from, first_run_id)
SELECT {", ".join(f"s.{name}" for name, _ in _STATEMENT)}, :now, :run
FROM in_delta d JOIN in_statement s ON s.guid = d.guid AND s.revision = d.revision
WHERE NOT d.stale
ORDER BY s.guid, s.revision DESC
ON CONFLICT (guid) WHERE seen_to IS NULL DO NOTHING
"""

_FIND_GONE = """
INSERT INTO in_gone
SELECT d.id, d.old_subject, d.old_property
FROM in_diff d LEFT JOIN in_entity n ON n.id = d.old_subject
WHERE d.guid IS NULL AND (n.revision IS NULL OR n.revision >= d.old_revision)
"""

_CLOSE_GONE = _CLOSE.format(ending="deleted", ids="SELECT id FROM in_gone ORDER BY 1")

# A new label changes prompts (of the subject's facts) and targets (of the facts whose value it is); a merge
# or a deletion changes all facts of the item.
_FIND_RELABELLED = """
INSERT INTO in_moved
SELECT n.id FROM in_entity n JOIN entity e ON e.id = n.id
WHERE (n.label IS NOT NULL AND e.label IS NOT NULL AND n.label <> e.label
       AND (n.revision IS NULL OR e.revision IS NULL OR n.revision >= e.revision))
   OR (n.redirect_to IS NOT NULL AND n.redirect_to IS DISTINCT FROM e.redirect_to)
   OR (n.revision IS NOT NULL AND e.redirect_to IS NOT NULL AND n.redirect_to IS NULL AND n.revision >=
   e.revision) OR (n.deleted AND NOT e.deleted) OR (e.deleted AND NOT n.deleted AND n.revision IS NOT NULL)
"""

_TOUCH = """
INSERT INTO review (model_id, subject, property, marked_at)
SELECT m.id, t.subject, t.property, :now
FROM ({groups}) t, model m
WHERE true
ON CONFLICT (model_id, subject, property) DO NOTHING
"""
_TOUCH_CHANGED = _TOUCH.format(
    groups="""
    SELECT subject, property FROM in_delta WHERE NOT stale
    UNION SELECT old_subject, old_property FROM in_delta WHERE old_id IS NOT NULL AND NOT stale
    UNION SELECT subject, property FROM in_gone
"""
)
_TOUCH_MOVED = _TOUCH.format(
    groups="""
    SELECT s.subject, s.property FROM in_moved v JOIN statement s ON s.subject = v.id AND s.seen_to IS NULL
    UNION SELECT f.subject, f.property FROM in_moved v JOIN fact f ON f.subject = v.id
    UNION SELECT s.subject, s.property FROM in_moved v
        JOIN statement s ON s.value = v.id AND s.seen_to IS NULL AND s.value_kind = 'item'
"""
)

# A row with a revision, a redirect or a deletion was probed and speaks of the item's state; one without is
# a label.
_UPSERT_ENTITY = """
INSERT INTO entity (id, label, language, revision, modified_at, redirect_to, deleted, tracked, pulled_at,
run_id) SELECT n.id, n.label, n.language, n.revision, n.modified_at, n.redirect_to, n.deleted, :no, :now,
:run FROM in_entity n WHERE true ON CONFLICT (id) DO UPDATE SET
    label = CASE WHEN excluded.revision < entity.revision THEN entity.label
                 ELSE COALESCE(excluded.label, entity.label) END,
    language = CASE WHEN excluded.label IS NULL OR excluded.revision < entity.revision THEN entity.language
                    ELSE excluded.language END,
    modified_at = CASE WHEN excluded.revision IS NULL OR excluded.revision < entity.revision
                       THEN entity.modified_at ELSE excluded.modified_at END,
    redirect_to = CASE WHEN excluded.revision IS NULL AND excluded.redirect_to IS NULL THEN entity.redirect_to
                       WHEN excluded.revision < entity.revision THEN entity.redirect_to
                       ELSE excluded.redirect_to END,
    deleted = CASE WHEN excluded.revision IS NULL AND excluded.redirect_to IS NULL AND NOT excluded.deleted
                   THEN entity.deleted ELSE excluded.deleted END,
    revision = CASE WHEN excluded.revision IS NULL OR excluded.revision < entity.revision THEN entity.revision
                    ELSE excluded.revision END,
    pulled_at = excluded.pulled_at,
    run_id = excluded.run_id
"""

_MOVE_CURSOR = """
INSERT INTO source_cursor (source, read_to, lag_at, run_id, updated_at)
VALUES (:source, :read_to, :lag_at, :run, :now)
ON CONFLICT (source) DO UPDATE SET
    read_to = excluded.read_to, lag_at = COALESCE(excluded.lag_at, source_cursor.lag_at),
    run_id = excluded.run_id, updated_at = excluded.updated_at
WHERE source_cursor.read_to < excluded.read_to
"""

_RUN_CURSOR = """
UPDATE sync_run SET source = :source, cursor_to = :read_to,
    cursor_from = COALESCE(cursor_from, (SELECT read_to FROM source_cursor WHERE source = :source))
WHERE id = :run
"""


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
    if connection.dialect.name == "postgresql":
        # Models share the statements: their writers take turns here.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _INGEST_LOCK})
        # A night fits in memory when hashed; the default of 4 MB would write it to disk and read it again.
        connection.exec_driver_sql("SET LOCAL work_mem = '128MB'")
    incoming = _stage(connection, entities, statements, pulled_groups)
    point("ingest.staged")
    report = _merge(connection, run, now, incoming, point)
    if cursor_to is not None:
        bound = {"source": source, "read_to": cursor_to, "lag_at": lag_at, "run": run, "now": now}
        connection.execute(_typed(_RUN_CURSOR), {"source": source, "read_to": cursor_to, "run": run})
        connection.execute(_typed(_MOVE_CURSOR), bound)
    staging.drop(connection, *_TABLES)
    return report


def _stage(
    connection: Connection,
    entities: Iterable[EntityRow],
    statements: Iterable[StatementRow],
    groups: Iterable[Pair],
) -> int:
    for name, columns in _TABLES.items():
        staging.make(connection, name, columns)
    incoming = staging.fill(connection, "in_statement", _STATEMENT, _statement_tuples(statements))
    items = staging.fill(connection, "in_entity", _ENTITY, _entity_tuples(entities))
    staging.fill(connection, "in_group", _GROUP, _unique(groups))
    staging.prepare(connection, "in_statement", "guid")
    staging.prepare(connection, "in_entity", "id")
    if connection.dialect.name == "postgresql":
        staging.prepare(connection, "in_group", "subject")
        connection.execute(text(_FIND_DIFF_AT_ONCE))
        staging.prepare(connection, "in_diff", "guid")
    else:
        connection.execute(text(_FIND_KNOWN))
        staging.prepare(connection, "in_known", "guid")
        connection.execute(text(_FIND_DIFF))
    if items:
        connection.execute(text(_FIND_LOW))
        staging.prepare(connection, "in_low", "subject")
        connection.execute(text(_LOWER_REVISIONS))
    return incoming


def _merge(connection: Connection, run: int, now: datetime, incoming: int, point: OnPoint) -> IngestReport:
    bound = {"now": now, "run": run}
    connection.execute(text(_FIND_CHANGED))
    connection.execute(text(_FIND_NEW), {"no": False})
    stale = int(connection.scalar(text("SELECT count(*) FROM in_delta WHERE stale")) or 0)
    staging.prepare(connection, "in_delta", "guid")
    changed = connection.execute(_typed(_CLOSE_CHANGED), bound).rowcount
    point("ingest.closed")
    written = connection.execute(_typed(_INSERT), bound).rowcount
    point("ingest.inserted")
    connection.execute(text(_FIND_GONE))
    deleted = connection.execute(_typed(_CLOSE_GONE), bound).rowcount
    touched = connection.execute(_typed(_TOUCH_CHANGED), {"now": now}).rowcount
    if connection.execute(text(_FIND_RELABELLED)).rowcount:
        staging.prepare(connection, "in_moved", "id")
        touched += connection.execute(_typed(_TOUCH_MOVED), {"now": now}).rowcount
    connection.execute(_typed(_UPSERT_ENTITY), {**bound, "no": False})
    return IngestReport(
        inserted=written - changed,
        changed=changed,
        deleted=deleted,
        unchanged=incoming - written - stale,
        stale=stale,
        touched=touched,
    )


def _typed(sql: str) -> Any:  # noqa: ANN401  a text clause whose moments are bound as moments
    clause = text(sql)
    names = [name for name in ("now", "read_to", "lag_at") if f":{name}" in sql]
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
            dump(row.qualifiers) if row.qualifiers else "{}",
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
