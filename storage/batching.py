"""Cut long sequences into parts that fit one statement."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

IDS_A_QUERY = 400
"""Well below the number of bound values that any supported SQLite takes."""


def batches(items: Iterable[T], size: int = IDS_A_QUERY) -> Iterator[tuple[T, ...]]:
    """Yield the items in tuples of at most `size`."""
    iterator = iter(items)
    while part := tuple(islice(iterator, size)):
        yield part
