"""What the settings say of a source is what is asked."""

import json
from datetime import UTC, datetime

import pytest

from flows.errors import SettingsError
from flows.settings import Settings
from flows.source import endpoint_of, opened_feed
from kb.endpoint import Endpoint, Layout, Namespaces, Properties
from kb.entity_data import EntityDataFeed
from kb.errors import ContactMissingError, EmptySourceError
from kb.feed import SparqlFeed
from kb.relations import Relations
from kb.store import LocalStore

WIKI = "https://wiki.example.net"


def read(home, **values):
    lines = [f"FACTSYNC_{name.upper()}={value}\n" for name, value in values.items()]
    (home / "factsync.env").write_text("".join(lines))
    return Settings.read(home)


def test_a_public_endpoint_is_treated_as_the_class_says_unless_it_is_set(tmp_path):
    url = "https://query.wikidata.org/sparql"
    found = endpoint_of(read(tmp_path, endpoint=url, contact="ann@wiki.invalid"))
    assert found == Endpoint(url, user_agent=found.user_agent)
    assert "ann@wiki.invalid" in found.agent


def test_another_wikibase_is_settings(tmp_path):
    found = endpoint_of(
        read(
            tmp_path,
            endpoint=f"{WIKI}/query",
            endpoint_layout="dump",
            endpoint_parallel=3,
            endpoint_timeout_s=20,
            wikibase=WIKI,
            wikibase_properties=json.dumps({"start": "P5", "end": "P6"}),
            languages="de, en",
        )
    )
    assert found.namespaces == Namespaces.of(WIKI)
    assert found.properties == Properties(start="P5", end="P6")
    assert (found.layout, found.parallel, found.timeout_s) == (Layout.DUMP, 3, 20.0)
    assert found.languages == ("de", "en")


def test_the_local_store_is_asked_in_the_same_words(tmp_path):
    """It may hold another language than English, or a dump of another Wikibase."""
    settings = read(tmp_path, languages="fr, mul", wikibase=WIKI, wikibase_properties='{"start": "P5"}')
    LocalStore(settings.store_dir).load_night(1)
    with opened_feed(settings, Relations.load()) as feed:
        assert feed.endpoint.languages == ("fr", "mul")
        assert feed.endpoint.namespaces == Namespaces.of(WIKI)
        assert feed.endpoint.properties == Properties(start="P5")


def test_a_raw_dump_is_read_from_the_local_store(tmp_path):
    """A part of a real one: dates and versions stand on documents, and the dump says when it was made."""
    dump = tmp_path / "dump.ttl"
    dump.write_text(
        "@prefix schema: <http://schema.org/> .\n"
        "@prefix wd: <http://www.wikidata.org/entity/> .\n"
        "@prefix data: <https://www.wikidata.org/wiki/Special:EntityData/> .\n"
        "@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .\n"
        '<http://wikiba.se/ontology#Dump> schema:dateModified "2026-09-01T23:00:02Z"^^xsd:dateTime .\n'
        "data:Q42 schema:about wd:Q42 ; schema:version 7 ;"
        ' schema:dateModified "2026-08-30T05:30:17Z"^^xsd:dateTime .\n'
    )
    settings = read(tmp_path, endpoint_layout="dump")
    LocalStore(settings.store_dir).load(dump)
    with opened_feed(settings, Relations.load()) as feed:
        assert feed.lag() == datetime(2026, 9, 1, 23, 0, 2, tzinfo=UTC)
        assert [one.revision for one in feed.probe(["Q42"])] == [7]
    munged = read(tmp_path, endpoint_layout="munged")
    asking = pytest.raises(EmptySourceError, match="set FACTSYNC_ENDPOINT_LAYOUT=dump")
    with opened_feed(munged, Relations.load()) as feed, asking:
        feed.lag()


def test_documents_are_read_beside_the_index(tmp_path):
    values = {"endpoint": f"{WIKI}/query", "contact": "ann@wiki.invalid"}
    relations = Relations.load()
    with opened_feed(read(tmp_path, **values), relations) as feed:
        assert isinstance(feed, SparqlFeed)
    documents = f"{WIKI}/wiki/Special:EntityData"
    with opened_feed(read(tmp_path, **values, entity_data=documents), relations) as feed:
        assert isinstance(feed, EntityDataFeed)
        assert feed.endpoint.url == documents
        assert feed.index.endpoint.url == f"{WIKI}/query"


def test_nobody_asks_a_public_service_unnamed(tmp_path):
    with pytest.raises(ContactMissingError), opened_feed(read(tmp_path, endpoint=WIKI), Relations.load()):
        pass


@pytest.mark.parametrize("contact", ["me", "ann@example.com", "https://localhost"])
def test_a_contact_that_reaches_nobody_is_refused(tmp_path, contact):
    """The tool's own name in the User-Agent does not stand for its user."""
    settings = read(tmp_path, endpoint=WIKI, contact=contact)
    with (
        pytest.raises(ContactMissingError, match="FACTSYNC_CONTACT"),
        opened_feed(settings, Relations.load()),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"endpoint": "query.wikidata.org"}, "FACTSYNC_ENDPOINT"),
        ({"wikibase": "<nowhere>"}, "FACTSYNC_WIKIBASE"),
        ({"wikibase_properties": '{"begin": "P5"}'}, "FACTSYNC_WIKIBASE_PROPERTIES"),
        ({"wikibase_properties": '{"start": "five"}'}, "FACTSYNC_WIKIBASE_PROPERTIES"),
    ],
    ids=str,
)
def test_what_is_no_source_is_named(tmp_path, values, named):
    settings = read(tmp_path, **{"endpoint": f"{WIKI}/query", **values})
    with pytest.raises(SettingsError, match=named):
        endpoint_of(settings)
