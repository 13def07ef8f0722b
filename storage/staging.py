"""Rows on their way in: a temporary table, filled by the fastest road each database has.

SQLite: `executemany` with a generator. PostgreSQL: `COPY`. Neither holds all rows in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from storage.types import to_text

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

Columns = Sequence[tuple[str, str]]
"""Names and types: text, integer, moment, doc or flag."""

_TYPES = {
    "sqlite": {"text": "TEXT", "integer": "INTEGER", "moment": "TEXT", "doc": "TEXT", "flag": "INTEGER"},
    "postgresql": {
        "text": 'text COLLATE "default"',
        "integer": "bigint",
        "moment": "timestamptz",
        "doc": "jsonb",
        "flag": "boolean",
    },
}


def make(connection: Connection, name: str, columns: Columns) -> None:
    """Make an empty temporary table that goes with the transaction.

    Args:
        connection: A writing transaction.
        name: The table's name.
        columns: Its columns.
    """
    dialect = connection.dialect.name
    types = _TYPES[dialect]
    body = ", ".join(f"{column} {types[kind]}" for column, kind in columns)
    ending = " ON COMMIT DROP" if dialect == "postgresql" else ""
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_temporary(dialect)}{name}")
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {name} ({body}){ending}")


def fill(connection: Connection, name: str, columns: Columns, rows: Iterable[Sequence[Any]]) -> int:
    """Put rows into a table made by `make`, in the order of its columns.

    Args:
        connection: The same transaction.
        name: The table.
        columns: Its columns.
        rows: The rows; read once. Documents come as JSON text.

    Returns:
        How many rows went in.
    """
    moments = [index for index, (_, kind) in enumerate(columns) if kind == "moment"]
    # The driver's own connection: SQLAlchemy would build every row twice.
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql":
        with driver.cursor() as cursor:
            with cursor.copy(f"COPY {name} FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
            return int(cursor.rowcount)
    marks = ", ".join("?" * len(columns))
    stream = _texts(rows, moments) if moments else rows
    return int(driver.executemany(f"INSERT INTO {name} VALUES ({marks})", stream).rowcount)


def prepare(connection: Connection, name: str, column: str) -> None:
    """Make a filled table fit to be joined by a column.

    SQLite joins by index only. PostgreSQL hashes, and must know how many rows it would hash.

    Args:
        connection: The same transaction.
        name: The table.
        column: What it will be joined by.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"CREATE INDEX temp.{name}_{column} ON {name} ({column})")
    else:
        connection.exec_driver_sql(f"ANALYZE {name} ({column})")


def drop(connection: Connection, *names: str) -> None:
    """Drop temporary tables before the transaction ends (SQLite keeps them with the connection)."""
    for name in names:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {_temporary(connection.dialect.name)}{name}")


def _temporary(dialect: str) -> str:
    return "temp." if dialect == "sqlite" else "pg_temp."


def _texts(rows: Iterable[Sequence[Any]], moments: Sequence[int]) -> Iterator[Sequence[Any]]:
    for row in rows:
        changed = list(row)
        for index in moments:
            moment: datetime | None = changed[index]
            changed[index] = None if moment is None else to_text(moment)
        yield changed
