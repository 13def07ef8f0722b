"""What was read from Wikidata, and which groups no plan has looked at since."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from storage.schema.base import STRICT, Base, foreign_key, key, one_of, where
from storage.types import Key


class SourceCursor(Base):
    """What was read of a source; moves only in the transaction that stores what was pulled."""

    __tablename__ = "source_cursor"
    __table_args__ = (CheckConstraint("lag_at IS NULL OR read_to <= lag_at", name="lag"), STRICT)

    source: Mapped[str] = mapped_column(primary_key=True)
    read_to: Mapped[datetime]
    lag_at: Mapped[datetime | None]
    run_id: Mapped[int] = foreign_key("sync_run.id")
    updated_at: Mapped[datetime]


class Entity(Base):
    """An item: its label now, its revision, whether it was merged or deleted."""

    __tablename__ = "entity"
    __table_args__ = (Index("ix_entity_tracked", "id", **where("tracked")), STRICT)

    id: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str | None]
    language: Mapped[str | None]
    revision: Mapped[int | None] = mapped_column(Key)
    modified_at: Mapped[datetime | None]
    redirect_to: Mapped[str | None]
    deleted: Mapped[bool]
    tracked: Mapped[bool]
    pulled_at: Mapped[datetime | None]
    run_id: Mapped[int | None] = foreign_key("sync_run.id")


class Statement(Base):
    """One version of a statement: open (`seen_to` null) while it stands, closed when it changed or went."""

    __tablename__ = "statement"
    __table_args__ = (
        one_of("rank", "preferred", "normal", "deprecated"),
        one_of("ending", "changed", "deleted"),
        CheckConstraint("(seen_to IS NULL) = (ending IS NULL)", name="ended"),
        Index("uq_statement_current", "guid", unique=True, **where("seen_to IS NULL")),
        Index("ix_statement_closed", "guid", **where("seen_to IS NOT NULL")),
        Index("ix_statement_group", "subject", "property"),
        Index("ix_statement_item", "value", **where("seen_to IS NULL AND value_kind = 'item'")),
        STRICT,
    )

    id: Mapped[int] = key()
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
    """A (subject, property) of which something changed and that no plan has looked at since.

    The marks are counted, so that a plan clears those it has seen and none that came after it had read.
    """

    __tablename__ = "review"
    __table_args__ = (STRICT,)

    model_id: Mapped[int] = mapped_column(Key, ForeignKey("model.id"), primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    property: Mapped[str] = mapped_column(primary_key=True)
    marks: Mapped[int] = mapped_column(server_default="1")
    marked_at: Mapped[datetime]
