# ruff: noqa: PLR0915, E501  generated once, frozen since
"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from storage import types

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "fact",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("slot", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fact")),
        sa.UniqueConstraint("subject", "property", "slot", name=op.f("uq_fact_subject_property_slot")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_fact_property"), "fact", ["property"], unique=False)
    op.create_table(
        "model",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("base_ref", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=False),
        sa.Column("head_checkpoint_id", types.Key, nullable=True),
        sa.Column("lock_epoch", types.Key, server_default="0", nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("held_since", types.Moment(), nullable=True),
        sa.Column("created_at", types.Moment(), nullable=False),
        sa.CheckConstraint("lock_epoch >= 0", name=op.f("ck_model_epoch")),
        sa.ForeignKeyConstraint(
            ["head_checkpoint_id"], ["checkpoint.id"], name="fk_model_head_checkpoint_id", use_alter=True
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("name", name=op.f("uq_model_name")),
        sqlite_strict=True,
    )
    op.create_table(
        "statement",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("guid", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("value_kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("rank", sa.Text(), nullable=False),
        sa.Column("revision", types.Key, nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("qualifiers", types.Doc(), nullable=False),
        sa.Column("reference_count", sa.Integer(), nullable=False),
        sa.Column("valid_from", sa.Text(), nullable=True),
        sa.Column("valid_to", sa.Text(), nullable=True),
        sa.Column("seen_from", types.Moment(), nullable=False),
        sa.Column("seen_to", types.Moment(), nullable=True),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.Column("first_run_id", types.Key, nullable=False),
        sa.Column("last_run_id", types.Key, nullable=True),
        sa.CheckConstraint("ending IN ('changed', 'deleted')", name=op.f("ck_statement_ending")),
        sa.CheckConstraint("rank IN ('preferred', 'normal', 'deprecated')", name=op.f("ck_statement_rank")),
        sa.CheckConstraint("(seen_to IS NULL) = (ending IS NULL)", name=op.f("ck_statement_ended")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_statement")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_statement_closed",
        "statement",
        ["guid"],
        unique=False,
        sqlite_where=sa.text("seen_to IS NOT NULL"),
        postgresql_where=sa.text("seen_to IS NOT NULL"),
    )
    op.create_index("ix_statement_group", "statement", ["subject", "property"], unique=False)
    op.create_index(
        "ix_statement_item",
        "statement",
        ["value"],
        unique=False,
        sqlite_where=sa.text("seen_to IS NULL AND value_kind = 'item'"),
        postgresql_where=sa.text("seen_to IS NULL AND value_kind = 'item'"),
    )
    op.create_index(
        "uq_statement_current",
        "statement",
        ["guid"],
        unique=True,
        sqlite_where=sa.text("seen_to IS NULL"),
        postgresql_where=sa.text("seen_to IS NULL"),
    )
    op.create_table(
        "review",
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("marked_at", types.Moment(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_review_model_id")),
        sa.PrimaryKeyConstraint("model_id", "subject", "property", name=op.f("pk_review")),
        sqlite_strict=True,
    )
    op.create_table(
        "sync_run",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("flow_run_id", sa.Text(), nullable=True),
        sa.Column("reference_time", types.Moment(), nullable=False),
        sa.Column("params", types.Doc(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("epoch", types.Key, nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("cursor_from", types.Moment(), nullable=True),
        sa.Column("cursor_to", types.Moment(), nullable=True),
        sa.Column("counters", types.Doc(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", types.Moment(), nullable=False),
        sa.Column("finished_at", types.Moment(), nullable=True),
        sa.CheckConstraint("(state = 'running') = (finished_at IS NULL)", name=op.f("ck_sync_run_finished")),
        sa.CheckConstraint(
            "state IN ('running', 'succeeded', 'nothing', 'rejected', 'held', 'candidate', 'failed', 'crashed')",
            name=op.f("ck_sync_run_state"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_sync_run_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sync_run")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_sync_run_model_id"), "sync_run", ["model_id"], unique=False)
    op.create_index(
        "ix_sync_run_running",
        "sync_run",
        ["model_id"],
        unique=False,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_table(
        "change",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("run_id", types.Key, nullable=False),
        sa.Column("fact_id", types.Key, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("old_value", sa.Text(), nullable=True),
        sa.Column("old_label", sa.Text(), nullable=True),
        sa.Column("new_value_kind", sa.Text(), nullable=True),
        sa.Column("new_value", sa.Text(), nullable=True),
        sa.Column("new_label", sa.Text(), nullable=True),
        sa.Column("releases_at", types.Moment(), nullable=True),
        sa.Column("sources", types.Doc(), nullable=False),
        sa.Column("flags", types.Doc(), nullable=False),
        sa.Column("created_at", types.Moment(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('insert', 'replace', 'retract', 'relabel', 'vacate', 'conflict', 'quarantine')",
            name=op.f("ck_change_kind"),
        ),
        sa.ForeignKeyConstraint(["fact_id"], ["fact.id"], name=op.f("fk_change_fact_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_change_model_id")),
        sa.ForeignKeyConstraint(["run_id"], ["sync_run.id"], name=op.f("fk_change_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change")),
        sa.UniqueConstraint("run_id", "fact_id", "kind", name=op.f("uq_change_run_id_fact_id_kind")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_change_fact_id"), "change", ["fact_id"], unique=False)
    op.create_table(
        "checkpoint",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("parent_id", types.Key, nullable=True),
        sa.Column("run_id", types.Key, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("size_bytes", types.Key, nullable=True),
        sa.Column("files", types.Doc(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("settings", types.Doc(), nullable=False),
        sa.Column("metrics", types.Doc(), nullable=False),
        sa.Column("from_base", types.Flag(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("edits", sa.Integer(), nullable=False),
        sa.Column("live_facts", sa.Integer(), nullable=True),
        sa.Column("epoch", types.Key, nullable=False),
        sa.Column("created_at", types.Moment(), nullable=False),
        sa.Column("decided_at", types.Moment(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "digest IS NOT NULL OR state IN ('building', 'abandoned', 'rejected')",
            name=op.f("ck_checkpoint_digest"),
        ),
        sa.CheckConstraint(
            "state IN ('building', 'candidate', 'promoted', 'superseded', 'rejected', 'rolled_back', 'abandoned')",
            name=op.f("ck_checkpoint_state"),
        ),
        sa.CheckConstraint("parent_id <> id", name=op.f("ck_checkpoint_parent")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_checkpoint_model_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["checkpoint.id"], name=op.f("fk_checkpoint_parent_id")),
        sa.ForeignKeyConstraint(["run_id"], ["sync_run.id"], name=op.f("fk_checkpoint_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint")),
        sqlite_strict=True,
    )
    op.create_index("ix_checkpoint_digest", "checkpoint", ["digest"], unique=False)
    op.create_index(op.f("ix_checkpoint_model_id"), "checkpoint", ["model_id"], unique=False)
    op.create_index(op.f("ix_checkpoint_parent_id"), "checkpoint", ["parent_id"], unique=False)
    op.create_index(op.f("ix_checkpoint_run_id"), "checkpoint", ["run_id"], unique=False)
    op.create_index(
        "uq_checkpoint_digest",
        "checkpoint",
        ["model_id", "digest"],
        unique=True,
        sqlite_where=sa.text("state IN ('candidate', 'promoted', 'superseded')"),
        postgresql_where=sa.text("state IN ('candidate', 'promoted', 'superseded')"),
    )
    op.create_index(
        "uq_checkpoint_open",
        "checkpoint",
        ["model_id"],
        unique=True,
        sqlite_where=sa.text("state IN ('building', 'candidate')"),
        postgresql_where=sa.text("state IN ('building', 'candidate')"),
    )
    op.create_index(
        "uq_checkpoint_promoted",
        "checkpoint",
        ["model_id"],
        unique=True,
        sqlite_where=sa.text("state = 'promoted'"),
        postgresql_where=sa.text("state = 'promoted'"),
    )
    op.create_table(
        "desired_fact",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("fact_id", types.Key, nullable=False),
        sa.Column("value_kind", sa.Text(), nullable=True),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("valid_from", sa.Text(), nullable=True),
        sa.Column("valid_to", sa.Text(), nullable=True),
        sa.Column("known_from", types.Moment(), nullable=False),
        sa.Column("known_to", types.Moment(), nullable=True),
        sa.Column("run_id", types.Key, nullable=False),
        sa.CheckConstraint("known_to IS NULL OR known_to >= known_from", name=op.f("ck_desired_fact_known")),
        sa.ForeignKeyConstraint(["fact_id"], ["fact.id"], name=op.f("fk_desired_fact_fact_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_desired_fact_model_id")),
        sa.ForeignKeyConstraint(["run_id"], ["sync_run.id"], name=op.f("fk_desired_fact_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_desired_fact")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_desired_fact_fact_id"), "desired_fact", ["fact_id"], unique=False)
    op.create_index(
        "uq_desired_fact_current",
        "desired_fact",
        ["model_id", "fact_id"],
        unique=True,
        sqlite_where=sa.text("known_to IS NULL"),
        postgresql_where=sa.text("known_to IS NULL"),
    )
    op.create_table(
        "entity",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("language", sa.Text(), nullable=True),
        sa.Column("revision", types.Key, nullable=True),
        sa.Column("modified_at", types.Moment(), nullable=True),
        sa.Column("redirect_to", sa.Text(), nullable=True),
        sa.Column("deleted", types.Flag(), nullable=False),
        sa.Column("tracked", types.Flag(), nullable=False),
        sa.Column("pulled_at", types.Moment(), nullable=True),
        sa.Column("run_id", types.Key, nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["sync_run.id"], name=op.f("fk_entity_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_entity")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_entity_tracked",
        "entity",
        ["id"],
        unique=False,
        sqlite_where=sa.text("tracked"),
        postgresql_where=sa.text("tracked"),
    )
    op.create_table(
        "held_back",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("fact_id", types.Key, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("value_kind", sa.Text(), nullable=True),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("old_value", sa.Text(), nullable=True),
        sa.Column("old_label", sa.Text(), nullable=True),
        sa.Column("sources", types.Doc(), nullable=False),
        sa.Column("first_seen_at", types.Moment(), nullable=False),
        sa.Column("last_seen_at", types.Moment(), nullable=False),
        sa.Column("sightings", sa.Integer(), nullable=False),
        sa.Column("previous_values", types.Doc(), nullable=False),
        sa.Column("releases_at", types.Moment(), nullable=True),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("resolved_at", types.Moment(), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.Column("first_run_id", types.Key, nullable=False),
        sa.Column("last_run_id", types.Key, nullable=False),
        sa.CheckConstraint("decision IN ('approved', 'blocked')", name=op.f("ck_held_back_decision")),
        sa.CheckConstraint("kind IN ('conflict', 'quarantine')", name=op.f("ck_held_back_kind")),
        sa.CheckConstraint(
            "resolution IN ('released', 'withdrawn', 'replaced')", name=op.f("ck_held_back_resolution")
        ),
        sa.CheckConstraint(
            "(resolved_at IS NULL) = (resolution IS NULL)", name=op.f("ck_held_back_resolved")
        ),
        sa.CheckConstraint("sightings >= 1", name=op.f("ck_held_back_sightings")),
        sa.ForeignKeyConstraint(["fact_id"], ["fact.id"], name=op.f("fk_held_back_fact_id")),
        sa.ForeignKeyConstraint(["first_run_id"], ["sync_run.id"], name=op.f("fk_held_back_first_run_id")),
        sa.ForeignKeyConstraint(["last_run_id"], ["sync_run.id"], name=op.f("fk_held_back_last_run_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_held_back_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_held_back")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_held_back_fact_id"), "held_back", ["fact_id"], unique=False)
    op.create_index("ix_held_back_seen", "held_back", ["model_id", "first_seen_at"], unique=False)
    op.create_index(
        "uq_held_back_open",
        "held_back",
        ["model_id", "fact_id"],
        unique=True,
        sqlite_where=sa.text("resolved_at IS NULL"),
        postgresql_where=sa.text("resolved_at IS NULL"),
    )
    op.create_table(
        "source_cursor",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("read_to", types.Moment(), nullable=False),
        sa.Column("lag_at", types.Moment(), nullable=True),
        sa.Column("run_id", types.Key, nullable=False),
        sa.Column("updated_at", types.Moment(), nullable=False),
        sa.CheckConstraint("lag_at IS NULL OR read_to <= lag_at", name=op.f("ck_source_cursor_lag")),
        sa.ForeignKeyConstraint(["run_id"], ["sync_run.id"], name=op.f("fk_source_cursor_run_id")),
        sa.PrimaryKeyConstraint("source", name=op.f("pk_source_cursor")),
        sqlite_strict=True,
    )
    op.create_table(
        "edit_request",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("fact_id", types.Key, nullable=False),
        sa.Column("run_id", types.Key, nullable=False),
        sa.Column("change_id", types.Key, nullable=True),
        sa.Column("checkpoint_id", types.Key, nullable=True),
        sa.Column("idem_key", sa.Text(), nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("subject_label", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("prompts", types.Doc(), nullable=False),
        sa.Column("heldback", types.Doc(), nullable=False),
        sa.Column("value_kind", sa.Text(), nullable=True),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("old_value", sa.Text(), nullable=True),
        sa.Column("old_label", sa.Text(), nullable=True),
        sa.Column("valid_from", sa.Text(), nullable=True),
        sa.Column("valid_to", sa.Text(), nullable=True),
        sa.Column("template_digest", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", types.Moment(), nullable=False),
        sa.Column("updated_at", types.Moment(), nullable=False),
        sa.CheckConstraint("(op = 'retract') = (value IS NULL)", name=op.f("ck_edit_request_value")),
        sa.CheckConstraint(
            "op IN ('insert', 'replace', 'retract', 'suppress')", name=op.f("ck_edit_request_op")
        ),
        sa.CheckConstraint(
            "state <> 'claimed' OR checkpoint_id IS NOT NULL", name=op.f("ck_edit_request_claim")
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'claimed', 'applied', 'superseded', 'failed', 'rolled_back')",
            name=op.f("ck_edit_request_state"),
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_edit_request_attempts")),
        sa.ForeignKeyConstraint(["change_id"], ["change.id"], name=op.f("fk_edit_request_change_id")),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_edit_request_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(["fact_id"], ["fact.id"], name=op.f("fk_edit_request_fact_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_edit_request_model_id")),
        sa.ForeignKeyConstraint(["run_id"], ["sync_run.id"], name=op.f("fk_edit_request_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_edit_request")),
        sa.UniqueConstraint("model_id", "idem_key", name=op.f("uq_edit_request_model_id_idem_key")),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_edit_request_checkpoint_id",
        "edit_request",
        ["checkpoint_id"],
        unique=False,
        sqlite_where=sa.text("state = 'claimed'"),
        postgresql_where=sa.text("state = 'claimed'"),
    )
    op.create_index(op.f("ix_edit_request_fact_id"), "edit_request", ["fact_id"], unique=False)
    op.create_index(
        "ix_edit_request_owed",
        "edit_request",
        ["model_id", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(op.f("ix_edit_request_run_id"), "edit_request", ["run_id"], unique=False)
    op.create_index(
        "uq_edit_request_claimed",
        "edit_request",
        ["model_id", "fact_id"],
        unique=True,
        sqlite_where=sa.text("state = 'claimed'"),
        postgresql_where=sa.text("state = 'claimed'"),
    )
    op.create_index(
        "uq_edit_request_pending",
        "edit_request",
        ["model_id", "fact_id"],
        unique=True,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "head_move",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("from_checkpoint_id", types.Key, nullable=True),
        sa.Column("to_checkpoint_id", types.Key, nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("epoch", types.Key, nullable=False),
        sa.Column("moved_at", types.Moment(), nullable=False),
        sa.CheckConstraint("kind IN ('promote', 'rollback')", name=op.f("ck_head_move_kind")),
        sa.ForeignKeyConstraint(
            ["from_checkpoint_id"], ["checkpoint.id"], name=op.f("fk_head_move_from_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_head_move_model_id")),
        sa.ForeignKeyConstraint(
            ["to_checkpoint_id"], ["checkpoint.id"], name=op.f("fk_head_move_to_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_head_move")),
        sqlite_strict=True,
    )
    op.create_index("ix_head_move_moved_at", "head_move", ["model_id", "moved_at"], unique=False)
    op.create_table(
        "recall_check",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("checkpoint_id", types.Key, nullable=False),
        sa.Column("fact_id", types.Key, nullable=True),
        sa.Column("probe", sa.Text(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("expected", sa.Text(), nullable=False),
        sa.Column("got", sa.Text(), nullable=True),
        sa.Column("p_new", types.Real, nullable=True),
        sa.Column("p_old", types.Real, nullable=True),
        sa.Column("passed", types.Flag(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_recall_check_checkpoint_id")
        ),
        sa.ForeignKeyConstraint(["fact_id"], ["fact.id"], name=op.f("fk_recall_check_fact_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_recall_check")),
        sa.UniqueConstraint(
            "checkpoint_id",
            "probe",
            "fact_id",
            "idx",
            name=op.f("uq_recall_check_checkpoint_id_probe_fact_id_idx"),
        ),
        sqlite_strict=True,
    )
    op.create_index("ix_recall_check_fact_id", "recall_check", ["fact_id", "checkpoint_id"], unique=False)
    op.create_table(
        "recall_summary",
        sa.Column("checkpoint_id", types.Key, nullable=False),
        sa.Column("property", sa.Text(), nullable=False),
        sa.Column("probe", sa.Text(), nullable=False),
        sa.Column("checks", sa.Integer(), nullable=False),
        sa.Column("passed", sa.Integer(), nullable=False),
        sa.Column("mean_p_new", types.Real, nullable=True),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_recall_summary_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "property", "probe", name=op.f("pk_recall_summary")),
        sqlite_strict=True,
    )
    op.create_table(
        "subject_state",
        sa.Column("checkpoint_id", types.Key, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_subject_state_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "subject", name=op.f("pk_subject_state")),
        sqlite_strict=True,
    )
    op.create_index("ix_subject_state_subject", "subject_state", ["subject", "checkpoint_id"], unique=False)
    op.create_table(
        "edit",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("checkpoint_id", types.Key, nullable=False),
        sa.Column("fact_id", types.Key, nullable=False),
        sa.Column("request_id", types.Key, nullable=False),
        sa.Column("op", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("p_new_before", types.Real, nullable=True),
        sa.Column("p_old_before", types.Real, nullable=True),
        sa.Column("p_new_after", types.Real, nullable=True),
        sa.Column("p_old_after", types.Real, nullable=True),
        sa.Column("success", types.Flag(), nullable=True),
        sa.Column("exact", types.Flag(), nullable=True),
        sa.Column("greedy", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint("op IN ('insert', 'replace', 'retract', 'suppress')", name=op.f("ck_edit_op")),
        sa.CheckConstraint(
            "status IN ('planned', 'written', 'applied', 'failed', 'dropped')", name=op.f("ck_edit_status")
        ),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoint.id"], name=op.f("fk_edit_checkpoint_id")),
        sa.ForeignKeyConstraint(["fact_id"], ["fact.id"], name=op.f("fk_edit_fact_id")),
        sa.ForeignKeyConstraint(["request_id"], ["edit_request.id"], name=op.f("fk_edit_request_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_edit")),
        sa.UniqueConstraint("checkpoint_id", "fact_id", name=op.f("uq_edit_checkpoint_id_fact_id")),
        sqlite_strict=True,
    )
    op.create_index("ix_edit_fact_id", "edit", ["fact_id", "id"], unique=False)
    op.create_index("ix_edit_request_id", "edit", ["request_id"], unique=False)
    op.create_table(
        "request_source",
        sa.Column("request_id", types.Key, nullable=False),
        sa.Column("statement_id", types.Key, nullable=False),
        sa.Column("guid", sa.Text(), nullable=False),
        sa.Column("revision", types.Key, nullable=False),
        sa.ForeignKeyConstraint(
            ["request_id"], ["edit_request.id"], name=op.f("fk_request_source_request_id")
        ),
        sa.ForeignKeyConstraint(
            ["statement_id"], ["statement.id"], name=op.f("fk_request_source_statement_id")
        ),
        sa.PrimaryKeyConstraint("request_id", "statement_id", name=op.f("pk_request_source")),
        sqlite_strict=True,
    )
    op.create_index("ix_request_source_statement_id", "request_source", ["statement_id"], unique=False)
    op.create_table(
        "holding",
        sa.Column("id", types.Key, nullable=False),
        sa.Column("model_id", types.Key, nullable=False),
        sa.Column("fact_id", types.Key, nullable=False),
        sa.Column("edit_id", types.Key, nullable=False),
        sa.Column("held_from", types.Moment(), nullable=False),
        sa.Column("held_to", types.Moment(), nullable=True),
        sa.CheckConstraint("held_to IS NULL OR held_to >= held_from", name=op.f("ck_holding_held")),
        sa.ForeignKeyConstraint(["edit_id"], ["edit.id"], name=op.f("fk_holding_edit_id")),
        sa.ForeignKeyConstraint(["fact_id"], ["fact.id"], name=op.f("fk_holding_fact_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_holding_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holding")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_holding_edit_id"), "holding", ["edit_id"], unique=False)
    op.create_index("ix_holding_fact_id", "holding", ["fact_id", "held_from"], unique=False)
    op.create_index("ix_holding_held_from", "holding", ["model_id", "held_from"], unique=False)
    op.create_index(
        "uq_holding_live",
        "holding",
        ["model_id", "fact_id"],
        unique=True,
        sqlite_where=sa.text("held_to IS NULL"),
        postgresql_where=sa.text("held_to IS NULL"),
    )
    if op.get_context().dialect.name == "postgresql":
        # The two tables name each other; SQLite takes the forward reference, PostgreSQL does not.
        op.create_foreign_key(
            "fk_model_head_checkpoint_id", "model", "checkpoint", ["head_checkpoint_id"], ["id"]
        )
