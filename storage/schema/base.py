"""What all tables share: the base class with its types and names, and shorthand for their columns."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, ForeignKey, Integer, MetaData, Text, text
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


def key() -> Mapped[int]:
    """Make the column of a surrogate key."""
    return mapped_column(Key, primary_key=True)


def foreign_key(target: str, *, index: bool = False) -> Any:  # noqa: ANN401  mapped_column of any nullability
    """Make a column that names a row of another table."""
    return mapped_column(Key, ForeignKey(target), index=index)


def one_of(column: str, *words: str) -> CheckConstraint:
    """Let a column hold only these words."""
    listed = ", ".join(f"'{word}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=column)


def where(condition: str) -> dict[str, Any]:
    """Make an index partial, alike on both databases."""
    return {"sqlite_where": text(condition), "postgresql_where": text(condition)}


STRICT: dict[str, Any] = {"sqlite_strict": True}
