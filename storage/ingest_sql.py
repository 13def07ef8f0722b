"""The SQL of an ingest: its temporary tables, and the statements in the order in which `ingest` runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage import staging

STATEMENT: staging.Columns = (
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
ENTITY: staging.Columns = (
    ("id", "text"),
    ("label", "text"),
    ("language", "text"),
    ("revision", "integer"),
    ("modified_at", "moment"),
    ("redirect_to", "text"),
    ("deleted", "flag"),
)
GROUP: staging.Columns = (("subject", "text"), ("property", "text"))
_KNOWN: staging.Columns = (
    ("id", "integer"),
    ("guid", "text"),
    ("subject", "text"),
    ("property", "text"),
    ("revision", "integer"),
    ("content_hash", "text"),
)
_OLD: staging.Columns = (
    ("old_id", "integer"),
    ("old_subject", "text"),
    ("old_property", "text"),
    ("old_revision", "integer"),
)
_GONE: staging.Columns = (("id", "integer"), ("subject", "text"), ("property", "text"))

TABLES: dict[str, staging.Columns] = {
    "in_statement": STATEMENT,
    "in_entity": ENTITY,
    "in_group": GROUP,
    "in_known": _KNOWN,
    "in_diff": (*_OLD, *STATEMENT),
    "in_low": (("subject", "text"), ("revision", "integer")),
    "in_delta": (*_OLD, *STATEMENT, ("stale", "flag")),
    "in_gone": _GONE,
    "in_moved": (("id", "text"),),
}

_NAMES = ", ".join(name for name, _ in STATEMENT)
_INCOMING = ", ".join(f"s.{name}" for name, _ in STATEMENT)

# The ledger is visited once a group that was pulled completely; only new statements and those of other groups
# are looked up one by one.
_KNOWN_ROWS = """
SELECT t.id, t.guid, t.subject, t.property, t.revision, t.content_hash
FROM in_group g
JOIN statement t ON t.subject = g.subject AND t.property = g.property AND t.seen_to IS NULL
"""
FIND_KNOWN = f"INSERT INTO in_known {_KNOWN_ROWS}"

# What the pull and the ledger do not agree on: rows with both sides differ, rows with one side stand there
# alone. PostgreSQL hashes the pull once and writes nothing down of what agrees; SQLite joins by index only,
# and some of its supported versions know no full join.
_DIFFERS = "(t.content_hash <> s.content_hash OR t.subject <> s.subject OR t.property <> s.property)"
_BOTH_SIDES = f"SELECT t.id, t.subject, t.property, t.revision, {_INCOMING}"
FIND_DIFF_AT_ONCE = f"""
INSERT INTO in_diff {_BOTH_SIDES} FROM ({_KNOWN_ROWS}) t FULL JOIN in_statement s ON s.guid = t.guid
WHERE t.id IS NULL OR s.guid IS NULL OR {_DIFFERS}
"""
FIND_DIFF = f"""
INSERT INTO in_diff {_BOTH_SIDES} FROM in_known t LEFT JOIN in_statement s ON s.guid = t.guid
WHERE s.guid IS NULL OR {_DIFFERS}
UNION ALL
SELECT NULL, NULL, NULL, NULL, {_INCOMING}
FROM in_statement s WHERE NOT EXISTS (SELECT 1 FROM in_known k WHERE k.guid = s.guid)
"""

# A probe and its statements may come from two replicas. The item counts as read at the older of the two
# revisions, so that the next probe finds it changed and reads it again.
FIND_LOW = "INSERT INTO in_low SELECT subject, min(revision) FROM in_statement GROUP BY subject"
LOWER_REVISIONS = """
UPDATE in_entity SET revision = (SELECT l.revision FROM in_low l WHERE l.subject = in_entity.id)
WHERE revision > (SELECT l.revision FROM in_low l WHERE l.subject = in_entity.id)
"""

# An answer older than the ledger's own revision of the statement is stale; one that brings back a statement
# that a newer revision of its item no longer had, too. Equal revisions are compared by content: the same
# revision read again after a repair of our own reading must be able to correct a row.
FIND_CHANGED = """
INSERT INTO in_delta SELECT s.*, s.revision < s.old_revision OR COALESCE(s.revision < e.revision, :no)
FROM in_diff s LEFT JOIN entity e ON e.id = s.subject
WHERE s.old_id IS NOT NULL AND s.guid IS NOT NULL
"""
FIND_NEW = f"""
INSERT INTO in_delta {_BOTH_SIDES}, COALESCE(s.revision < t.revision, s.revision < e.revision, :no)
FROM in_diff s
LEFT JOIN statement t ON t.guid = s.guid AND t.seen_to IS NULL
LEFT JOIN entity e ON e.id = s.subject
WHERE s.old_id IS NULL AND (t.id IS NULL OR {_DIFFERS})
"""

# In order of key, as the rows of one item lie together: one visit a page, not one a row.
_CLOSE = """
UPDATE statement SET
    seen_to = CASE WHEN seen_from > :now THEN seen_from ELSE :now END, ending = '{ending}', last_run_id = :run
FROM ({ids}) c
WHERE statement.id = c.id
"""
CLOSE_CHANGED = _CLOSE.format(
    ending="changed",
    ids="SELECT DISTINCT old_id AS id FROM in_delta WHERE old_id IS NOT NULL AND NOT stale ORDER BY 1",
)

# The newest of several copies wins. In order of guid the entries of an item go to one place of the indexes:
# without it, bulk is paid in random pages.
INSERT = f"""
INSERT INTO statement ({_NAMES}, seen_from, first_run_id)
SELECT {_NAMES}, :now, :run
FROM (
    SELECT {_NAMES}, row_number() OVER (PARTITION BY guid ORDER BY revision DESC) AS copy
    FROM in_delta WHERE NOT stale
) d
WHERE copy = 1
ORDER BY guid
"""

FIND_GONE = """
INSERT INTO in_gone
SELECT d.old_id, d.old_subject, d.old_property
FROM in_diff d
LEFT JOIN in_entity n ON n.id = d.old_subject
LEFT JOIN entity e ON e.id = d.old_subject
WHERE d.guid IS NULL AND (n.revision IS NULL OR n.revision >= COALESCE(e.revision, d.old_revision))
"""

CLOSE_GONE = _CLOSE.format(ending="deleted", ids="SELECT id FROM in_gone ORDER BY 1")

# A mark that stands already is counted up: a plan that read the group before this news must not clear it.
_TOUCH = """
INSERT INTO review (model_id, subject, property, marked_at)
SELECT m.id, t.subject, t.property, :now
FROM ({groups}) t, model m
ORDER BY m.id, t.subject, t.property
ON CONFLICT (model_id, subject, property)
DO UPDATE SET marks = review.marks + 1, marked_at = excluded.marked_at
"""
TOUCH_CHANGED = _TOUCH.format(
    groups="""
    SELECT subject, property FROM in_delta WHERE NOT stale
    UNION SELECT old_subject, old_property FROM in_delta WHERE old_id IS NOT NULL AND NOT stale
    UNION SELECT subject, property FROM in_gone
"""
)

# A new label changes prompts (of the subject's facts) and targets (of the facts whose value it is); a merge
# or a deletion changes all facts of the item.
FIND_RELABELLED = """
INSERT INTO in_moved
SELECT n.id FROM in_entity n JOIN entity e ON e.id = n.id
WHERE (n.label IS NOT NULL AND e.label IS NOT NULL AND n.label <> e.label
       AND (n.revision IS NULL OR e.revision IS NULL OR n.revision >= e.revision))
   OR (n.redirect_to IS NOT NULL AND n.redirect_to IS DISTINCT FROM e.redirect_to)
   OR (n.revision IS NOT NULL AND e.redirect_to IS NOT NULL AND n.redirect_to IS NULL AND n.revision >=
   e.revision) OR (n.deleted AND NOT e.deleted) OR (e.deleted AND NOT n.deleted AND n.revision IS NOT NULL)
"""

TOUCH_MOVED = _TOUCH.format(
    groups="""
    SELECT s.subject, s.property FROM in_moved v JOIN statement s ON s.subject = v.id AND s.seen_to IS NULL
    UNION SELECT f.subject, f.property FROM in_moved v JOIN fact f ON f.subject = v.id
    UNION SELECT s.subject, s.property FROM in_moved v
        JOIN statement s ON s.value = v.id AND s.seen_to IS NULL AND s.value_kind = 'item'
"""
)

# A row with a revision, a redirect or a deletion was probed and speaks of the item's state; one without is
# a label.
UPSERT_ENTITY = """
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

# An empty label says that the item has none any more: a missing one, that nobody asked.
UNNAME = """
UPDATE entity SET label = NULL, language = NULL WHERE label = '' AND id IN (SELECT id FROM in_entity)
"""

RUN_CURSOR = """
UPDATE sync_run SET source = :source, cursor_to = :read_to,
    cursor_from = COALESCE(cursor_from, (SELECT read_to FROM source_cursor WHERE source = :source))
WHERE id = :run
"""

MOVE_CURSOR = """
INSERT INTO source_cursor (source, read_to, lag_at, run_id, updated_at)
VALUES (:source, :read_to, :lag_at, :run, :now)
ON CONFLICT (source) DO UPDATE SET
    read_to = excluded.read_to, lag_at = COALESCE(excluded.lag_at, source_cursor.lag_at),
    run_id = excluded.run_id, updated_at = excluded.updated_at
WHERE source_cursor.read_to < excluded.read_to
"""
