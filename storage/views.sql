-- The public views: names and columns are a contract, described in docs/ledger.md, the same on SQLite and PostgreSQL.
-- Dropped before and created again after every migration, from this file.
-- "On the lineage" is the state promoted (the head) or superseded (its ancestors); the same transaction that moves
-- the head sets these states, and `factsync doctor` compares them with the walk from the head.

CREATE VIEW live_facts AS
SELECT
    m.name AS model,
    f.subject AS subject,
    r.subject_label AS subject_label,
    f.property AS property,
    f.slot AS slot,
    r.value_kind AS value_kind,
    r.value AS value,
    r.target AS target,
    e.op AS operation,
    e.p_new_after AS p_new,
    e.p_old_after AS p_old,
    e.rank_old_after AS rank_old,
    e.exact AS exact,
    c.decided_at AS live_since,
    c.digest AS checkpoint,
    m.id AS model_id,
    f.id AS fact_id,
    e.id AS edit_id,
    e.request_id AS request_id,
    c.id AS checkpoint_id
FROM fact f
JOIN edit e ON e.fact_id = f.id AND e.status = 'applied' AND e.op <> 'retract'
JOIN checkpoint c ON c.id = e.checkpoint_id AND c.state IN ('promoted', 'superseded')
JOIN model m ON m.id = c.model_id
JOIN edit_request r ON r.id = e.request_id
WHERE NOT EXISTS (
    SELECT 1
    FROM edit n
    JOIN checkpoint nc ON nc.id = n.checkpoint_id AND nc.state IN ('promoted', 'superseded')
    WHERE n.fact_id = e.fact_id AND n.id > e.id AND n.status = 'applied' AND nc.model_id = c.model_id
);

CREATE VIEW fact_history AS
SELECT
    m.name AS model,
    f.subject AS subject,
    r.subject_label AS subject_label,
    f.property AS property,
    f.slot AS slot,
    r.value_kind AS value_kind,
    r.value AS value,
    r.target AS target,
    h.held_from AS held_from,
    h.held_to AS held_to,
    r.valid_from AS valid_from,
    -- What a suppressed fact rests on says when the former value ended, and a statement that was edited to another
    -- value speaks of that one. The latest of several ends: as texts, years before 0 run backwards.
    CASE WHEN e.op <> 'suppress' THEN (
        SELECT CASE WHEN COUNT(*) = COUNT(NULLIF(s.valid_to, 'novalue')) THEN
            COALESCE(MAX(CASE WHEN SUBSTR(s.valid_to, 1, 1) <> '-' THEN s.valid_to END), MIN(s.valid_to))
        END
        FROM request_source x
        JOIN statement v ON v.id = x.statement_id
        JOIN statement s
            ON s.guid = x.guid AND s.seen_to IS NULL AND s.value_kind = v.value_kind AND s.value = v.value
        WHERE x.request_id = r.id
    ) END AS valid_to,
    e.op AS operation,
    g.reason AS reason,
    c.digest AS checkpoint,
    c.run_id AS run_id,
    e.id AS edit_id
FROM holding h
JOIN model m ON m.id = h.model_id
JOIN fact f ON f.id = h.fact_id
JOIN edit e ON e.id = h.edit_id
JOIN edit_request r ON r.id = e.request_id
JOIN checkpoint c ON c.id = e.checkpoint_id
LEFT JOIN change g ON g.id = r.change_id;

CREATE VIEW edit_history AS
SELECT
    m.name AS model,
    f.subject AS subject,
    r.subject_label AS subject_label,
    f.property AS property,
    f.slot AS slot,
    e.op AS operation,
    e.prompt AS prompt,
    r.old_value AS old_value,
    r.old_label AS old_target,
    r.value AS new_value,
    r.target AS new_target,
    e.status AS status,
    e.p_new_before AS p_new_before,
    e.p_old_before AS p_old_before,
    e.p_new_after AS p_new_after,
    e.p_old_after AS p_old_after,
    e.rank_old_before AS rank_old_before,
    e.rank_old_after AS rank_old_after,
    e.success AS success,
    e.exact AS exact,
    e.greedy AS completion,
    g.reason AS reason,
    c.digest AS checkpoint,
    c.state AS checkpoint_state,
    c.decided_at AS decided_at,
    c.depth AS position,
    c.run_id AS run_id,
    c.id AS checkpoint_id,
    e.id AS edit_id
FROM edit e
JOIN fact f ON f.id = e.fact_id
JOIN checkpoint c ON c.id = e.checkpoint_id
JOIN model m ON m.id = c.model_id
JOIN edit_request r ON r.id = e.request_id
LEFT JOIN change g ON g.id = r.change_id;

CREATE VIEW checkpoint_lineage AS
SELECT
    m.name AS model,
    c.depth AS position,
    c.digest AS checkpoint,
    p.digest AS parent,
    c.state AS state,
    c.state IN ('promoted', 'superseded') AS on_lineage,
    COALESCE(c.id = m.head_checkpoint_id, false) AS is_head,
    c.algorithm AS algorithm,
    c.settings AS settings,
    c.metrics AS metrics,
    c.edits AS edits,
    c.live_facts AS live_facts,
    c.size_bytes AS size_bytes,
    c.path AS path,
    m.base_digest AS base,
    c.from_base AS from_base,
    c.created_at AS created_at,
    c.decided_at AS decided_at,
    c.reason AS reason,
    c.run_id AS run_id,
    c.id AS checkpoint_id
FROM checkpoint c
JOIN model m ON m.id = c.model_id
LEFT JOIN checkpoint p ON p.id = c.parent_id;

CREATE VIEW head_moves AS
SELECT
    m.name AS model,
    h.moved_at AS moved_at,
    h.kind AS kind,
    f.digest AS from_checkpoint,
    t.digest AS to_checkpoint,
    h.reason AS reason,
    h.id AS move_id
FROM head_move h
JOIN model m ON m.id = h.model_id
LEFT JOIN checkpoint f ON f.id = h.from_checkpoint_id
LEFT JOIN checkpoint t ON t.id = h.to_checkpoint_id;

CREATE VIEW recall_by_relation AS
SELECT
    m.name AS model,
    s.property AS property,
    s.probe AS probe,
    s.checks AS checks,
    s.passed AS passed,
    1.0 * s.passed / s.checks AS share,
    s.mean_p_new AS mean_p_new,
    c.digest AS checkpoint,
    c.state AS checkpoint_state,
    c.decided_at AS decided_at,
    c.depth AS position,
    c.id AS checkpoint_id
FROM recall_summary s
JOIN checkpoint c ON c.id = s.checkpoint_id
JOIN model m ON m.id = c.model_id;

CREATE VIEW fact_recall AS
SELECT
    m.name AS model,
    f.subject AS subject,
    f.property AS property,
    f.slot AS slot,
    k.probe AS probe,
    k.idx AS number,
    k.prompt AS prompt,
    k.expected AS expected,
    k.got AS completion,
    k.p_new AS p_new,
    k.p_old AS p_old,
    k.rank_old AS rank_old,
    k.passed AS passed,
    c.digest AS checkpoint,
    c.state AS checkpoint_state,
    c.decided_at AS decided_at,
    c.depth AS position,
    c.id AS checkpoint_id
FROM recall_check k
JOIN fact f ON f.id = k.fact_id
JOIN checkpoint c ON c.id = k.checkpoint_id
JOIN model m ON m.id = c.model_id;

CREATE VIEW sync_runs AS
SELECT
    m.name AS model,
    r.id AS run_id,
    r.kind AS kind,
    r.state AS state,
    r.flow_run_id AS flow_run_id,
    r.reference_time AS reference_time,
    r.source AS source,
    r.cursor_from AS cursor_from,
    r.cursor_to AS cursor_to,
    r.params AS params,
    r.counters AS counters,
    r.error AS error,
    r.started_at AS started_at,
    r.finished_at AS finished_at
FROM sync_run r
JOIN model m ON m.id = r.model_id;

CREATE VIEW quarantine AS
SELECT
    m.name AS model,
    f.subject AS subject,
    s.label AS subject_label,
    f.property AS property,
    f.slot AS slot,
    q.kind AS kind,
    q.reason AS reason,
    q.old_value AS old_value,
    q.old_label AS old_target,
    q.value AS value,
    q.label AS target,
    q.first_seen_at AS first_seen_at,
    q.last_seen_at AS last_seen_at,
    q.sightings AS sightings,
    q.releases_at AS releases_at,
    q.decision AS decision,
    q.decided_by AS decided_by,
    q.resolved_at AS resolved_at,
    q.resolution AS resolution,
    q.sources AS sources,
    q.id AS quarantine_id
FROM held_back q
JOIN model m ON m.id = q.model_id
JOIN fact f ON f.id = q.fact_id
LEFT JOIN entity s ON s.id = f.subject;

CREATE VIEW provenance AS
SELECT
    m.name AS model,
    c.digest AS checkpoint,
    c.state AS checkpoint_state,
    e.id AS edit_id,
    e.op AS operation,
    e.status AS edit_status,
    f.subject AS subject,
    r.subject_label AS subject_label,
    f.property AS property,
    f.slot AS slot,
    r.value AS value,
    r.target AS target,
    x.guid AS statement_id,
    x.revision AS revision,
    s.rank AS rank,
    s.value AS statement_value,
    s.qualifiers AS qualifiers,
    s.reference_count AS reference_count,
    s.seen_from AS seen_from,
    s.seen_to AS seen_to,
    s.ending AS ending,
    c.run_id AS run_id,
    c.id AS checkpoint_id
FROM edit e
JOIN fact f ON f.id = e.fact_id
JOIN checkpoint c ON c.id = e.checkpoint_id
JOIN model m ON m.id = c.model_id
JOIN edit_request r ON r.id = e.request_id
JOIN request_source x ON x.request_id = r.id
JOIN statement s ON s.id = x.statement_id;

CREATE VIEW failed_edits AS
SELECT
    m.name AS model,
    f.subject AS subject,
    r.subject_label AS subject_label,
    f.property AS property,
    f.slot AS slot,
    r.op AS operation,
    r.target AS target,
    r.error AS reason,
    r.attempts AS attempts,
    r.updated_at AS failed_at,
    c.digest AS checkpoint,
    r.id AS request_id
FROM edit_request r
JOIN fact f ON f.id = r.fact_id
JOIN model m ON m.id = r.model_id
LEFT JOIN checkpoint c ON c.id = r.checkpoint_id
WHERE r.state = 'failed';

CREATE VIEW drift AS
SELECT
    m.name AS model,
    c.depth AS position,
    c.decided_at AS decided_at,
    c.live_facts AS live_facts,
    CAST(c.metrics ->> 'perplexity' AS double precision) AS perplexity,
    CAST(c.metrics ->> 'perplexity_base' AS double precision) AS perplexity_base,
    CAST(c.metrics ->> 'norm' AS double precision) AS norm,
    CAST(c.metrics ->> 'efficacy' AS double precision) AS efficacy,
    CAST(c.metrics ->> 'exact' AS double precision) AS exact,
    CAST(c.metrics ->> 'retention' AS double precision) AS retention,
    CAST(c.metrics ->> 'retention_exact' AS double precision) AS retention_exact,
    CAST(c.metrics ->> 'neighbours' AS double precision) AS neighbours,
    c.digest AS checkpoint,
    c.id AS checkpoint_id
FROM checkpoint c
JOIN model m ON m.id = c.model_id
WHERE c.state IN ('promoted', 'superseded');

CREATE VIEW cohort_recall AS
SELECT
    m.name AS model,
    t.depth AS cohort,
    c.depth AS position,
    c.decided_at AS decided_at,
    COUNT(*) AS checks,
    SUM(CASE WHEN k.passed THEN 1 ELSE 0 END) AS passed,
    c.digest AS checkpoint,
    c.id AS checkpoint_id
FROM checkpoint c
JOIN model m ON m.id = c.model_id
JOIN recall_check k ON k.checkpoint_id = c.id AND k.probe IN ('efficacy', 'retention') AND k.idx = 0
JOIN edit e ON e.id = (
    SELECT MAX(n.id)
    FROM edit n
    JOIN checkpoint nc ON nc.id = n.checkpoint_id AND nc.state IN ('promoted', 'superseded')
    WHERE n.fact_id = k.fact_id AND n.status = 'applied' AND nc.model_id = c.model_id AND nc.id <= c.id
)
JOIN checkpoint t ON t.id = e.checkpoint_id
WHERE c.state IN ('promoted', 'superseded')
GROUP BY m.name, t.depth, c.depth, c.decided_at, c.digest, c.id;
