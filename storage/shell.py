"""The read-only shell: any SELECT, no writes, on a connection that could not write if it wanted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from storage.database import make_reader, translate
from storage.errors import QueryRefusedError, TransientLedgerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import URL


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Rows of a read-only query.

    Attributes:
        columns: Names of the columns.
        rows: The rows.
        truncated: True if there were more rows than asked for.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    truncated: bool

    @property
    def dicts(self) -> list[dict[str, Any]]:
        """The rows by the names of their columns."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def query(
    url: URL, sql: str, parameters: Mapping[str, Any], *, limit: int | None, timeout_s: float
) -> QueryResult:
    """Run one statement that reads.

    Args:
        url: The ledger.
        sql: The statement; `:name` marks a bound value.
        parameters: The bound values.
        limit: Rows to return at most, None for all.
        timeout_s: PostgreSQL stops the query after this long.

    Returns:
        Its rows.

    Raises:
        QueryRefusedError: If it would write, or does not run.
        TransientLedgerError: If the database is busy or away.
    """
    statement = text(sql.strip().rstrip(";"))
    missing = sorted(statement.compile().params.keys() - parameters.keys())
    if missing:
        raise QueryRefusedError(
            f"The query needs values for {', '.join(missing)}: give each of them (`--set {missing[0]}=...`)."
        )
    engine = make_reader(url, statement_timeout_s=timeout_s)
    try:
        with engine.connect() as connection, connection.begin():
            result = connection.execute(statement, dict(parameters))
            if not result.returns_rows:
                raise QueryRefusedError("The shell only reads: write a SELECT.")
            rows = result.fetchall() if limit is None else result.fetchmany(limit + 1)
            columns = tuple(result.keys())
    except DBAPIError as error:
        known = translate(error)
        if isinstance(known, TransientLedgerError):
            raise known from error
        first = str(error.orig).splitlines()[0] if str(error.orig) else type(error.orig).__name__
        raise QueryRefusedError(
            f"The query was refused: {first.rstrip('.')}. The views are described in docs/ledger.md."
        ) from error
    except SQLAlchemyError as error:
        raise QueryRefusedError(f"The query cannot be run: {error}.") from error
    finally:
        engine.dispose()
    truncated = limit is not None and len(rows) > limit
    return QueryResult(columns, tuple(tuple(row) for row in rows[:limit]), truncated)
