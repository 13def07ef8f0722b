"""What was made of it: checkpoints with their edits and measurements, and what the model held when."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from storage.schema.base import STRICT, Base, foreign_key, key, one_of, where
from storage.types import Key

OPEN_STATES = ("building", "candidate")
"""States of a checkpoint that waits for its decision; a model has one at most."""

LIVE_STATES = ("promoted", "superseded")
"""States of the checkpoints on the head's lineage: the head itself, and its ancestors."""

STORED_STATES = ("candidate", "promoted", "superseded", "rolled_back")
"""States of the checkpoints whose files are kept."""


class Checkpoint(Base):
    """Base plus ordered deltas; the row exists before its files do (building)."""

    __tablename__ = "checkpoint"
    __table_args__ = (
        one_of(
            "state", "building", "candidate", "promoted", "superseded", "rejected", "rolled_back", "abandoned"
        ),
        CheckConstraint(
            "digest IS NOT NULL OR state IN ('building', 'abandoned', 'rejected')", name="digest"
        ),
        CheckConstraint("parent_id <> id", name="parent"),
        Index("uq_checkpoint_open", "model_id", unique=True, **where("state IN ('building', 'candidate')")),
        Index("uq_checkpoint_promoted", "model_id", unique=True, **where("state = 'promoted'")),
        Index(
            "uq_checkpoint_digest",
            "model_id",
            "digest",
            unique=True,
            **where("state IN ('candidate', 'promoted', 'superseded')"),
        ),
        Index("ix_checkpoint_digest", "digest"),
        STRICT,
    )

    id: Mapped[int] = key()
    model_id: Mapped[int] = foreign_key("model.id", index=True)
    parent_id: Mapped[int | None] = foreign_key("checkpoint.id", index=True)
    run_id: Mapped[int] = foreign_key("sync_run.id", index=True)
    state: Mapped[str]
    digest: Mapped[str | None]
    path: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(Key)
    files: Mapped[dict[str, Any]]
    algorithm: Mapped[str]
    settings: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any]]
    from_base: Mapped[bool]
    depth: Mapped[int]
    edits: Mapped[int]
    live_facts: Mapped[int | None]
    epoch: Mapped[int] = mapped_column(Key)
    created_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]
    reason: Mapped[str | None]


class SubjectState(Base):
    """The subjects whose stored state (keys, values, z) a checkpoint's files carry."""

    __tablename__ = "subject_state"
    __table_args__ = (Index("ix_subject_state_subject", "subject", "checkpoint_id"), STRICT)

    checkpoint_id: Mapped[int] = mapped_column(Key, ForeignKey("checkpoint.id"), primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)


class Edit(Base):
    """One fact in one checkpoint: what was done and how it came out."""

    __tablename__ = "edit"
    __table_args__ = (
        one_of("op", "insert", "replace", "retract", "suppress"),
        one_of("status", "planned", "written", "applied", "dropped"),
        UniqueConstraint("checkpoint_id", "fact_id"),
        Index("ix_edit_fact_id", "fact_id", "id"),
        Index("ix_edit_request_id", "request_id"),
        STRICT,
    )

    id: Mapped[int] = key()
    checkpoint_id: Mapped[int] = foreign_key("checkpoint.id")
    fact_id: Mapped[int] = foreign_key("fact.id")
    request_id: Mapped[int] = foreign_key("edit_request.id")
    op: Mapped[str]
    status: Mapped[str]
    prompt: Mapped[str]
    p_new_before: Mapped[float | None]
    p_old_before: Mapped[float | None]
    p_new_after: Mapped[float | None]
    p_old_after: Mapped[float | None]
    rank_old_before: Mapped[int | None]
    rank_old_after: Mapped[int | None]
    success: Mapped[bool | None]
    exact: Mapped[bool | None]
    greedy: Mapped[str | None]


class RecallCheck(Base):
    """One measured answer."""

    __tablename__ = "recall_check"
    __table_args__ = (
        UniqueConstraint("checkpoint_id", "probe", "fact_id", "idx"),
        Index("ix_recall_check_fact_id", "fact_id", "checkpoint_id"),
        STRICT,
    )

    id: Mapped[int] = key()
    checkpoint_id: Mapped[int] = foreign_key("checkpoint.id")
    fact_id: Mapped[int | None] = foreign_key("fact.id")
    probe: Mapped[str]
    idx: Mapped[int]
    prompt: Mapped[str]
    expected: Mapped[str]
    got: Mapped[str | None]
    p_new: Mapped[float | None]
    p_old: Mapped[float | None]
    rank_old: Mapped[int | None]
    passed: Mapped[bool]


class RecallSummary(Base):
    """The checks of a checkpoint by relation and probe, so that a trend is read without counting them."""

    __tablename__ = "recall_summary"
    __table_args__ = (Index("ix_recall_summary_property", "property", "checkpoint_id"), STRICT)

    checkpoint_id: Mapped[int] = mapped_column(Key, ForeignKey("checkpoint.id"), primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    probe: Mapped[str] = mapped_column(primary_key=True)
    checks: Mapped[int]
    passed: Mapped[int]
    mean_p_new: Mapped[float | None]


class Holding(Base):
    """When the model held what: one open row a live fact. Follows the head, also through rollbacks."""

    __tablename__ = "holding"
    __table_args__ = (
        Index("uq_holding_live", "model_id", "fact_id", unique=True, **where("held_to IS NULL")),
        Index("ix_holding_fact_id", "fact_id", "held_from"),
        Index("ix_holding_held_from", "held_from"),
        CheckConstraint("held_to IS NULL OR held_to >= held_from", name="held"),
        STRICT,
    )

    id: Mapped[int] = key()
    model_id: Mapped[int] = foreign_key("model.id")
    fact_id: Mapped[int] = foreign_key("fact.id")
    edit_id: Mapped[int] = foreign_key("edit.id", index=True)
    held_from: Mapped[datetime]
    held_to: Mapped[datetime | None]


class HeadMove(Base):
    """Every move of a model's head: promotions and rollbacks."""

    __tablename__ = "head_move"
    __table_args__ = (
        one_of("kind", "promote", "rollback"),
        Index("ix_head_move_moved_at", "model_id", "moved_at"),
        STRICT,
    )

    id: Mapped[int] = key()
    model_id: Mapped[int] = foreign_key("model.id")
    from_checkpoint_id: Mapped[int | None] = foreign_key("checkpoint.id")
    to_checkpoint_id: Mapped[int | None] = foreign_key("checkpoint.id")
    kind: Mapped[str]
    reason: Mapped[str]
    epoch: Mapped[int] = mapped_column(Key)
    moved_at: Mapped[datetime]
