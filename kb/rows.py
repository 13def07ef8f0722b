"""From result rows to statements: the reading half of the SPARQL feed, without a network."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kb.errors import BadTermError
from kb.model import (
    DAY,
    JULIAN,
    YEAR,
    Bound,
    Probe,
    Rank,
    Statement,
    Value,
    WikiTime,
    entity_id,
    id_order,
    statement_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kb.endpoint import Endpoint
    from kb.sparql import Node, Row

_LOG = logging.getLogger(__name__)
_RDF_TYPE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type"
_SAME_AS = "http://www.w3.org/2002/07/owl#sameAs"
DERIVED_FROM = "http://www.w3.org/ns/prov#wasDerivedFrom"
_XSD = "http://www.w3.org/2001/XMLSchema#"
_COMMONS = "http://commons.wikimedia.org/"
_SKOLEM = "/.well-known/genid/"
_TIMES = frozenset({f"{_XSD}dateTime", f"{_XSD}date"})
_NUMBERS = frozenset({f"{_XSD}decimal", f"{_XSD}integer", f"{_XSD}double"})
_LANG_STRING = "http://www.w3.org/1999/02/22-rdf-syntax-ns#langString"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A statement that was left out, and why.

    Attributes:
        statement: its id or IRI; empty where it has none, or where all statements of an item are meant.
        subject: its item.
        property: its property; empty for all of the item.
        reason: a stable short word.
    """

    statement: str
    subject: str
    property: str
    reason: str


def entity_of(node: Node, namespace: str) -> str | None:
    """The entity id of an IRI in a namespace, else None."""
    if node.kind != "uri" or not node.text.startswith(namespace):
        return None
    try:
        return entity_id(node.text[len(namespace) :])
    except BadTermError:
        return None


def moment(node: Node | None) -> datetime | None:
    """A ``xsd:dateTime`` as a datetime in UTC; None if it is absent or not one."""
    if node is None:
        return None
    try:
        at = datetime.fromisoformat(node.text)
    except ValueError:
        return None
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _whole(node: Node | None) -> int | None:
    if node is None:
        return None
    text = node.text.removeprefix("+")
    return int(text) if text.isascii() and text.isdigit() else None


def _is_unknown(node: Node) -> bool:
    """Whether a node stands for a value that is not known."""
    return node.kind == "bnode" or (node.kind == "uri" and _SKOLEM in node.text[:200])


def probes(rows: Iterable[Row], asked: Iterable[str], endpoint: Endpoint) -> list[Probe]:
    """One probe an id asked for, in numeric order. Several versions of one item (replicas): the newest."""
    versions: dict[str, int] = {}
    dates: dict[str, datetime] = {}
    targets: dict[str, str] = {}
    names = endpoint.namespaces
    for row in rows:
        item = entity_of(row["item"], names.wd) if "item" in row else None
        predicate, value = row.get("predicate"), row.get("object")
        if item is None or predicate is None or value is None:
            continue
        if predicate.text == names.schema + "version":
            versions[item] = max(_whole(value) or 0, versions.get(item, 0))
        elif predicate.text == names.schema + "dateModified":
            date = moment(value)
            if date is not None:
                dates[item] = max(date, dates.get(item, date))
        elif predicate.text == _SAME_AS:
            target = entity_of(value, names.wd)
            if target is not None and target != item:
                targets[item] = min(target, targets.get(item, target), key=id_order)
    return [
        Probe(one, versions.get(one), dates.get(one), targets.get(one))
        for one in sorted(set(asked), key=id_order)
    ]


@dataclass(slots=True)
class _Parts:
    """The triples of one statement, by predicate."""

    item: str
    claim: str
    objects: defaultdict[str, set[Node]] = field(default_factory=lambda: defaultdict(set))
    nodes: defaultdict[tuple[str, str], dict[str, Node]] = field(default_factory=lambda: defaultdict(dict))


class StatementReader:
    """Collects long rows (one a triple) and gives whole statements.

    Attributes:
        skipped: what could not be read.
        revisions: of each item of which the rows have it, the newest where they have several.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._names = endpoint.namespaces
        self._properties = endpoint.properties
        self.skipped: list[Skipped] = []
        self.revisions: dict[str, int] = {}

    def read(self, rows: Iterable[Row]) -> list[Statement]:
        """Turn rows into statements, in order of property, subject and id.

        What cannot be read (no rank, no value, an id of another shape) is left out and listed in ``skipped``.
        """
        parts: dict[str, _Parts] = {}
        for row in rows:
            item = entity_of(row["item"], self._names.wd) if "item" in row else None
            if item is None:
                continue
            if "statement" not in row:
                revision = _whole(row.get("object"))
                if revision:
                    self.revisions[item] = max(revision, self.revisions.get(item, 0))
                continue
            one = parts.setdefault(row["statement"].text, _Parts(item, row["claim"].text))
            predicate = row["predicate"].text
            if "node" in row:
                parts_of = one.nodes[predicate, row["node"].text]
                part = row["part"].text
                if part not in parts_of or _is_unknown(parts_of[part]):
                    parts_of[part] = row["object"]
            else:
                one.objects[predicate].add(row["object"])
        found = list(self._statements(parts))
        return sorted(found, key=lambda one: (id_order(one.property), id_order(one.subject), one.id))

    def _statements(self, parts: dict[str, _Parts]) -> Iterator[Statement]:
        for iri in sorted(parts):
            one = parts[iri]
            try:
                yield self._statement(iri, one, self.revisions.get(one.item, 0))
            except BadTermError as error:
                prop = one.claim.removeprefix(self._names.p)
                self.skipped.append(Skipped(iri, one.item, prop, "unreadable"))
                _LOG.debug("Statement %s of %s was left out: %s", iri, one.item, error)

    def _statement(self, iri: str, one: _Parts, revision: int) -> Statement:
        names, prop = self._names, one.claim.removeprefix(self._names.p)
        if not iri.startswith(names.wds):
            raise BadTermError(f"{iri!r} is not a statement of this Wikibase.", value=iri)
        ids = self._properties
        return Statement(
            id=statement_id(iri[len(names.wds) :]),
            subject=one.item,
            property=entity_id(prop),
            value=self._value(one, prop),
            rank=self._rank(one),
            start=self._bound(one, ids.start, earliest=True),
            end=self._bound(one, ids.end, earliest=False),
            point_in_time=self._latest(one, ids.point_in_time),
            reference_count=self._sources(one),
            revision=revision,
        )

    def _rank(self, one: _Parts) -> Rank:
        ranks = {
            node.text.removeprefix(self._names.wikibase)
            for node in one.objects[self._names.wikibase + "rank"]
        }
        known = {
            "PreferredRank": Rank.PREFERRED,
            "NormalRank": Rank.NORMAL,
            "DeprecatedRank": Rank.DEPRECATED,
        }
        if len(ranks) != 1 or not ranks <= set(known):
            raise BadTermError(f"Ranks {sorted(ranks)} where one is expected.", value=one.claim)
        return known[ranks.pop()]

    def _sources(self, one: _Parts) -> int:
        """How many references name a source."""
        names, known = self._names, self._properties
        imported = names.pr + known.imported_from
        return sum(
            any(
                part in full and not _is_unknown(full[part])
                for part in (names.pr + known.stated_in, names.pr + known.reference_url)
            )
            for (predicate, _), full in one.nodes.items()
            if predicate == DERIVED_FROM and imported not in full
        )

    def _is_novalue(self, one: _Parts, prop: str) -> bool:
        return any(node.text == self._names.wdno + prop for node in one.objects[_RDF_TYPE])

    def _value(self, one: _Parts, prop: str) -> Value:  # noqa: PLR0911  (one return a kind of value)
        if self._is_novalue(one, prop):
            return Value.novalue()
        objects = sorted(
            one.objects[self._names.ps + prop], key=lambda node: (node.kind, node.text, node.language)
        )
        if len(objects) != 1:
            raise BadTermError(f"{len(objects)} main values where one is expected.", value=prop)
        (node,) = objects
        if _is_unknown(node):
            return Value.somevalue()
        if node.kind == "uri":
            item = entity_of(node, self._names.wd)
            if item is None and node.text.startswith(_COMMONS):
                raise BadTermError("Media files are not read.", value=node.text[:200])
            return Value.item(item) if item is not None else Value.string(node.text)
        if node.language:
            return Value.monolingual(node.text, node.language)
        full = next(
            (
                parts
                for (predicate, _), parts in sorted(one.nodes.items())
                if predicate.startswith(self._names.psv)
            ),
            {},
        )
        if node.datatype in _TIMES or self._part(full, "timeValue"):
            return Value.time(self._time(full, node))
        if node.datatype in _NUMBERS or self._part(full, "quantityAmount"):
            return self._quantity(full, node)
        if node.datatype in {"", f"{_XSD}string", _LANG_STRING}:
            return Value.string(node.text)
        raise BadTermError(f"Values of type {node.datatype} are not read.", value=node.datatype)

    def _part(self, full: dict[str, Node], name: str) -> Node | None:
        return full.get(self._names.wikibase + name)

    def _quantity(self, full: dict[str, Node], node: Node) -> Value:
        amount, unit = self._part(full, "quantityAmount") or node, self._part(full, "quantityUnit")
        name = entity_of(unit, self._names.wd) if unit is not None else None
        # Q199 is the number one: Wikidata's way to say that there is no unit
        return Value.quantity(amount.text, None if name in {None, "Q199"} else name)

    def _time(self, full: dict[str, Node], node: Node) -> WikiTime:
        text = self._part(full, "timeValue") or node
        precision = _whole(self._part(full, "timePrecision"))
        calendar = self._part(full, "timeCalendarModel")
        julian = calendar is not None and calendar.text == JULIAN
        time = WikiTime.parse(text.text, DAY if precision is None else precision, julian=julian)
        if time.precision < YEAR and time.iso.startswith("-"):
            # The export counts 1 BCE as year 0 where a year is known, and as year -1 where it is not.
            return WikiTime.of(time.parts()[0] + 1, 0, 0, time.precision)
        return time

    def _times(self, one: _Parts, prop: str) -> tuple[list[WikiTime], bool]:
        """All readable dates of a qualifier, and whether an unreadable one stands beside them."""
        times, unreadable = [], False
        covered = set()
        for (predicate, _), full in sorted(one.nodes.items()):
            if predicate != self._names.pqv + prop:
                continue
            value = self._part(full, "timeValue")
            if value is None:
                continue
            covered.add(value.text)
            try:
                times.append(self._time(full, value))
            except BadTermError:
                unreadable = True
        for node in sorted(one.objects[self._names.pq + prop], key=lambda node: node.text):
            if node.kind != "literal" or node.text in covered:
                continue
            try:
                times.append(WikiTime.parse(node.text, DAY))
            except BadTermError:
                unreadable = True
        return times, unreadable

    def _bound(self, one: _Parts, prop: str, *, earliest: bool) -> Bound | None:
        """A start or end. Of several values a date wins, then an unreadable one, somevalue, novalue."""
        times, unreadable = self._times(one, prop)
        if times:
            return Bound("value", pick(times, earliest=earliest))
        if unreadable:
            return Bound("value", None)
        if one.objects[self._names.pq + prop]:
            return Bound("somevalue")
        return Bound("novalue") if self._is_novalue(one, prop) else None

    def _latest(self, one: _Parts, prop: str) -> WikiTime | None:
        times, _ = self._times(one, prop)
        return pick(times, earliest=False) if times else None


def pick(times: list[WikiTime], *, earliest: bool) -> WikiTime:
    """The earliest or the latest of several dates; equal ones are told apart by precision and text."""
    if earliest:
        return min(times, key=lambda time: (time.earliest(), -time.precision, time.iso))
    return max(times, key=lambda time: (time.latest(), time.precision, time.iso))
