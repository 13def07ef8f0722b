"""The shipped sample behind a real SPARQL server: its shape, and what two nights of it amount to."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from SPARQLWrapper import JSON, POST, SPARQLWrapper

from kb.diff import Known, changes
from kb.endpoint import Endpoint
from kb.feed import SparqlFeed
from kb.relations import Relations
from kb.sample.tables import PROPERTIES, read
from kb.semantics import resolve, resolve_value, verdict
from kb.store import LocalStore, nights
from kb.trust import Change, Held, Trust

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIXES = """
PREFIX owl: <http://www.w3.org/2002/07/owl#>
PREFIX p: <http://www.wikidata.org/prop/>
PREFIX pq: <http://www.wikidata.org/prop/qualifier/>
PREFIX pqv: <http://www.wikidata.org/prop/qualifier/value/>
PREFIX prov: <http://www.w3.org/ns/prov#>
PREFIX ps: <http://www.wikidata.org/prop/statement/>
PREFIX rdfs: <http://www.w3.org/2000/01/rdf-schema#>
PREFIX schema: <http://schema.org/>
PREFIX wd: <http://www.wikidata.org/entity/>
PREFIX wdno: <http://www.wikidata.org/prop/novalue/>
PREFIX wdt: <http://www.wikidata.org/prop/direct/>
PREFIX wikibase: <http://wikiba.se/ontology#>
"""
NIGHTS = (1, 2)
Groups = dict[tuple[str, str], list[Held]]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, str]]:
    first, second = (LocalStore(tmp_path_factory.mktemp(f"night{number}")) for number in NIGHTS)
    first.load_night(1)
    second.load_night(2)
    with first.serve() as one, second.serve() as two:
        yield {1: one, 2: two}


def ask(url: str, query: str) -> list[dict[str, str]]:
    wrapper = SPARQLWrapper(url)
    wrapper.setMethod(POST)
    wrapper.setReturnFormat(JSON)
    wrapper.setQuery(PREFIXES + query)
    rows = wrapper.query().convert()["results"]["bindings"]
    return [{name: cell["value"] for name, cell in row.items()} for row in rows]


def count(url: str, pattern: str) -> int:
    return int(ask(url, f"SELECT (COUNT(*) AS ?n) {{ {pattern} }}")[0]["n"])


@pytest.mark.parametrize("number", NIGHTS)
def test_every_statement_has_the_shape_of_wikidata(urls: dict[int, str], number: int) -> None:
    url = urls[number]
    total = count(url, "?statement a wikibase:Statement")
    assert total >= 100
    assert count(url, "?statement wikibase:rank ?rank") == total
    main = "?item ?claim ?statement . ?property wikibase:claim ?claim ; wikibase:statementProperty ?value ."
    assert count(url, main + "?statement ?value ?object . ?object a wikibase:Item") == total
    assert count(url, "?item schema:version ?v ; schema:dateModified ?m ; a wikibase:Item") == count(
        url, "?item a wikibase:Item"
    )
    assert count(url, "?item a wikibase:Item FILTER NOT EXISTS { ?item rdfs:label ?label }") == 0
    for qualifier in ("P580", "P582"):
        dated = f"?statement pq:{qualifier} ?date FILTER(isLiteral(?date))"
        node = "[ wikibase:timeValue ?date ; wikibase:timePrecision ?p ]"
        noded = f"?s pq:{qualifier} ?date ; pqv:{qualifier} {node}"
        assert count(url, dated) == count(url, noded) > 0
    assert count(url, "?s prov:wasDerivedFrom ?r") == count(
        url, "?s prov:wasDerivedFrom ?r . ?r a wikibase:Reference"
    )


@pytest.mark.parametrize("number", NIGHTS)
def test_truthy_triples_are_those_of_the_best_rank(urls: dict[int, str], number: int) -> None:
    best = """?property wikibase:claim ?p ; wikibase:statementProperty ?ps ; wikibase:directClaim ?wdt .
              ?item ?p ?s . ?s a wikibase:BestRank ; ?ps ?o"""
    direct = "?property wikibase:directClaim ?wdt . ?item ?wdt ?o"
    rows = [
        {tuple(sorted(row.items())) for row in ask(urls[number], f"SELECT ?item ?wdt ?o {{ {pattern} }}")}
        for pattern in (best, direct)
    ]
    assert rows[0] == rows[1]
    assert count(urls[number], "?s a wikibase:BestRank ; wikibase:rank wikibase:DeprecatedRank") == 0
    assert count(urls[number], "?s wikibase:rank wikibase:DeprecatedRank") >= 1


def test_the_oddities_of_the_real_thing_are_there(urls: dict[int, str]) -> None:
    small_q = """wd:Q8646 p:P6 ?s . ?s wikibase:rank wikibase:PreferredRank ; pq:P582 ?end
                 FILTER(CONTAINS(STR(?s), "/q8646-"))"""
    assert count(urls[1], small_q) == 1
    assert count(urls[1], "?s a wdno:P582") == 1
    assert count(urls[2], "?s pq:P582 ?end FILTER(isIRI(?end))") == 2
    only_mul = """?item rdfs:label ?l FILTER(LANG(?l) = "mul")
                  FILTER NOT EXISTS { ?item rdfs:label ?e FILTER(LANG(?e) = "en") }"""
    assert count(urls[1], only_mul) >= 5
    assert ask(urls[2], "SELECT ?old ?new { ?old owl:sameAs ?new }") == [
        {"old": "http://www.wikidata.org/entity/Q2147483647", "new": "http://www.wikidata.org/entity/Q212928"}
    ]
    assert count(urls[2], "wd:Q20855863 ?p ?o") == 0


@pytest.mark.parametrize("number", NIGHTS)
def test_the_watermark_is_just_before_the_reference_time(urls: dict[int, str], number: int) -> None:
    lag = SparqlFeed(Endpoint(url=urls[number])).lag()
    assert timedelta(0) < nights()[number].reference_time - lag < timedelta(minutes=10)


def sync(url: str, number: int, known: set[str], held: Groups) -> tuple[list[Change], Groups]:
    """One night by the real feed, semantics and diff; what may be edited in is taken as edited in."""
    relations = {prop: Relations.load()[prop] for prop in PROPERTIES}
    at = nights()[number].reference_time
    feed = SparqlFeed(Endpoint(url=url), relations=relations)
    known |= set(feed.discover(at - timedelta(days=400), feed.lag(), relations.values()))
    probes = {probe.subject: probe for probe in feed.probe(known)}
    redirects = {key: probe.redirect_to for key, probe in probes.items() if probe.redirect_to}
    statements = [
        replace(one, subject=resolve(one.subject, redirects), value=resolve_value(one.value, redirects))
        for one in feed.statements(known, list(relations))
    ]
    assert not feed.skipped
    groups = defaultdict(list)
    for one in statements:
        groups[one.subject, one.property].append(one)
    ours: Groups = {
        (redirects.get(subject, subject), prop): [
            replace(one, subject=redirects.get(subject, subject)) for one in rows
        ]
        for (subject, prop), rows in held.items()
    }
    values = [one.value for one in statements] + [one.value for rows in ours.values() for one in rows]
    labels = feed.labels({subject for subject, _ in groups} | {value.canonical for value in values})
    planned = []
    for subject, prop in sorted(groups.keys() | ours.keys()):
        planned += changes(
            verdict(groups[subject, prop], relations[prop], at, subject=subject),
            Known(
                held=ours.get((subject, prop), []),
                labels=labels,
                modified_at=probes[subject].modified_at if subject in probes else None,
            ),
            at,
            relations[prop],
            Trust(),
        )
    for change in planned:
        group = ours.setdefault((change.subject, change.property), [])
        if change.kind.value in {"replace", "retract"}:
            group[:] = [one for one in group if one.slot != change.slot]
        if change.kind.value in {"insert", "replace"}:
            new = change.new
            label, subject_label = labels[new.value.canonical].text, labels[new.subject].text
            group.append(Held(new.subject, new.property, new.slot, new.value, label, subject_label))
    return planned, {key: rows for key, rows in ours.items() if rows}


def test_two_nights_come_out_as_expected(urls: dict[int, str]) -> None:
    known: set[str] = set()
    first, held = sync(urls[1], 1, known, {})
    assert Counter(change.kind.value for change in first) == {"insert": len(read("facts.toml")["open"])}
    second, held = sync(urls[2], 2, known, held)

    found = Counter()
    for change in second:
        reason = change.reason.split(":")[0] if change.kind.value == "quarantine" else None
        old = change.old.value.canonical if change.old else None
        new = change.new.value.canonical if change.new and change.kind.value != "unchanged" else None
        found[change.subject, change.property, change.kind.value, reason, old, new] += 1
    expected = Counter(
        (row["subject"], row["property"], row["kind"], row.get("reason"), row.get("old"), row.get("new"))
        for row in read("expected.toml")["expected"]
    )
    assert expected - found == Counter(), "expected, and did not happen"
    surplus = found - expected
    assert {key[2] for key in surplus} == {"unchanged"}, surplus

    again, _ = sync(urls[2], 2, known, held)
    assert {change.kind.value for change in again} <= {
        "unchanged", "relabel", "vacate", "conflict", "quarantine",
    }, "a second sync of the same night edits nothing"  # fmt: skip
