"""Which fact a record speaks of: its scope (subject, property, slot), and the key of that scope."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select, tuple_

from storage.batching import batches
from storage.database import insert_or_ignore
from storage.schema.planned import Fact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Connection

Scope = tuple[str, str, str]


def scope(row: Any) -> Scope:  # noqa: ANN401  any record with a scope
    """The scope of a fact that a record speaks of."""
    return row.subject, row.property, row.slot


def ensure_facts(connection: Connection, scopes: Iterable[Scope]) -> dict[Scope, int]:
    """Give every scope its fact, and the facts' keys."""
    ordered = sorted(scopes)
    if ordered:
        connection.execute(
            insert_or_ignore(connection, Fact),
            [{"subject": subject, "property": prop, "slot": slot} for subject, prop, slot in ordered],
        )
    return fact_ids(connection, ordered)


def fact_ids(connection: Connection, scopes: Iterable[Scope]) -> dict[Scope, int]:
    """Find the keys of the facts that exist among these scopes."""
    found = {}
    for part in batches(scopes, 200):
        query = select(Fact).where(tuple_(Fact.subject, Fact.property, Fact.slot).in_(part))
        for row in connection.execute(query):
            found[row.subject, row.property, row.slot] = row.id
    return found
