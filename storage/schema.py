"""The tables. Users query the views (`views.sql`), which are a contract; these may change with a migration.

Every constraint has a name, so that migrations can find it on both databases. Constraints are in the
database, not in hope: one open checkpoint and one promoted checkpoint a model, one live fact a scope, one
pending request a fact, one current version of a statement.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer, MetaData, Text, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.types import Doc, Flag, Key, Moment, Real

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """All tables; STRICT on SQLite, so that a column holds what it says."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        int: Integer,
        float: Real,
        bool: Flag,
        datetime: Moment,
        dict[str, Any]: Doc,
    }


def _key() -> Mapped[int]:
    return mapped_column(Key, primary_key=True)


def _fk(target: str, *, index: bool = False) -> Any:  # noqa: ANN401  mapped_column of any nullability
    return mapped_column(Key, ForeignKey(target), index=index)


def _one_of(column: str, *words: str) -> CheckConstraint:
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


_STRICT: dict[str, Any] = {"sqlite_strict": True}


class LedgerMeta(Base):
    """What the ledger remembers about itself: which version of the views stands."""

    __tablename__ = "ledger_meta"
    __table_args__ = (_STRICT,)

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Model(Base):
    """A language model; the head and the fencing epoch."""

    __tablename__ = "model"
    __table_args__ = (UniqueConstraint("name"), CheckConstraint("lock_epoch >= 0", name="epoch"), _STRICT)

    id: Mapped[int] = _key()
    name: Mapped[str]
    base_ref: Mapped[str]
    base_digest: Mapped[str]
    head_checkpoint_id: Mapped[int | None] = mapped_column(
        Key, ForeignKey("checkpoint.id", use_alter=True, name="fk_model_head_checkpoint_id")
    )
    lock_epoch: Mapped[int] = mapped_column(Key, server_default="0")
    holder: Mapped[str | None]
    held_since: Mapped[datetime | None]
    created_at: Mapped[datetime]


class SyncRun(Base):
    """One run of a flow."""

    __tablename__ = "sync_run"
    __table_args__ = (
        _one_of(
            "state", "running", "succeeded", "nothing", "rejected", "held", "candidate", "failed", "crashed"
        ),
        CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
        Index("ix_sync_run_running", "model_id", **_where("state = 'running'")),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id", index=True)
    kind: Mapped[str]
    flow_run_id: Mapped[str | None]
    reference_time: Mapped[datetime]
    params: Mapped[dict[str, Any]]
    state: Mapped[str]
    epoch: Mapped[int] = mapped_column(Key)
    source: Mapped[str | None]
    cursor_from: Mapped[datetime | None]
    cursor_to: Mapped[datetime | None]
    counters: Mapped[dict[str, Any]]
    error: Mapped[str | None]
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class SourceCursor(Base):
    """What was read of a source; moves only in the transaction that stores what was pulled."""

    __tablename__ = "source_cursor"
    __table_args__ = (CheckConstraint("lag_at IS NULL OR read_to <= lag_at", name="lag"), _STRICT)

    source: Mapped[str] = mapped_column(primary_key=True)
    read_to: Mapped[datetime]
    lag_at: Mapped[datetime | None]
    run_id: Mapped[int] = _fk("sync_run.id")
    updated_at: Mapped[datetime]


class Entity(Base):
    """An item: its label now, its revision, whether it was merged or deleted."""

    __tablename__ = "entity"
    __table_args__ = (Index("ix_entity_tracked", "id", **_where("tracked")), _STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str | None]
    language: Mapped[str | None]
    revision: Mapped[int | None] = mapped_column(Key)
    modified_at: Mapped[datetime | None]
    redirect_to: Mapped[str | None]
    deleted: Mapped[bool]
    tracked: Mapped[bool]
    pulled_at: Mapped[datetime | None]
    run_id: Mapped[int | None] = _fk("sync_run.id")


class Statement(Base):
    """One version of a statement: open (`seen_to` null) while it stands, closed when it changed or went."""

    __tablename__ = "statement"
    __table_args__ = (
        _one_of("rank", "preferred", "normal", "deprecated"),
        _one_of("ending", "changed", "deleted"),
        CheckConstraint("(seen_to IS NULL) = (ending IS NULL)", name="ended"),
        Index("uq_statement_current", "guid", unique=True, **_where("seen_to IS NULL")),
        Index("ix_statement_closed", "guid", **_where("seen_to IS NOT NULL")),
        Index("ix_statement_group", "subject", "property"),
        Index("ix_statement_item", "value", **_where("seen_to IS NULL AND value_kind = 'item'")),
        _STRICT,
    )

    id: Mapped[int] = _key()
    guid: Mapped[str]
    subject: Mapped[str]
    property: Mapped[str]
    value_kind: Mapped[str]
    value: Mapped[str]
    rank: Mapped[str]
    revision: Mapped[int] = mapped_column(Key)
    content_hash: Mapped[str]
    qualifiers: Mapped[dict[str, Any]]
    reference_count: Mapped[int]
    valid_from: Mapped[str | None]
    valid_to: Mapped[str | None]
    seen_from: Mapped[datetime]
    seen_to: Mapped[datetime | None]
    ending: Mapped[str | None]
    # No foreign keys: two look-ups a row would slow bulk ingests, and the same transaction checked the run.
    first_run_id: Mapped[int] = mapped_column(Key)
    last_run_id: Mapped[int | None] = mapped_column(Key)


class Review(Base):
    """A (subject, property) of which something changed and that no plan has looked at since."""

    __tablename__ = "review"
    __table_args__ = (_STRICT,)

    model_id: Mapped[int] = mapped_column(Key, ForeignKey("model.id"), primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    marked_at: Mapped[datetime]


class Fact(Base):
    """The scope of a fact: (subject, property, slot)."""

    __tablename__ = "fact"
    __table_args__ = (UniqueConstraint("subject", "property", "slot"), _STRICT)

    id: Mapped[int] = _key()
    subject: Mapped[str]
    property: Mapped[str] = mapped_column(index=True)
    slot: Mapped[str]


class DesiredFact(Base):
    """What a model should hold, in two times: valid_* in Wikidata, known_* in this ledger."""

    __tablename__ = "desired_fact"
    __table_args__ = (
        Index("uq_desired_fact_current", "model_id", "fact_id", unique=True, **_where("known_to IS NULL")),
        CheckConstraint("known_to IS NULL OR known_to >= known_from", name="known"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id")
    fact_id: Mapped[int] = _fk("fact.id", index=True)
    value_kind: Mapped[str | None]
    value: Mapped[str]
    label: Mapped[str | None]
    valid_from: Mapped[str | None]
    valid_to: Mapped[str | None]
    known_from: Mapped[datetime]
    known_to: Mapped[datetime | None]
    run_id: Mapped[int] = _fk("sync_run.id")


class Change(Base):
    """What a plan decided about one fact, and why. `unchanged` is only counted."""

    __tablename__ = "change"
    __table_args__ = (
        _one_of(
            "kind", "insert", "replace", "retract", "suppress", "relabel", "vacate", "conflict", "quarantine"
        ),
        UniqueConstraint("run_id", "fact_id", "kind"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id")
    run_id: Mapped[int] = _fk("sync_run.id")
    fact_id: Mapped[int] = _fk("fact.id", index=True)
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
        _one_of("kind", "conflict", "quarantine"),
        _one_of("decision", "approved", "blocked"),
        _one_of("resolution", "released", "withdrawn", "replaced"),
        CheckConstraint("(resolved_at IS NULL) = (resolution IS NULL)", name="resolved"),
        CheckConstraint("sightings >= 1", name="sightings"),
        Index("uq_held_back_open", "model_id", "fact_id", unique=True, **_where("resolved_at IS NULL")),
        Index("ix_held_back_seen", "model_id", "first_seen_at"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id")
    fact_id: Mapped[int] = _fk("fact.id", index=True)
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
    first_run_id: Mapped[int] = _fk("sync_run.id")
    last_run_id: Mapped[int] = _fk("sync_run.id")


class EditRequest(Base):
    """What is owed: the durable queue of edits. Its key includes the statements' revisions."""

    __tablename__ = "edit_request"
    __table_args__ = (
        _one_of("op", "insert", "replace", "retract", "suppress"),
        _one_of("state", "pending", "claimed", "applied", "superseded", "failed", "rolled_back"),
        CheckConstraint("(op = 'retract') = (value IS NULL)", name="value"),
        CheckConstraint("state <> 'claimed' OR checkpoint_id IS NOT NULL", name="claim"),
        CheckConstraint("attempts >= 0", name="attempts"),
        UniqueConstraint("model_id", "idem_key"),
        Index("uq_edit_request_pending", "model_id", "fact_id", unique=True, **_where("state = 'pending'")),
        Index("uq_edit_request_claimed", "model_id", "fact_id", unique=True, **_where("state = 'claimed'")),
        Index("ix_edit_request_owed", "model_id", "id", **_where("state = 'pending'")),
        Index("ix_edit_request_checkpoint_id", "checkpoint_id", **_where("state = 'claimed'")),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id")
    fact_id: Mapped[int] = _fk("fact.id", index=True)
    run_id: Mapped[int] = _fk("sync_run.id", index=True)
    change_id: Mapped[int | None] = _fk("change.id")
    checkpoint_id: Mapped[int | None] = _fk("checkpoint.id")
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
    valid_to: Mapped[str | None]
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
        _STRICT,
    )

    request_id: Mapped[int] = mapped_column(Key, ForeignKey("edit_request.id"), primary_key=True)
    statement_id: Mapped[int] = mapped_column(Key, ForeignKey("statement.id"), primary_key=True)
    guid: Mapped[str]
    revision: Mapped[int] = mapped_column(Key)


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
        _one_of(
            "state", "building", "candidate", "promoted", "superseded", "rejected", "rolled_back", "abandoned"
        ),
        CheckConstraint(
            "digest IS NOT NULL OR state IN ('building', 'abandoned', 'rejected')", name="digest"
        ),
        CheckConstraint("parent_id <> id", name="parent"),
        Index("uq_checkpoint_open", "model_id", unique=True, **_where("state IN ('building', 'candidate')")),
        Index("uq_checkpoint_promoted", "model_id", unique=True, **_where("state = 'promoted'")),
        Index(
            "uq_checkpoint_digest",
            "model_id",
            "digest",
            unique=True,
            **_where("state IN ('candidate', 'promoted', 'superseded')"),
        ),
        Index("ix_checkpoint_digest", "digest"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id", index=True)
    parent_id: Mapped[int | None] = _fk("checkpoint.id", index=True)
    run_id: Mapped[int] = _fk("sync_run.id", index=True)
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
    __table_args__ = (Index("ix_subject_state_subject", "subject", "checkpoint_id"), _STRICT)

    checkpoint_id: Mapped[int] = mapped_column(Key, ForeignKey("checkpoint.id"), primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)


class Edit(Base):
    """One fact in one checkpoint: what was done and how it came out."""

    __tablename__ = "edit"
    __table_args__ = (
        _one_of("op", "insert", "replace", "retract", "suppress"),
        _one_of("status", "planned", "written", "applied", "failed", "dropped"),
        UniqueConstraint("checkpoint_id", "fact_id"),
        Index("ix_edit_fact_id", "fact_id", "id"),
        Index("ix_edit_request_id", "request_id"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    checkpoint_id: Mapped[int] = _fk("checkpoint.id")
    fact_id: Mapped[int] = _fk("fact.id")
    request_id: Mapped[int] = _fk("edit_request.id")
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
    error: Mapped[str | None]


class RecallCheck(Base):
    """One measured answer."""

    __tablename__ = "recall_check"
    __table_args__ = (
        UniqueConstraint("checkpoint_id", "probe", "fact_id", "idx"),
        Index("ix_recall_check_fact_id", "fact_id", "checkpoint_id"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    checkpoint_id: Mapped[int] = _fk("checkpoint.id")
    fact_id: Mapped[int | None] = _fk("fact.id")
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
    __table_args__ = (Index("ix_recall_summary_property", "property", "checkpoint_id"), _STRICT)

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
        Index("uq_holding_live", "model_id", "fact_id", unique=True, **_where("held_to IS NULL")),
        Index("ix_holding_fact_id", "fact_id", "held_from"),
        Index("ix_holding_held_from", "held_from"),
        CheckConstraint("held_to IS NULL OR held_to >= held_from", name="held"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id")
    fact_id: Mapped[int] = _fk("fact.id")
    edit_id: Mapped[int] = _fk("edit.id", index=True)
    held_from: Mapped[datetime]
    held_to: Mapped[datetime | None]


class HeadMove(Base):
    """Every move of a model's head: promotions and rollbacks."""

    __tablename__ = "head_move"
    __table_args__ = (
        _one_of("kind", "promote", "rollback"),
        Index("ix_head_move_moved_at", "model_id", "moved_at"),
        _STRICT,
    )

    id: Mapped[int] = _key()
    model_id: Mapped[int] = _fk("model.id")
    from_checkpoint_id: Mapped[int | None] = _fk("checkpoint.id")
    to_checkpoint_id: Mapped[int | None] = _fk("checkpoint.id")
    kind: Mapped[str]
    reason: Mapped[str]
    epoch: Mapped[int] = mapped_column(Key)
    moved_at: Mapped[datetime]
