"""What the plan step reads: which groups to look at, and all that a plan needs of each, a page at a time.

Eight queries a page, however many groups it holds; six where no flips are asked for.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, literal, select, tuple_, union

from storage.batching import batches
from storage.database import insert_or_ignore, reading
from storage.facts import held_rows
from storage.held_back import lately_gone, pending_rows
from storage.records.planned import Group
from storage.records.pulled import EntityRow, StatementRow
from storage.schema.planned import Fact, HeldBack
from storage.schema.pulled import Entity, Review, Statement
from storage.types import Moment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection, Engine

    from storage.records import Pair


def pairs_to_review(connection: Connection, model_id: int) -> set[Pair]:
    """List the groups that a plan must look at: those marked, and those in which something waits."""
    marked = select(Review.subject, Review.property).where(Review.model_id == model_id)
    waiting = (
        select(Fact.subject, Fact.property)
        .join(HeldBack, HeldBack.fact_id == Fact.id)
        .where(HeldBack.model_id == model_id, HeldBack.resolved_at.is_(None))
    )
    rows = connection.execute(union(marked.order_by(None), waiting))
    return {(row.subject, row.property) for row in rows}


def groups(
    engine: Engine, model_id: int, pairs: Iterable[Pair], page_size: int, gone_since: datetime | None = None
) -> Iterator[Group]:
    """Yield the named groups, known or not, in order of (subject, property).

    Args:
        engine: The ledger's engine; each page is its own short read, so no long transaction stands open.
        model_id: The model.
        pairs: Which groups.
        page_size: Groups a page.
        gone_since: Since when a value must have gone to be among the `gone`; without it, none is.

    Yields:
        Each group with all that the plan needs of it; one that the ledger does not know is empty.
    """
    for page in batches(sorted(set(pairs)), page_size):
        with reading(engine) as connection:
            found = _fill(connection, model_id, list(page), gone_since)
        yield from found


def _fill(
    connection: Connection, model_id: int, page: Sequence[Pair], gone_since: datetime | None
) -> list[Group]:
    if not page:
        return []
    statements = current_statements(connection, page)
    live = list(held_rows(connection, model_id, _subjects(page)))
    held = _by_pair(live)
    taught: dict[str, set[str]] = defaultdict(set)
    for row in live:
        taught[row.subject].add(row.subject_label)
    pending = _by_pair(pending_rows(connection, model_id, _subjects(page)))
    wanted = _subjects(page) | {
        row.value for rows in statements.values() for row in rows if row.value_kind == "item"
    }
    entities = entity_rows(connection, wanted)
    merged = {row.redirect_to for row in entities.values() if row.redirect_to}
    entities |= entity_rows(connection, merged - entities.keys())
    marks = _marks(connection, model_id, page)
    gone: dict[Pair, dict[str, frozenset[str]]] = defaultdict(dict)
    if gone_since is not None:
        for (subject, prop, slot), values in lately_gone(
            connection, model_id, _subjects(page), gone_since
        ).items():
            gone[subject, prop][slot] = frozenset(values)
    return [
        Group(
            subject=subject,
            property=prop,
            entity=entities.get(subject, EntityRow(subject)),
            statements=tuple(statements.get((subject, prop), ())),
            held=tuple(held.get((subject, prop), ())),
            pending=tuple(pending.get((subject, prop), ())),
            labels=_named(statements.get((subject, prop), ()), entities),
            marks=marks.get((subject, prop), 0),
            taught=frozenset(taught.get(subject, ())),
            gone=gone.get((subject, prop), {}),
        )
        for subject, prop in page
    ]


def _named(statements: Iterable[StatementRow], entities: Mapping[str, EntityRow]) -> dict[str, EntityRow]:
    """The items among the values, and those that they were merged into."""
    values = {row.value for row in statements if row.value_kind == "item"}
    known = [entities[value] for value in values if value in entities]
    targets = {row.redirect_to for row in known if row.redirect_to}
    return {row.id: row for row in (*known, *(entities[one] for one in targets if one in entities))}


def _marks(connection: Connection, model_id: int, page: Sequence[Pair]) -> dict[Pair, int]:
    found: dict[Pair, int] = {}
    for part in batches(page):
        query = select(Review).where(
            Review.model_id == model_id, tuple_(Review.subject, Review.property).in_(part)
        )
        found.update({(row.subject, row.property): row.marks for row in connection.execute(query)})
    return found


def _subjects(page: Iterable[Pair]) -> set[str]:
    return {subject for subject, _ in page}


def _by_pair(rows: Iterable[Any]) -> Mapping[Pair, list[Any]]:
    found: dict[Pair, list[Any]] = defaultdict(list)
    for row in rows:
        found[row.subject, row.property].append(row)
    return found


def current_statements(connection: Connection, page: Sequence[Pair]) -> Mapping[Pair, list[StatementRow]]:
    """Read the statements that stand now for some groups, in order of their ids."""
    found: dict[Pair, list[StatementRow]] = defaultdict(list)
    for part in batches(page):
        rows = connection.execute(
            select(Statement)
            .where(tuple_(Statement.subject, Statement.property).in_(part), Statement.seen_to.is_(None))
            .order_by(Statement.guid)
        )
        for row in rows:
            found[row.subject, row.property].append(_statement(row))
    return found


def _statement(row: Row[Any]) -> StatementRow:
    return StatementRow(
        id=row.guid,
        subject=row.subject,
        property=row.property,
        value_kind=row.value_kind,
        value=row.value,
        rank=row.rank,
        revision=row.revision,
        content_hash=row.content_hash,
        qualifiers=row.qualifiers,
        reference_count=row.reference_count,
        valid_from=row.valid_from,
        valid_to=row.valid_to,
    )


def entity_rows(connection: Connection, ids: Iterable[str]) -> dict[str, EntityRow]:
    """Read what is known of some items."""
    found = {}
    for part in batches(sorted(ids)):
        for row in connection.execute(select(Entity).where(Entity.id.in_(part))):
            found[row.id] = entity(row)
    return found


def entity(row: Row[Any]) -> EntityRow:
    """Read one item's row."""
    return EntityRow(
        row.id, row.label, row.language, row.revision, row.modified_at, row.redirect_to, bool(row.deleted)
    )


def mark_all(connection: Connection, model_id: int, now: datetime) -> None:
    """Mark every group that stands for review: a new model has looked at none."""
    known = (
        select(literal(model_id), Statement.subject, Statement.property, literal(now, Moment()))
        .where(Statement.seen_to.is_(None))
        .distinct()
    )
    columns = ["model_id", "subject", "property", "marked_at"]
    connection.execute(insert_or_ignore(connection, Review).from_select(columns, known))
