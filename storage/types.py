"""Column types that mean the same on SQLite (STRICT tables) and PostgreSQL."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import REAL, BigInteger, Boolean, Integer, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

Key = BigInteger().with_variant(Integer, "sqlite")
"""Integer keys: 64 bits on both."""

Real: TypeEngine[float] = REAL().with_variant(postgresql.DOUBLE_PRECISION(), "postgresql")
"""Double precision on both."""


def to_text(moment: datetime) -> str:
    """Write a moment as sortable text, `2026-11-23T00:00:00.000000Z`.

    Raises:
        ValueError: If the moment carries no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("A moment without a time zone cannot enter the ledger.")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Moment(TypeDecorator[datetime]):
    """A moment in UTC: text on SQLite (sorts as time does), `timestamptz` on PostgreSQL."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type of the database."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ANN401  what the driver takes
        """Refuse moments without a zone; write UTC."""
        if value is None:
            return None
        text = to_text(value)
        return value.astimezone(UTC) if dialect.name == "postgresql" else text

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ANN401  what the driver gives
        """Read an aware moment in UTC."""
        if value is None:
            return None
        if dialect.name == "postgresql":
            value = value.astimezone(UTC)
        return value if isinstance(value, datetime) else datetime.fromisoformat(value)


class Doc(TypeDecorator[Any]):
    """A JSON document: text on SQLite, `jsonb` on PostgreSQL."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type of the database."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.JSONB())
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:  # noqa: ANN401  any JSON
        """Write canonical JSON (sorted keys), so that equal documents are equal texts."""
        if value is None or dialect.name == "postgresql":
            return value
        return dump(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:  # noqa: ANN401  any JSON
        """Read the document."""
        if value is None or dialect.name == "postgresql":
            return value
        return json.loads(value)


class Flag(TypeDecorator[bool]):
    """True or false: 1 or 0 on SQLite, `boolean` on PostgreSQL. `WHERE passed` is right on both."""

    impl = Integer
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type of the database."""
        return dialect.type_descriptor(Boolean() if dialect.name == "postgresql" else Integer())

    def process_bind_param(self, value: bool | None, dialect: Dialect) -> Any:  # noqa: ANN401  what the driver takes
        """Write the flag."""
        if value is None or dialect.name == "postgresql":
            return value
        return int(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> bool | None:  # noqa: ANN401  what the driver gives
        """Read the flag."""
        del dialect
        return None if value is None else bool(value)


# Made once: `json.dumps` with these arguments makes an encoder a call.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def dump(value: object) -> str:
    """Write canonical JSON: sorted keys, no spaces, no NaN."""
    return _ENCODER.encode(value)
