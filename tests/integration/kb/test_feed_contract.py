"""One contract for every feed: the same content gives the same rows, whatever it is read from."""

from __future__ import annotations

import copy
import gzip
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kb.document_feed import DocumentFeed
from kb.documents import Document, DocumentReader, read_file
from kb.endpoint import Endpoint, Layout
from kb.entity_data import EntityDataFeed
from kb.errors import BadEntityError, EmptySourceError
from kb.feed import SparqlFeed
from kb.model import Probe
from kb.relations import Relations
from kb.semantics import verdict
from tests.integration.kb.entity_data_server import EntityDataServer
from tests.integration.kb.rdflib_server import RdflibServer
from tests.integration.kb.wikibase_rdf import Exporter

SHARED = Path(os.environ.get("FACTSYNC_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
ENTITIES = SHARED / "entities"
needs_entities = pytest.mark.skipif(not ENTITIES.exists(), reason=f"the real entities are not at {ENTITIES}")
UNTIL = "2026-08-31T23:00:00Z"
GREGORIAN, JULIAN = "http://www.wikidata.org/entity/Q1985727", "http://www.wikidata.org/entity/Q1985786"


def item(entity):
    return {
        "type": "wikibase-entityid",
        "value": {"entity-type": "item", "numeric-id": int(entity[1:]), "id": entity},
    }


def time(text, precision=11, calendar=GREGORIAN):
    return {"type": "time", "value": {"time": text, "precision": precision, "calendarmodel": calendar}}


def snak(data, prop="P6", datatype=None):
    if data in {"somevalue", "novalue"} if isinstance(data, str) else False:
        return {"snaktype": data, "property": prop}
    kinds = {"wikibase-entityid": "wikibase-item", "monolingualtext": "monolingualtext"}
    return {
        "snaktype": "value",
        "property": prop,
        "datavalue": data,
        "datatype": datatype or kinds.get(data["type"], data["type"]),
    }


URL = {"type": "string", "value": "http://www.example.org/source"}
REFERENCES = (
    (),
    ({"P248": [item("Q36578")]},),
    ({"P854": [URL]}, {"P248": [item("Q36578")], "P813": [time("+2020-01-02T00:00:00Z")]}),
    ({"P143": [item("Q328")]},),
    ({"P143": [item("Q328")], "P854": [URL]}, {"P813": [time("+2020-01-02T00:00:00Z")]}),
    ({"P248": ["somevalue"]}, {"P854": ["somevalue", URL]}, {"P248": ["novalue"]}),
    ({"P854": [URL]}, {"P854": [URL], "P143": ["novalue"]}, {"P143": ["somevalue"], "P854": [URL]}),
    ({"P248": [item("Q36578"), item("Q37312")], "P854": [URL]}, {}),
)
"""References of all kinds; `NAMED` of each tuple name a source."""
NAMED = (0, 1, 2, 0, 0, 1, 2, 1)


def reference(number, snaks):
    urls = {"P854": "url"}
    return {
        "hash": f"{number}{sorted(snaks)}{len(str(snaks))}".replace(" ", "").encode().hex(),
        "snaks": {prop: [snak(one, prop, urls.get(prop)) for one in ones] for prop, ones in snaks.items()}
        or [],
    }


def claim(entity, number, main, rank="normal", **qualifiers):
    return {
        "id": f"{entity}$0000-{number:04d}",
        "rank": rank,
        "type": "statement",
        "mainsnak": main,
        "qualifiers": {prop: [snak(one, prop) for one in ones] for prop, ones in qualifiers.items()},
        "references": [reference(number, kind) for kind in REFERENCES[number % len(REFERENCES)]],
    }


def document(entity, modified, claims, revision=1000, **labels):
    return {
        "id": entity,
        "type": "item",
        "lastrevid": revision,
        "modified": modified,
        "labels": {
            language.replace("_", "-"): {"language": language.replace("_", "-"), "value": text}
            for language, text in labels.items()
        },
        "claims": claims,
    }


def world():
    """Every kind of value, bound and rank the feed must carry."""
    heads = [
        claim(
            "Q100",
            1,
            snak(item("Q1")),
            "preferred",
            P580=[time("+2001-01-00T00:00:00Z", 10)],
            P582=[time("+2005-00-00T00:00:00Z", 9)],
        ),
        claim("q100", 2, snak(item("Q2")), P580=[time("+2005-05-07T00:00:00Z")], P582=["novalue"]),
        claim("Q100", 3, snak(item("Q3")), P580=["somevalue"], P582=["somevalue"]),
        claim(
            "Q100",
            4,
            snak(item("Q4")),
            "deprecated",
            P585=[time("+2004-02-29T00:00:00Z"), time("+2003-02-00T00:00:00Z", 10)],
        ),
        claim("Q100", 5, snak("somevalue"), P580=[time("+1752-09-02T00:00:00Z", 11, JULIAN)]),
        claim("Q100", 6, snak("novalue"), P580=[time("-0044-03-15T00:00:00Z", 11, JULIAN)]),
        claim(
            "Q100",
            7,
            snak(item("Q1")),
            P580=[time("-0500-00-00T00:00:00Z", 7), time("+1900-00-00T00:00:00Z", 7)],
        ),
        claim(
            "Q100",
            8,
            snak(item("Q2")),
            P582=[time("+2010-00-00T00:00:00Z", 8), time("+2012-00-00T00:00:00Z", 9), "somevalue"],
        ),
    ]
    values = {
        "P571": [
            claim("Q100", 20, snak(time("+1949-05-23T00:00:00Z"), "P571")),
            claim("Q100", 21, snak(time("-0753-00-00T00:00:00Z", 9), "P571")),
        ],
        "P1082": [
            claim(
                "Q100",
                22,
                snak({"type": "quantity", "value": {"amount": "+84358845", "unit": "1"}}, "P1082"),
                P585=[time("+2022-12-31T00:00:00Z")],
            ),
            claim(
                "Q100",
                23,
                snak(
                    {
                        "type": "quantity",
                        "value": {"amount": "+12.50", "unit": "http://www.wikidata.org/entity/Q712226"},
                    },
                    "P1082",
                ),
            ),
        ],
        "P1448": [
            claim(
                "Q100",
                24,
                snak(
                    {
                        "type": "monolingualtext",
                        "value": {"text": 'The "Free" \\ State\nof Ruritania', "language": "en"},
                    },
                    "P1448",
                ),
            )
        ],
        "P474": [claim("Q100", 25, snak({"type": "string", "value": "+49"}, "P474", "external-id"))],
        "P856": [
            claim(
                "Q100", 26, snak({"type": "string", "value": "http://www.example.org/a?b=c"}, "P856", "url")
            )
        ],
        "P18": [
            claim(
                "Q100", 27, snak({"type": "string", "value": "Flag of Ruritania.svg"}, "P18", "commonsMedia")
            )
        ],
        "P625": [
            claim(
                "Q100",
                28,
                snak(
                    {"type": "globecoordinate", "value": {"longitude": 1.5, "latitude": 2.5}},
                    "P625",
                    "globe-coordinate",
                ),
            )
        ],
    }
    club = [claim("Q5", 30, snak(item("Q301"), "P54")), claim("Q5", 31, snak(item("Q302"), "P54"))]
    human = claim("Q5", 32, snak(item("Q5000"), "P31"))
    return [
        document("Q100", "2026-08-31T10:00:00Z", {"P6": heads, **values}, en="Ruritania", de="Ruritanien"),
        document(
            "Q101",
            "2026-08-01T10:00:00Z",
            {"P6": [claim("Q101", 1, snak(item("Q1")))]},
            mul="Old News",
            fr="Vieux",
        ),
        document("Q102", "2026-08-31T11:00:00Z", {}, en_gb="Nothing", fr="Rien"),
        document("Q1", "2026-08-31T12:00:00Z", {}, fr="Seulement"),
        document("Q5", "2026-08-31T09:00:00Z", {"P54": club, "P31": [human]}, en="Player", en_ca="Joueur"),
        document(
            "Q6",
            "2026-06-01T09:00:00Z",
            {
                "P54": [claim("Q6", 36, snak(item("Q301"), "P54"))],
                "P31": [claim("Q6", 37, snak(item("Q5000"), "P31"))],
            },
            en="Other",
        ),
        document(
            "Q301",
            "2026-08-31T09:00:00Z",
            {"P31": [claim("Q301", 33, snak(item("Q9001"), "P31"))]},
            en="Club",
        ),
        document(
            "Q302",
            "2026-08-31T09:00:00Z",
            {"P31": [claim("Q302", 34, snak(item("Q9002"), "P31"))]},
            en="Nation",
        ),
        document(
            "Q9002",
            "2026-08-31T09:00:00Z",
            {"P279": [claim("Q9002", 35, snak(item("Q9003"), "P279"))]},
            en="national U21",
        ),
    ]


def relations():
    shipped = Relations.load()
    return {
        "P6": shipped["P6"],
        "P54": replace(shipped["P54"], classes=("Q5000",), not_values=("Q9003",)),
        "P35": shipped["P35"],
    }


def export(documents, layout, redirects=()):
    exporter = Exporter(layout)
    for one in documents:
        exporter.entity(one)
    for source, target in redirects:
        exporter.redirect(source, target)
    return exporter.finish(UNTIL)


def from_documents(documents, redirects=()):
    reader = DocumentReader()
    found = [one for raw in documents for one in reader.read(raw)]
    found += [Document(source, target=target) for source, target in redirects]
    return DocumentFeed(found, until=datetime.fromisoformat(UNTIL), relations=relations())


REDIRECTS = [("Q900", "Q100")]


@pytest.fixture(params=["munged", "dump", "documents", "entity data", "small batches", "another engine"])
def feed(request, served):
    if request.param == "documents":
        yield from_documents(world(), REDIRECTS)
        return
    if request.param == "another engine":
        with RdflibServer(export(world(), "munged", REDIRECTS)) as server:
            yield SparqlFeed(replace(Endpoint.local(server.url), timeout_s=300.0), relations=relations())
        return
    layout = "dump" if request.param == "dump" else "munged"
    with served(export(world(), layout, REDIRECTS)) as url:
        endpoint = replace(Endpoint.local(url), layout=Layout(layout))
        if request.param == "small batches":
            endpoint = replace(endpoint, probe_batch=1, statement_batch=1, page_rows=1, parallel=3)
        live = SparqlFeed(endpoint, relations=relations())
        if request.param != "entity data":
            yield live
            return
        with EntityDataServer(world(), REDIRECTS) as server:
            documents = replace(Endpoint.local(server.url), parallel=3)
            yield EntityDataFeed(documents, live, relations=relations())


IDS = ["Q100", "Q101", "Q102", "Q5", "Q404"]
PROPERTIES = ["P6", "P571", "P1082", "P1448", "P474", "P856", "P18", "P625", "P54"]


def test_statements(feed):
    found = feed.statements(IDS, PROPERTIES)
    expected = from_documents(world()).statements(IDS, PROPERTIES)
    assert found == expected
    assert (
        len(found) == 8 + 2 + 2 + 1 + 1 + 1 + 1 + 1
    )  # P18 and P625 are left out, and so is the nation's team
    by_id = {one.id: one for one in found}
    assert by_id["Q100$0000-0002"].end.kind == "novalue"
    assert by_id["Q100$0000-0005"].start.time.iso == "1752-09-13"  # Julian
    assert by_id["Q100$0000-0006"].start.time.iso == "-0043-03-13"
    assert by_id["Q100$0000-0007"].start.time.iso == "-0499"
    assert by_id["Q100$0000-0008"].end.time.iso == "2010"  # of several the one that ends last
    assert by_id["Q100$0000-0004"].point_in_time.iso == "2004-02-29"
    assert by_id["Q100$0000-0023"].value.canonical == "12.5 Q712226"
    assert by_id["Q100$0000-0024"].value.canonical == 'The "Free" \\ State\nof Ruritania@en'
    assert {one.revision for one in found} == {1000}
    heads = [one for one in found if one.property == "P6" and one.subject == "Q100"]
    assert [one.reference_count for one in heads] == [NAMED[number % 8] for number in range(1, 9)]
    assert len(feed.skipped) == 2


def test_probes(feed):
    found = feed.probe(["Q404", "Q900", "Q101"])
    assert found == [
        Probe("Q101", 1000, datetime(2026, 8, 1, 10, tzinfo=UTC)),
        Probe("Q404", None, None),
        Probe("Q900", None, None, "Q100"),
    ]
    assert [one.is_deleted for one in found] == [False, True, False]


def test_discovery(feed):
    rels = [relations()[one] for one in ("P6", "P54", "P35")]
    day = datetime(2026, 8, 31, tzinfo=UTC)
    assert feed.discover(day, day + timedelta(days=1), rels) == ["Q5", "Q100"]
    assert feed.discover(day - timedelta(days=60), day, rels) == ["Q101"]
    assert feed.discover(day, day + timedelta(hours=10), rels) == ["Q5"]  # the end is open
    assert feed.discover(day + timedelta(hours=10), day + timedelta(days=1), rels) == [
        "Q100"
    ]  # the start is not
    assert feed.discover(day, day, rels) == []
    foreign = [replace(relations()["P54"], classes=("Q7777",))]
    assert feed.discover(day - timedelta(days=60), day + timedelta(days=1), foreign) == []


def test_labels(feed):
    found = {one.entity: (one.text, one.language) for one in feed.labels([*IDS, "Q1"]).values()}
    assert found == {
        "Q100": ("Ruritania", "en"),
        "Q101": ("Old News", "mul"),
        "Q102": ("Nothing", "en-gb"),
        "Q5": ("Player", "en"),
    }


def test_neighbours(feed):
    rel = relations()["P54"]
    assert feed.neighbours("Q5", rel) == ["Q6"]
    assert feed.neighbours("Q5", relations()["P6"]) == []
    assert feed.neighbours("Q404", rel) == []


def test_lag_and_nothing_asked(feed):
    assert feed.lag() == datetime.fromisoformat(UNTIL)
    assert feed.statements([], PROPERTIES) == []
    assert feed.statements(IDS, []) == []
    assert feed.labels([]) == {}
    assert feed.probe([]) == []


def test_a_source_without_a_date_says_so(served):
    with served('<http://a> <http://b> "c" .') as url, pytest.raises(EmptySourceError):
        SparqlFeed(Endpoint.local(url)).lag()
    with pytest.raises(EmptySourceError):
        DocumentFeed([]).lag()


def real_documents():
    found = {}
    for name in (
        "Q1752.json",
        "Q183.json",
        "Q8646.json",
        "wbgetentities-Q32063953.json",
        "wbgetentities-Q6-Q42-P31.json",
        "Q494290.json",
    ):
        raw = json.loads((ENTITIES / name).read_text(encoding="utf-8"))
        for one in raw["entities"].values() if "entities" in raw else [raw]:
            if "missing" not in one:
                found[one["id"]] = one
    with gzip.open(ENTITIES / "full_entities_2025_2026.jsonl.gz") as lines:
        for line in lines:
            one = json.loads(line)
            found[one["id"]] = one
    return [one for one in found.values() if one["type"] == "item"]


@needs_entities
@pytest.mark.parametrize("layout", ["munged", "dump"])
def test_real_documents_give_the_same_rows_from_a_server_as_from_json(served, layout):
    raws = [{**copy.deepcopy(one), "lastrevid": one.get("lastrevid", 0)} for one in real_documents()]
    for raw in raws:  # what the exporter of these tests cannot write, no feed is asked for
        raw["claims"] = {
            prop: claims
            for prop, claims in (raw["claims"] or {}).items()
            if all(
                "datavalue" not in one["mainsnak"]
                or one["mainsnak"]["datavalue"]["type"] != "wikibase-entityid"
                or one["mainsnak"].get("datatype") in {"wikibase-item", "wikibase-property"}
                for one in claims
            )
        }
    ids = [one["id"] for one in raws]
    properties = sorted({prop for one in raws for prop in one["claims"]})
    memory = DocumentFeed(
        [one for raw in raws for one in DocumentReader().read(raw)], until=datetime.fromisoformat(UNTIL)
    )
    with served(export(raws, layout)) as url:
        live = SparqlFeed(replace(Endpoint.local(url), layout=Layout(layout)))
        found = live.statements(ids, properties)
        expected = memory.statements(ids, properties)
        assert len(found) > 2500
        assert found == expected
        assert live.labels(ids) == memory.labels(ids)
        assert live.probe(ids) == memory.probe(ids)
        assert sorted(one.subject for one in live.skipped) == sorted(one.subject for one in memory.skipped)


@needs_entities
def test_hong_kongs_preferred_but_ended_head_of_government():
    (one,) = read_file(ENTITIES / "Q8646.json")
    result = verdict(
        [row for row in one.statements if row.property == "P6"],
        Relations.load()["P6"],
        datetime(2019, 10, 1, tzinfo=UTC),
    )
    assert [fact.value.canonical for fact in result.facts] == ["Q19217"]
    assert "preferred-not-open" in result.flags


@needs_entities
def test_every_real_document_parses_or_says_why_not():
    problems, documents = [], []
    for path in sorted(ENTITIES.glob("*json*")):
        for one in read_file(path):
            (problems if isinstance(one, BadEntityError) else documents).append(one)
    assert [one.reason for one in problems] == ["bad-id"]  # labels.json is no entity document
    assert len(documents) > 140
    assert {one.reason for document in documents for one in document.skipped} == {"unreadable"}
    ids = [row.id for document in documents for row in document.statements]
    assert all(one == one.upper() for one in ids)
    assert any(one.target for one in documents)  # a merged item
    assert any(one.missing for one in documents)  # a deleted one
    merged = DocumentFeed(documents).probe(["Q32063953", "Q6"])
    assert merged[1].redirect_to == "Q1040"
    assert merged[0].is_deleted
