"""A feed over entity documents, with the same rows as the SPARQL feed gives for the same content."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kb.documents import Document
from kb.endpoint import Properties
from kb.errors import EmptySourceError
from kb.labels import CHAIN, choose
from kb.model import Label, Probe, Rank, Statement, entity_id, id_order

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from kb.errors import BadEntityError
    from kb.relations import Relation
    from kb.rows import Skipped


class DocumentFeed:
    """Answers from documents held in memory: a dump's lines, or fetched entity data."""

    def __init__(
        self,
        documents: Iterable[Document | BadEntityError],
        *,
        until: datetime | None = None,
        relations: Mapping[str, Relation] | None = None,
        properties: Properties | None = None,
        languages: Sequence[str] = CHAIN,
    ) -> None:
        """Take the documents in.

        Args:
            documents: as `kb.documents.read_file` gives them; of several of one entity the newest revision
                counts.
            until: the moment up to which they are complete; by default the newest modification date among
                them.
            relations: consulted for ``not_values``.
            properties: the Wikibase's property ids.
            languages: label chain.
        """
        self._documents: dict[str, Document] = {}
        self._redirects: dict[str, str] = {}
        self.problems: list[BadEntityError] = []
        self.skipped: list[Skipped] = []
        for one in documents:
            if isinstance(one, Document):
                self._take(one)
            else:
                self.problems.append(one)
        self.revisions = {entity: one.revision for entity, one in self._documents.items() if one.revision}
        self._until = until
        self._relations = relations or {}
        self._properties = properties or Properties()
        self._languages = tuple(languages)

    def _take(self, one: Document) -> None:
        entity = one.entity
        if one.target is not None:
            self._redirects[one.entity] = one.target
            entity = one.target
            if not (one.revision or one.statements or one.labels):
                return
        known = self._documents.get(entity)
        if known is None or known.missing or one.revision >= known.revision:
            self._documents[entity] = one

    def lag(self) -> datetime:
        """See `kb.feed.ChangeFeed.lag`.

        Raises:
            EmptySourceError: no document is dated and no date was given.
        """
        dates = [one.modified_at for one in self._documents.values() if one.modified_at is not None]
        if self._until is not None:
            return self._until.astimezone(UTC)
        if not dates:
            raise EmptySourceError("No document says when it was modified; name a date.", url="documents")
        return max(dates)

    def probe(self, ids: Collection[str]) -> list[Probe]:
        """See `kb.feed.ChangeFeed.probe`."""
        found = []
        for entity in sorted({entity_id(one) for one in ids}, key=id_order):
            one = self._documents.get(entity)
            target = self._redirects.get(entity)
            if one is None or one.missing:
                found.append(Probe(entity, None, None, target))
            else:
                found.append(Probe(entity, one.revision, one.modified_at, target))
        return found

    def discover(self, since: datetime, until: datetime, relations: Iterable[Relation]) -> list[str]:
        """See `kb.feed.ChangeFeed.discover`."""
        wanted = list(relations)
        found = []
        for entity, one in self._documents.items():
            dated = one.modified_at
            if not entity.startswith("Q") or dated is None or not since <= dated < until:
                continue
            properties = {statement.property for statement in one.statements}
            if any(
                relation.property in properties
                and (not relation.classes or self.instances([entity], relation.classes))
                for relation in wanted
            ):
                found.append(entity)
        return sorted(found, key=id_order)

    def statements(self, ids: Collection[str], properties: Collection[str]) -> list[Statement]:
        """See `kb.feed.ChangeFeed.statements`."""
        wanted = {entity_id(one) for one in properties}
        asked = {entity_id(one) for one in ids}
        documents = [one for entity, one in self._documents.items() if entity in asked]
        self.skipped += [row for one in documents for row in one.skipped if row.property in {*wanted, ""}]
        found = [
            statement
            for one in documents
            for statement in one.statements
            if statement.property in wanted and self._in_scope(statement)
        ]
        return sorted(found, key=lambda one: (id_order(one.property), id_order(one.subject), one.id))

    def labels(self, ids: Collection[str]) -> dict[str, Label]:
        """See `kb.feed.ChangeFeed.labels`."""
        found = {}
        for entity in sorted({entity_id(one) for one in ids}, key=id_order):
            one = self._documents.get(entity)
            choice = choose(one.labels, self._languages) if one is not None else None
            if choice is not None:
                found[entity] = Label(entity, *choice)
        return found

    def instances(self, ids: Collection[str], classes: Collection[str]) -> set[str]:
        """Those of the given items that belong to one of the classes, as far as the documents tell."""
        return {one for one in ids if self._reaches(one, set(classes))}

    def _reaches(self, entity: str, classes: set[str]) -> bool:
        seen: set[str] = set()
        ahead = self._best(entity, self._properties.instance_of)
        while ahead:
            if ahead & classes:
                return True
            seen |= ahead
            ahead = {up for one in ahead for up in self._best(one, self._properties.subclass_of)} - seen
        return False

    def _best(self, entity: str, prop: str) -> set[str]:
        """Values of best rank, as ``wdt:`` has them."""
        one = self._documents.get(entity)
        rows = [row for row in one.statements if row.property == prop] if one is not None else []
        best = [row for row in rows if row.rank is Rank.PREFERRED] or [
            row for row in rows if row.rank is Rank.NORMAL
        ]
        return {row.value.canonical for row in best if row.value.kind.value == "item"}

    def _in_scope(self, statement: Statement) -> bool:
        relation = self._relations.get(statement.property)
        if relation is None or not relation.not_values or statement.value.kind.value != "item":
            return True
        return not self.instances([statement.value.canonical], relation.not_values)
