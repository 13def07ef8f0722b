"""Statements from ``Special:EntityData``: each changed item's own document, beside an index that finds them.

A query service answers which items changed; the documents of those items come from the wiki itself, which is
never behind. Deleted items are 404, merged ones answer with the document of their target.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from kb.documents import Document, DocumentReader
from kb.errors import BadEntityError, EndpointNotFoundError
from kb.feed import without_excluded
from kb.model import entity_id, id_order
from kb.rows import Skipped
from kb.sparql import Transport

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from kb.budget import BanMemory, Clock
    from kb.document_feed import DocumentFeed
    from kb.endpoint import Endpoint
    from kb.feed import SparqlFeed
    from kb.model import Label, Probe, Statement
    from kb.relations import Relation


class EntityDataFeed:
    """A `kb.feed.ChangeFeed` whose statements are read from documents; all else is asked of the index."""

    def __init__(
        self,
        endpoint: Endpoint,
        index: SparqlFeed | DocumentFeed,
        *,
        relations: Mapping[str, Relation] | None = None,
        clock: Clock | None = None,
        bans: BanMemory | None = None,
    ) -> None:
        """Prepare; sends nothing.

        Args:
            endpoint: where the documents are, such as ``https://www.wikidata.org/wiki/Special:EntityData``;
                its User-Agent, deadline, attempts and parallel requests count. The wiki allows three at once.
            index: finds what changed, and knows labels and classes.
            relations: consulted for ``not_values``, as in `kb.feed.SparqlFeed`.
            clock: time, for tests.
            bans: remembers bans between runs.

        Raises:
            ContactMissingError: the endpoint's User-Agent names no contact.
        """
        self.endpoint = endpoint
        self.index = index
        self.transport = Transport(endpoint, clock=clock, bans=bans)
        self.skipped: list[Skipped] = []
        self.revisions: dict[str, int] = {}
        self._relations = relations or {}
        self._reader = DocumentReader(endpoint.namespaces, endpoint.properties)

    def lag(self) -> datetime:
        """See `kb.feed.ChangeFeed.lag`: the index's, for it names what changed."""
        return self.index.lag()

    def probe(self, ids: Collection[str]) -> list[Probe]:
        """See `kb.feed.ChangeFeed.probe`."""
        return self.index.probe(ids)

    def discover(self, since: datetime, until: datetime, relations: Iterable[Relation]) -> list[str]:
        """See `kb.feed.ChangeFeed.discover`."""
        return self.index.discover(since, until, relations)

    def labels(self, ids: Collection[str]) -> dict[str, Label]:
        """See `kb.feed.ChangeFeed.labels`."""
        return self.index.labels(ids)

    def statements(self, ids: Collection[str], properties: Collection[str]) -> list[Statement]:
        """See `kb.feed.ChangeFeed.statements`. What could not be read is added to ``skipped``.

        So is an item that is deleted or merged here and not yet in the index: it changes nothing, and counts
        as unread, until the index says so too.

        Raises:
            BadEntityError: a document is none. Its item must not pass for one without statements.
            EndpointNotFoundError: of several items that the index knows none has a document: the URL is
                wrong.
            EndpointError: see `kb.sparql.Transport`.
        """
        wanted = {entity_id(one) for one in properties}
        if not wanted:
            return []
        documents = self._documents(sorted({entity_id(one) for one in ids}, key=id_order))
        self._set_aside([one for one in documents if one.missing or one.target], of=len(documents))
        found = []
        for one in documents:
            if one.target is None and not one.missing:
                self.skipped.extend(row for row in one.skipped if row.property in {*wanted, ""})
                self.revisions |= {one.entity: one.revision} if one.revision else {}
                found += [row for row in one.statements if row.property in wanted]
        found.sort(key=lambda row: (id_order(row.property), id_order(row.subject), row.id))
        return without_excluded(found, self._relations, self.index.instances)

    def document(self, entity: str) -> Document:
        """Fetch one item's document.

        Args:
            entity: item id.

        Returns:
            Its document; ``missing`` if there is none, with a ``target`` if it was merged.

        Raises:
            BadEntityError: the reply is JSON and no document of this item.
            EndpointError: see `kb.sparql.Transport`.
        """
        asked = entity_id(entity)
        text = self.transport.fetch(f"{self.endpoint.url.rstrip('/')}/{quote(asked)}.json")
        if text is None:
            return Document(asked, missing=True)
        found = self._reader.read_text(text)
        if len(found) != 1:
            raise BadEntityError(
                f"{len(found)} documents where that of {asked} was asked for.", entity=asked, reason="count"
            )
        (one,) = found
        own = one.target or one.entity
        return replace(one, entity=asked, target=None if own == asked else own)

    def _documents(self, ids: list[str]) -> list[Document]:
        if self.endpoint.parallel == 1:
            return [self.document(one) for one in ids]
        with ThreadPoolExecutor(self.endpoint.parallel, thread_name_prefix="kb-entity-data") as pool:
            tasks = [pool.submit(self.document, one) for one in ids]
            try:
                return [task.result() for task in tasks]
            finally:
                for task in tasks:
                    task.cancel()  # after a failure the rest must not be sent

    def _set_aside(self, gone: list[Document], *, of: int) -> None:
        """Leave out what the index still knows as it was, or refuse the URL where that is all there is."""
        standing = {one.subject for one in self.index.probe([one.entity for one in gone]) if one.revision}
        early = [one for one in gone if one.entity in standing]
        if len(early) == of > 1 and all(one.missing for one in early):
            known = ", ".join(one.entity for one in early[:5])
            raise EndpointNotFoundError(
                f"{self.endpoint.url} has no document of {known}, which the index knows: check the URL of "
                "the documents. If all were deleted just now, run again later.",
                url=self.endpoint.url,
                status=404,
            )
        for one in early:
            self.skipped.append(Skipped("", one.entity, "", "deleted" if one.missing else "merged"))
            self.revisions[one.entity] = 0
