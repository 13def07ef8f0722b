"""Where changes come from: one interface, and its SPARQL implementation.

How a nightly pull uses it: read ``lag()``; ``probe`` everything tracked (sees every edit, deletion and
merge); ``discover`` new subjects in ``[cursor - overlap, lag)``; fetch ``statements`` and ``labels`` of what
changed; read ``lag()`` again; move the cursor to what `kb.cursor.advance` allows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from kb import terms
from kb.endpoint import Layout
from kb.errors import (
    BadTermError,
    EmptySourceError,
    EndpointTimeoutError,
    ReplyTooLargeError,
    TruncatedReplyError,
)
from kb.labels import first_choices
from kb.model import Label, Probe, Statement, entity_id, id_order
from kb.rows import DERIVED_FROM, Skipped, StatementReader, entity_of, moment, probes
from kb.sparql import Transport
from kb.terms import Term

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from kb.budget import BanMemory, Clock
    from kb.endpoint import Endpoint
    from kb.relations import Relation
    from kb.sparql import Row

T = TypeVar("T")
_TOO_MUCH = (EndpointTimeoutError, TruncatedReplyError, ReplyTooLargeError)
FIRST_DAY = datetime(2012, 10, 29, tzinfo=UTC)
"""Wikidata's."""
_SMALLEST_WINDOW = timedelta(seconds=1)
_EASY = 4  # an answer in less than this part of the deadline invites a wider window


class ChangeFeed(Protocol):
    """A source of statements. All implementations give identical rows for identical content.

    Attributes:
        revisions: by item, the revision at which its statements were read, where the source says so; 0 where
            it did not know the item. It need not be the one that was probed.
        skipped: statements that could not be read, over all calls.
    """

    revisions: dict[str, int]
    skipped: list[Skipped]

    def lag(self) -> datetime:
        """The moment up to which the source has followed Wikidata."""
        ...

    def probe(self, ids: Collection[str]) -> list[Probe]:
        """The version of every given item, in numeric order; one probe an id."""
        ...

    def discover(self, since: datetime, until: datetime, relations: Iterable[Relation]) -> list[str]:
        """Items that carry one of the relations and changed in ``[since, until)``, in numeric order."""
        ...

    def statements(self, ids: Collection[str], properties: Collection[str]) -> list[Statement]:
        """All statements of the given items and properties, in order of property, subject and id."""
        ...

    def labels(self, ids: Collection[str]) -> dict[str, Label]:
        """Labels by the chain; entities without one are absent."""
        ...


class SparqlFeed:
    """Statements from a SPARQL endpoint: Wikidata's, another Wikibase's, or a local store's."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        relations: Mapping[str, Relation] | None = None,
        clock: Clock | None = None,
        bans: BanMemory | None = None,
    ) -> None:
        """Prepare; sends nothing.

        Args:
            endpoint: where and how to ask.
            relations: consulted for ``not_values``: objects of those classes are left out of ``statements``.
            clock: time, for tests.
            bans: remembers bans between runs.

        Raises:
            ContactMissingError: the endpoint's User-Agent names no contact.
        """
        self.endpoint = endpoint
        self.transport = Transport(endpoint, clock=clock, bans=bans)
        self.skipped: list[Skipped] = []
        self.revisions: dict[str, int] = {}
        self._relations = relations or {}

    def lag(self) -> datetime:
        """The moment up to which the source has followed Wikidata; of several dates the earliest.

        Raises:
            EmptySourceError: the source names none.
        """
        names = self.endpoint.namespaces
        values = {"site": terms.iri(names.site)} if self.endpoint.layout.value == "munged" else {}
        rows = self._select(f"lag_{self.endpoint.layout.value}", ("modified",), **values)
        dates = [date for date in (moment(row.get("modified")) for row in rows) if date is not None]
        if not dates:
            munged = self.endpoint.layout is Layout.MUNGED
            raise EmptySourceError(
                f"{self.endpoint.url} does not say how fresh it is (no date of "
                f"{names.site if munged else 'wikibase:Dump'}); load a complete data set, or, if it holds "
                + (
                    "a raw dump, set FACTSYNC_ENDPOINT_LAYOUT=dump."
                    if munged
                    else "no raw dump, set FACTSYNC_ENDPOINT_LAYOUT=munged."
                ),
                url=self.endpoint.url,
            )
        return min(dates)

    def probe(self, ids: Collection[str]) -> list[Probe]:
        """See `ChangeFeed.probe`."""

        def ask(batch: Sequence[str]) -> list[Probe]:
            rows = self._select(
                f"probe_{self.endpoint.layout.value}",
                ("item", "predicate", "object"),
                items=self._items(batch),
            )
            return probes(rows, batch, self.endpoint)

        return self._in_batches(ids, self.endpoint.probe_batch, ask, key=lambda one: id_order(one.subject))

    def discover(self, since: datetime, until: datetime, relations: Iterable[Relation]) -> list[str]:
        """See `ChangeFeed.discover`. Relations that share a class filter share a query."""
        by_scope: dict[tuple[str, ...], list[str]] = {}
        for relation in relations:
            by_scope.setdefault(tuple(sorted(relation.classes)), []).append(relation.property)
        found: set[str] = set()
        for classes, properties in sorted(by_scope.items()):
            found |= self._windows(since, until, sorted(properties), classes)
        return sorted(found, key=id_order)

    def statements(self, ids: Collection[str], properties: Collection[str]) -> list[Statement]:
        """See `ChangeFeed.statements`. What could not be read is added to ``skipped``."""
        if not properties:
            return []

        def ask(batch: Sequence[str]) -> list[Statement]:
            return self._statements(batch, sorted({entity_id(one) for one in properties}, key=id_order))

        found = self._in_batches(
            ids,
            self.endpoint.statement_batch,
            ask,
            key=lambda one: (id_order(one.property), id_order(one.subject), one.id),
        )
        return without_excluded(found, self._relations, self.instances)

    def labels(self, ids: Collection[str]) -> dict[str, Label]:
        """See `ChangeFeed.labels`."""
        chain = self.endpoint.languages

        def ask(batch: Sequence[str]) -> list[Label]:
            rows = self._select(
                "labels", ("item", "label"), items=self._items(batch), languages=terms.languages(chain)
            )
            triples = [
                (item, row["label"].language, row["label"].text)
                for row in rows
                if (item := entity_of(row["item"], self.endpoint.namespaces.wd)) is not None
                and "label" in row
            ]
            return list(first_choices(triples, chain).values())

        found = self._in_batches(ids, self.endpoint.probe_batch, ask, key=lambda one: id_order(one.entity))
        return {one.entity: one for one in found}

    def instances(self, ids: Collection[str], classes: Collection[str]) -> set[str]:
        """Those of the given items that belong to one of the classes, subclasses counted."""
        names, known = self.endpoint.namespaces, self.endpoint.properties

        def ask(batch: Sequence[str]) -> list[str]:
            rows = self._select(
                "instances",
                ("item",),
                items=self._items(batch),
                classes=self._items(classes),
                instance_of=terms.iri(names.wdt + known.instance_of),
                subclass_of=terms.iri(names.wdt + known.subclass_of),
            )
            return [item for row in rows if (item := entity_of(row["item"], names.wd)) is not None]

        return (
            set(self._in_batches(ids, self.endpoint.statement_batch, ask, key=id_order)) if classes else set()
        )

    # Parts

    def _select(self, query_name: str, variables: Sequence[str], **values: Term) -> list[Row]:
        return self.transport.select(terms.query(query_name, self.endpoint.namespaces, **values), variables)

    def _items(self, ids: Iterable[str]) -> Term:
        return terms.entities(self.endpoint.namespaces.wd, ids)

    def _statements(self, batch: Sequence[str], properties: Sequence[str]) -> list[Statement]:
        names, known = self.endpoint.namespaces, self.endpoint.properties
        qualifiers = (known.start, known.end, known.point_in_time)
        plain = [
            terms.iri(names.wikibase + "rank"),
            terms.iri("http://www.w3.org/1999/02/22-rdf-syntax-ns#type"),
            terms.entities(names.pq, qualifiers),
            terms.entities(names.ps, properties),
        ]
        rows = self._select(
            f"statements_{self.endpoint.layout.value}",
            ("item", "claim", "statement", "predicate", "node", "part", "object"),
            items=self._items(batch),
            claims=terms.listed(terms.entities(names.p, properties)),
            predicates=terms.listed(*plain),
            nodes=terms.listed(
                terms.iri(DERIVED_FROM),
                terms.entities(names.pqv, qualifiers),
                terms.entities(names.psv, properties),
            ),
            references=terms.listed(
                terms.entities(names.pr, (known.stated_in, known.reference_url, known.imported_from))
            ),
        )
        reader = StatementReader(self.endpoint)
        found = reader.read(rows)
        self.skipped.extend(reader.skipped)
        self.revisions |= dict.fromkeys(batch, 0) | reader.revisions
        return found

    def _windows(
        self, since: datetime, until: datetime, properties: Sequence[str], classes: Sequence[str]
    ) -> set[str]:
        """A span in windows: halved while the service cannot answer, the next doubled where it was easy.

        A span that begins with Wikidata asks for everything, which is tried whole once: few items of a
        rare relation are found sooner by the relation than by date.
        """
        found: set[str] = set()
        first = until - since
        if self.endpoint.first_window_s is not None:
            first = min(first, timedelta(seconds=self.endpoint.first_window_s))
        everything = since <= FIRST_DAY
        since = max(since, FIRST_DAY)
        width = until - since if everything else first
        while since < until:
            end = min(until, since + width)
            begun = self.transport.clock.monotonic()
            try:
                found |= self._window(since, end, properties, classes)
            except _TOO_MUCH:
                if end - since <= _SMALLEST_WINDOW:
                    raise
                half = max(_SMALLEST_WINDOW, timedelta(seconds=int((end - since).total_seconds() / 2)))
                width = min(half, first) if everything else half
                everything = False
                continue
            since = end
            if self.transport.clock.monotonic() - begun < self.endpoint.timeout_s / _EASY:
                width *= 2
        return found

    def _window(
        self, since: datetime, until: datetime, properties: Sequence[str], classes: Sequence[str]
    ) -> set[str]:
        """One window, page by page."""
        found: set[str] = set()
        after = ""
        while True:
            page = self._page(since, until, properties, classes, after)
            found.update(item for iri in page if (item := self._item_of(iri)) is not None)
            if len(page) < self.endpoint.page_rows:
                return found
            after = max(page)

    def _page(
        self, since: datetime, until: datetime, properties: Sequence[str], classes: Sequence[str], after: str
    ) -> list[str]:
        names, known = self.endpoint.namespaces, self.endpoint.properties
        scope = Term("")
        if classes:
            path = f"{terms.iri(names.wdt + known.instance_of)}/{terms.iri(names.wdt + known.subclass_of)}*"
            scope = Term(f"VALUES ?class {{ {self._items(classes)} }} ?item {path} ?class .")
        rows = self._select(
            f"discover_{self.endpoint.layout.value}",
            ("item",),
            since=terms.date(since),
            until=terms.date(until),
            claims=terms.entities(names.p, properties),
            items=terms.literal(f"{names.wd}Q"),
            after=terms.literal(after),
            scope=scope,
            limit=terms.number(self.endpoint.page_rows),
        )
        return [row["item"].text for row in rows if "item" in row]

    def _item_of(self, iri: str) -> str | None:
        try:
            return entity_id(iri.removeprefix(self.endpoint.namespaces.wd))
        except BadTermError:
            return None

    def _in_batches(
        self,
        ids: Collection[str],
        size: int,
        ask: Callable[[Sequence[str]], list[T]],
        *,
        key: Callable[[T], object],
    ) -> list[T]:
        """Ask for ids in batches, some at once, each halved while the service cannot answer it whole."""
        ordered = sorted({entity_id(one) for one in ids}, key=id_order)
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        if self.endpoint.parallel == 1 or len(batches) < 2:  # noqa: PLR2004  (nothing to do at once)
            results = [_halving(batch, ask) for batch in batches]
        else:
            with ThreadPoolExecutor(self.endpoint.parallel, thread_name_prefix="kb-feed") as pool:
                tasks = [pool.submit(_halving, batch, ask) for batch in batches]
                try:
                    results = [task.result() for task in tasks]
                finally:
                    for task in tasks:
                        task.cancel()  # after a failure the rest must not be sent
        return sorted((one for result in results for one in result), key=key)  # type: ignore[arg-type]


def without_excluded(
    found: list[Statement],
    relations: Mapping[str, Relation],
    instances: Callable[[Collection[str], Collection[str]], set[str]],
) -> list[Statement]:
    """Leave out the statements whose object is of a class that their relation does not want.

    Args:
        found: statements.
        relations: consulted for ``not_values``.
        instances: those of some items that belong to some classes.
    """
    for prop, relation in relations.items():
        if not relation.not_values:
            continue
        objects = {
            one.value.canonical for one in found if one.property == prop and one.value.kind.value == "item"
        }
        if objects:
            out = instances(objects, relation.not_values)
            found = [one for one in found if one.property != prop or one.value.canonical not in out]
    return found


def _halving(batch: Sequence[str], ask: Callable[[Sequence[str]], list[T]]) -> list[T]:
    try:
        return ask(batch)
    except _TOO_MUCH:
        if len(batch) == 1:
            raise
        middle = len(batch) // 2
        return _halving(batch[:middle], ask) + _halving(batch[middle:], ask)
