"""Models, the runs that write them, and what the ledger remembers about itself."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from storage.schema.base import STRICT, Base, foreign_key, key, one_of, where
from storage.types import Key


class LedgerMeta(Base):
    """What the ledger remembers about itself: its id, and which version of the views stands."""

    __tablename__ = "ledger_meta"
    __table_args__ = (STRICT,)

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Model(Base):
    """A language model; the head and the fencing epoch."""

    __tablename__ = "model"
    __table_args__ = (UniqueConstraint("name"), CheckConstraint("lock_epoch >= 0", name="epoch"), STRICT)

    id: Mapped[int] = key()
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
        one_of(
            "state", "running", "succeeded", "nothing", "rejected", "held", "candidate", "failed", "crashed"
        ),
        CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
        Index("ix_sync_run_running", "model_id", **where("state = 'running'")),
        STRICT,
    )

    id: Mapped[int] = key()
    model_id: Mapped[int] = foreign_key("model.id", index=True)
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
