"""What a plan decided: the facts, what a model should hold, what waits, what is owed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from storage.schema.base import STRICT, Base, foreign_key, key, one_of, where
from storage.types import Doc, Key


class Fact(Base):
    """The scope of a fact: (subject, property, slot)."""

    __tablename__ = "fact"
    __table_args__ = (UniqueConstraint("subject", "property", "slot"), STRICT)

    id: Mapped[int] = key()
    subject: Mapped[str]
    property: Mapped[str] = mapped_column(index=True)
    slot: Mapped[str]


class Change(Base):
    """What a plan decided about one fact, and why. `unchanged` is only counted."""

    __tablename__ = "change"
    __table_args__ = (
        one_of(
            "kind", "insert", "replace", "retract", "suppress", "relabel", "vacate", "conflict", "quarantine"
        ),
        UniqueConstraint("run_id", "fact_id", "kind"),
        STRICT,
    )

    id: Mapped[int] = key()
    model_id: Mapped[int] = foreign_key("model.id")
    run_id: Mapped[int] = foreign_key("sync_run.id")
    fact_id: Mapped[int] = foreign_key("fact.id", index=True)
    kind: Mapped[str]
    reason: Mapped[str]
    old_value: Mapped[str | None]
    old_label: Mapped[str | None]
    new_value_kind: Mapped[str | None]
    new_value: Mapped[str | None]
    new_label: Mapped[str | None]
    releases_at: Mapped[datetime | None]
    sources: Mapped[dict[str, Any]] = mapped_column(Doc)
    flags: Mapped[dict[str, Any]] = mapped_column(Doc)
    created_at: Mapped[datetime]


class HeldBack(Base):
    """A change that waits: for its hold window, for a second sighting, for a person."""

    __tablename__ = "held_back"
    __table_args__ = (
        one_of("kind", "conflict", "quarantine"),
        one_of("decision", "approved", "blocked"),
        one_of("resolution", "released", "withdrawn", "replaced"),
        CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="resolved"),
        CheckConstraint("sightings >= 1", name="sightings"),
        Index("uq_held_back_open", "model_id", "fact_id", unique=True, **where("resolved_at IS NULL")),
        Index("ix_held_back_seen", "model_id", "first_seen_at"),
        STRICT,
    )

    id: Mapped[int] = key()
    model_id: Mapped[int] = foreign_key("model.id")
    fact_id: Mapped[int] = foreign_key("fact.id", index=True)
    kind: Mapped[str]
    reason: Mapped[str]
    value_kind: Mapped[str | None]
    value: Mapped[str | None]
    label: Mapped[str | None]
    old_value: Mapped[str | None]
    old_label: Mapped[str | None]
    sources: Mapped[dict[str, Any]] = mapped_column(Doc)
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    sightings: Mapped[int]
    previous_values: Mapped[dict[str, Any]] = mapped_column(Doc)
    releases_at: Mapped[datetime | None]
    decision: Mapped[str | None]
    decided_by: Mapped[str | None]
    resolved_at: Mapped[datetime | None]
    resolution: Mapped[str | None]
    first_run_id: Mapped[int] = foreign_key("sync_run.id")
    last_run_id: Mapped[int] = foreign_key("sync_run.id")


class EditRequest(Base):
    """What is owed: the durable queue of edits. Its key includes the statements' revisions."""

    __tablename__ = "edit_request"
    __table_args__ = (
        one_of("op", "insert", "replace", "retract", "suppress"),
        one_of("state", "pending", "claimed", "applied", "superseded", "failed", "rolled_back"),
        CheckConstraint("(op = 'retract') = (value IS NULL)", name="value"),
        CheckConstraint("state <> 'claimed' OR checkpoint_id IS NOT NULL", name="claim"),
        CheckConstraint("attempts >= 0", name="attempts"),
        UniqueConstraint("model_id", "idem_key"),
        Index("uq_edit_request_pending", "model_id", "fact_id", unique=True, **where("state = 'pending'")),
        Index("uq_edit_request_claimed", "model_id", "fact_id", unique=True, **where("state = 'claimed'")),
        Index("ix_edit_request_owed", "model_id", "id", **where("state = 'pending'")),
        Index("ix_edit_request_checkpoint_id", "checkpoint_id", **where("state = 'claimed'")),
        STRICT,
    )

    id: Mapped[int] = key()
    model_id: Mapped[int] = foreign_key("model.id")
    fact_id: Mapped[int] = foreign_key("fact.id", index=True)
    run_id: Mapped[int] = foreign_key("sync_run.id", index=True)
    change_id: Mapped[int | None] = foreign_key("change.id", index=True)
    checkpoint_id: Mapped[int | None] = foreign_key("checkpoint.id")
    idem_key: Mapped[str]
    op: Mapped[str]
    state: Mapped[str]
    attempts: Mapped[int]
    subject_label: Mapped[str]
    target: Mapped[str]
    prompts: Mapped[dict[str, Any]] = mapped_column(Doc)
    heldback: Mapped[dict[str, Any]] = mapped_column(Doc)
    value_kind: Mapped[str | None]
    value: Mapped[str | None]
    old_value: Mapped[str | None]
    old_label: Mapped[str | None]
    valid_from: Mapped[str | None]
    template_digest: Mapped[str]
    error: Mapped[str | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class RequestSource(Base):
    """The statements behind a request: the version in this ledger and the revision it was read at."""

    __tablename__ = "request_source"
    __table_args__ = (
        Index("ix_request_source_statement_id", "statement_id"),
        Index("ix_request_source_guid", "guid"),
        STRICT,
    )

    request_id: Mapped[int] = mapped_column(Key, ForeignKey("edit_request.id"), primary_key=True)
    statement_id: Mapped[int] = mapped_column(Key, ForeignKey("statement.id"), primary_key=True)
    guid: Mapped[str]
    revision: Mapped[int] = mapped_column(Key)
