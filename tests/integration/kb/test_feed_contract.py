"""One contract for every feed: the same content gives the same rows, whatever it is read from."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kb.document_feed import DocumentFeed
from kb.documents import Document, DocumentReader
from kb.endpoint import Endpoint, Layout
from kb.entity_data import EntityDataFeed
from kb.errors import EmptySourceError
from kb.feed import SparqlFeed
from kb.model import Probe
from kb.relations import Relations
from tests.integration.kb.entity_data_server import EntityDataServer
from tests.integration.kb.rdflib_server import RdflibServer
from tests.integration.kb.world import NAMED, REDIRECTS, UNTIL, export, world


def relations():
    shipped = Relations.load()
    return {
        "P6": shipped["P6"],
        "P54": replace(shipped["P54"], classes=("Q5000",), not_values=("Q9003",)),
        "P35": shipped["P35"],
    }


def from_documents(documents, redirects=()):
    reader = DocumentReader()
    found = [one for raw in documents for one in reader.read(raw)]
    found += [Document(source, target=target) for source, target in redirects]
    return DocumentFeed(found, until=datetime.fromisoformat(UNTIL), relations=relations())


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
    # the version is known of an item without statements too
    assert [feed.revisions.get(one, 0) for one in IDS] == [1000, 1000, 1000, 1000, 0]


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
