"""Cut long sequences into parts that fit one statement."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Row, Select
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import InstrumentedAttribute

T = TypeVar("T")

IDS_A_QUERY = 400
"""Well below the number of bound values that any supported SQLite takes."""


def batches(items: Iterable[T], size: int = IDS_A_QUERY) -> Iterator[tuple[T, ...]]:
    """Yield the items in tuples of at most `size`."""
    iterator = iter(items)
    while part := tuple(islice(iterator, size)):
        yield part


def selected(
    connection: Connection,
    query: Select[Any],
    column: InstrumentedAttribute[str],
    wanted: Iterable[str] | None,
) -> Iterator[Row[Any]]:
    """Run a query for some values of a column, in parts and their order, or for all when `wanted` is None."""
    if wanted is None:
        yield from connection.execute(query)
        return
    for part in batches(sorted(wanted)):
        yield from connection.execute(query.where(column.in_(part)))
