"""A state of the sample as Turtle, in the shape of Wikidata's query service.

As there, ``schema:version`` and ``schema:dateModified`` stand on ``wd:`` (on ``wdata:`` in the raw export),
values that are items have no value node, dates have one with their precision.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

from kb.sample.tables import PRECISIONS, PROPERTIES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from kb.sample.tables import Fact, Item, State

PREFIXES: Final = {
    "owl": "http://www.w3.org/2002/07/owl#",
    "p": "http://www.wikidata.org/prop/",
    "pq": "http://www.wikidata.org/prop/qualifier/",
    "pqv": "http://www.wikidata.org/prop/qualifier/value/",
    "pr": "http://www.wikidata.org/prop/reference/",
    "prov": "http://www.w3.org/ns/prov#",
    "ps": "http://www.wikidata.org/prop/statement/",
    "rdfs": "http://www.w3.org/2000/01/rdf-schema#",
    "ref": "http://www.wikidata.org/reference/",
    "s": "http://www.wikidata.org/entity/statement/",
    "schema": "http://schema.org/",
    "v": "http://www.wikidata.org/value/",
    "wd": "http://www.wikidata.org/entity/",
    "wdno": "http://www.wikidata.org/prop/novalue/",
    "wdt": "http://www.wikidata.org/prop/direct/",
    "wikibase": "http://wikiba.se/ontology#",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
QUALIFIERS: Final = {"start": "P580", "end": "P582", "at": "P585"}
RANKS: Final = {"preferred": "PreferredRank", "normal": "NormalRank", "deprecated": "DeprecatedRank"}
GENID: Final = "http://www.wikidata.org/.well-known/genid"
GREGORIAN: Final = "http://www.wikidata.org/entity/Q1985727"


def turtle(state: State, note: str) -> str:
    """The state in the shape of Wikidata's query service (schema:version stands on wd:, not on wdata:)."""
    nodes = _Nodes()
    blocks = [f"# {note}", *(f"@prefix {name}: <{iri}> ." for name, iri in sorted(PREFIXES.items())), ""]
    blocks += [f"<http://www.wikidata.org> schema:dateModified {_moment(state.watermark)} .", ""]
    blocks += [_property(number, name) for number, name in PROPERTIES.items()]
    by_subject: dict[str, list[Fact]] = {}
    for fact in state.facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    for key in sorted(state.items, key=_number):
        facts = sorted(by_subject.get(key, []), key=lambda fact: (_number(fact.relation), fact.node))
        blocks.append(_item(state.items[key], facts))
        blocks += [_statement(fact, _is_best(fact, facts), state, nodes) for fact in facts]
    blocks += [f"wd:{old} owl:sameAs wd:{new} .\n" for old, new in sorted(state.redirects.items())]
    blocks += nodes.written()
    return "\n".join(blocks)


def _is_best(fact: Fact, facts: Iterable[Fact]) -> bool:
    ranks = {one.rank for one in facts if one.relation == fact.relation}
    return fact.rank == ("preferred" if "preferred" in ranks else "normal")


class _Nodes:
    """Value and reference nodes, each written once and after the statements, as Wikidata's export does it."""

    def __init__(self) -> None:
        self._blocks: dict[str, str] = {}

    def time(self, written: str) -> str:
        precision = PRECISIONS[len(written)]
        literal = f'"{written}{"-01" * (11 - precision)}T00:00:00Z"^^xsd:dateTime'
        name = f"v:{_digest(literal, precision)[:32]}"
        self._blocks[name] = _block(
            f"{name} a wikibase:TimeValue",
            f"wikibase:timeValue {literal}",
            f'wikibase:timePrecision "{precision}"^^xsd:integer',
            'wikibase:timeTimezone "0"^^xsd:integer',
            f"wikibase:timeCalendarModel <{GREGORIAN}>",
        )
        return name

    def reference(self, label: str, number: int) -> str:
        address = f"https://en.wikipedia.org/wiki/{label.replace(' ', '_')}"
        parts = [f"pr:P854 <{address}>"] if number else ["pr:P143 wd:Q328"]
        name = f"ref:{_digest(*parts, number)}"
        if number > 1:
            parts.append('pr:P813 "2026-08-31T00:00:00Z"^^xsd:dateTime')
        self._blocks[name] = _block(f"{name} a wikibase:Reference", *parts)
        return name

    def written(self) -> list[str]:
        return [self._blocks[name] for name in sorted(self._blocks)]


def _item(item: Item, facts: list[Fact]) -> str:
    return _block(
        f"wd:{item.id} a wikibase:Item",
        f'schema:version "{item.revision}"^^xsd:integer',
        f"schema:dateModified {_moment(item.edited)}",
        f'wikibase:statements "{len(facts) + len(item.classes)}"^^xsd:integer',
        *(f"rdfs:label {_text(text)}@{language}" for language, text in sorted(item.labels.items())),
        *(f"wdt:P31 wd:{key}" for key in item.classes),
        *(f"wdt:{fact.relation} wd:{fact.value}" for fact in facts if _is_best(fact, facts)),
        *(f"p:{fact.relation} s:{fact.node}" for fact in facts),
    )


def _statement(fact: Fact, best: bool, state: State, nodes: _Nodes) -> str:
    parts = [f"s:{fact.node} a wikibase:Statement" + (", wikibase:BestRank" if best else "")]
    parts += [f"wikibase:rank wikibase:{RANKS[fact.rank]}", f"ps:{fact.relation} wd:{fact.value}"]
    for name, number in QUALIFIERS.items():
        written = getattr(fact, name)
        if written == "novalue":
            parts.append(f"a wdno:{number}")
        elif written == "somevalue":
            parts.append(f"pq:{number} <{GENID}/{_digest(fact.node, number)[:32]}>")
        elif written:
            literal = f'"{written}{"-01" * (11 - PRECISIONS[len(written)])}T00:00:00Z"^^xsd:dateTime'
            parts += [f"pq:{number} {literal}", f"pqv:{number} {nodes.time(written)}"]
    labels = state.items[fact.subject].labels
    label = labels.get("en") or labels.get("mul") or fact.subject
    parts += [f"prov:wasDerivedFrom {nodes.reference(label, number)}" for number in range(fact.refs)]
    return _block(*parts)


def _property(number: str, name: str) -> str:
    return _block(
        f"wd:{number} a wikibase:Property",
        f'rdfs:label "{name}"@en',
        "wikibase:propertyType wikibase:WikibaseItem",
        f"wikibase:directClaim wdt:{number}",
        f"wikibase:claim p:{number}",
        f"wikibase:statementProperty ps:{number}",
        f"wikibase:qualifier pq:{number}",
        f"wikibase:novalue wdno:{number}",
    )


def _block(first: str, *rest: str) -> str:
    return " ;\n    ".join([first, *rest]) + " .\n"


def _moment(when: datetime) -> str:
    return f'"{when:%Y-%m-%dT%H:%M:%SZ}"^^xsd:dateTime'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _digest(*parts: object) -> str:
    return hashlib.sha1("\n".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _number(key: str) -> int:
    return int(key[1:])
