"""Writing statements as Turtle in the shape of Wikidata's own RDF, for any SPARQL server to hold."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kb import terms
from kb.endpoint import Namespaces, Properties
from kb.model import JULIAN, YEAR, Bound, Rank, Statement, Value, ValueKind, WikiTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kb.model import Label, Probe

_RANKS = {Rank.PREFERRED: "PreferredRank", Rank.NORMAL: "NormalRank", Rank.DEPRECATED: "DeprecatedRank"}
_XSD = "http://www.w3.org/2001/XMLSchema#"
_SOMEVALUE = "http://www.wikidata.org/.well-known/genid/"


class TurtleWriter:
    """Writes one graph, in the munged layout."""

    def __init__(self, namespaces: Namespaces | None = None, properties: Properties | None = None) -> None:
        self._names = namespaces or Namespaces()
        self._properties = properties or Properties()

    def graph(
        self,
        *,
        until: datetime,
        probes: Iterable[Probe],
        statements: Iterable[Statement],
        labels: Mapping[str, Label],
    ) -> Iterator[str]:
        """Write everything, a few lines at a time.

        Args:
            until: the moment up to which the graph follows Wikidata.
            probes: versions and redirects of the items.
            statements: what they say.
            labels: labels of items and objects.

        Yields:
            Lines of Turtle (each a whole triple, so N-Triples as well).
        """
        names = self._names
        yield self._line(names.site, names.schema + "dateModified", terms.date(until))
        for probe in probes:
            item = names.wd + probe.subject
            if probe.revision is not None:
                yield self._line(item, names.schema + "version", self._typed(str(probe.revision), "integer"))
            if probe.modified_at is not None:
                yield self._line(item, names.schema + "dateModified", terms.date(probe.modified_at))
            if probe.redirect_to is not None:
                yield self._line(
                    item, "http://www.w3.org/2002/07/owl#sameAs", terms.iri(names.wd + probe.redirect_to)
                )
        for entity in sorted(labels):
            text = terms.literal(labels[entity].text)
            yield self._line(
                names.wd + entity,
                "http://www.w3.org/2000/01/rdf-schema#label",
                f"{text}@{labels[entity].language}",
            )
        for statement in statements:
            yield from self._statement(statement)

    def _line(self, subject: str, predicate: str, obj: str) -> str:
        return f"{terms.iri(subject)} {terms.iri(predicate)} {obj} .\n"

    @staticmethod
    def _typed(text: str, kind: str) -> str:
        return f"{terms.literal(text)}^^{terms.iri(_XSD + kind)}"

    def _statement(self, one: Statement) -> Iterator[str]:
        names, known = self._names, self._properties
        iri = names.wds + one.id.replace("$", "-")
        yield self._line(names.wd + one.subject, names.p + one.property, terms.iri(iri))
        yield self._line(iri, names.wikibase + "rank", terms.iri(names.wikibase + _RANKS[one.rank]))
        yield from self._value(iri, one)
        yield from self._bound(iri, known.start, one.start)
        yield from self._bound(iri, known.end, one.end)
        if one.point_in_time is not None:
            yield from self._time(iri, names.pq, names.pqv, known.point_in_time, one.point_in_time)
        for index in range(one.reference_count):
            digest = hashlib.sha1(f"{one.id}/{index}".encode(), usedforsecurity=False).hexdigest()
            node = f"{names.site}/reference/{digest}"
            yield self._line(iri, "http://www.w3.org/ns/prov#wasDerivedFrom", terms.iri(node))
            yield self._line(node, names.pr + known.reference_url, terms.iri(f"{node}#source"))

    def _value(self, iri: str, one: Statement) -> Iterator[str]:
        names, value = self._names, one.value
        if value.kind is ValueKind.NOVALUE:
            yield self._novalue(iri, one.property)
        elif value.kind is ValueKind.TIME:
            time = WikiTime.of_canonical(value.canonical)
            yield from self._time(iri, names.ps, names.psv, one.property, time)
        elif value.kind is ValueKind.QUANTITY:
            yield from self._quantity(iri, one)
        else:
            yield self._line(iri, names.ps + one.property, self._plain(iri, value))

    def _plain(self, iri: str, value: Value) -> str:
        if value.kind is ValueKind.ITEM:
            return terms.iri(self._names.wd + value.canonical)
        if value.kind is ValueKind.SOMEVALUE:
            return self._genid(iri)
        if value.kind is ValueKind.MONOLINGUAL:
            text, _, language = value.canonical.rpartition("@")
            return f"{terms.literal(text)}@{language}"
        return terms.literal(value.canonical)

    def _genid(self, iri: str) -> str:
        digest = hashlib.sha1(iri.encode(), usedforsecurity=False).hexdigest()
        return terms.iri(_SOMEVALUE + digest)

    def _novalue(self, iri: str, prop: str) -> str:
        return self._line(
            iri, "http://www.w3.org/1999/02/22-rdf-syntax-ns#type", terms.iri(self._names.wdno + prop)
        )

    def _bound(self, iri: str, prop: str, bound: Bound | None) -> Iterator[str]:
        if bound is None:
            return
        if bound.kind == "novalue":
            yield self._novalue(iri, prop)
        elif bound.kind == "somevalue":
            yield self._line(iri, self._names.pq + prop, self._genid(iri + prop))
        elif bound.time is None:
            yield self._line(iri, self._names.pq + prop, terms.literal("unreadable"))
        else:
            yield from self._time(iri, self._names.pq, self._names.pqv, prop, bound.time)

    def _time(self, iri: str, plain: str, full: str, prop: str, time: WikiTime) -> Iterator[str]:
        year, month, day = time.parts()
        if year <= 0 and time.precision < YEAR:  # Wikibase counts a year 0 only where a year is known
            year -= 1
        stem = f"-{-year:04d}" if year < 0 else f"{year:04d}"
        stamp = self._typed(f"{stem}-{month or 1:02d}-{day or 1:02d}T00:00:00Z", "dateTime")
        digest = hashlib.sha1(time.canonical.encode(), usedforsecurity=False).hexdigest()
        node = f"{self._names.site}/value/{digest}"
        yield self._line(iri, plain + prop, stamp)
        yield self._line(iri, full + prop, terms.iri(node))
        yield self._line(node, self._names.wikibase + "timeValue", stamp)
        precision = self._typed(str(time.precision), "integer")
        yield self._line(node, self._names.wikibase + "timePrecision", precision)
        if time.julian:
            yield self._line(node, self._names.wikibase + "timeCalendarModel", terms.iri(JULIAN))

    def _quantity(self, iri: str, one: Statement) -> Iterator[str]:
        amount, _, unit = one.value.canonical.partition(" ")
        digest = hashlib.sha1(one.value.canonical.encode(), usedforsecurity=False).hexdigest()
        node = f"{self._names.site}/value/{digest}"
        number = self._typed(amount, "decimal")
        yield self._line(iri, self._names.ps + one.property, number)
        yield self._line(iri, self._names.psv + one.property, terms.iri(node))
        yield self._line(node, self._names.wikibase + "quantityAmount", number)
        yield self._line(
            node, self._names.wikibase + "quantityUnit", terms.iri(self._names.wd + (unit or "Q199"))
        )


def utc(at: datetime) -> datetime:
    """A datetime in UTC, to the second; without a zone it is taken as UTC."""
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
