"""The ledger's own words, by subject: plain frozen records, no types of any other package.

`flows` maps what kb and editor say onto these (`translate.py`, `planning.py`, `writing.py`, `checking.py`).
Here stand the words that all subjects share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]

Source = tuple[str, int]
"""A statement's id and the item revision at which it was read."""

Pair = tuple[str, str]
"""(subject, property): the group of statements that is pulled and reviewed as one."""
