"""What is written as Turtle is read back the same: hostile labels, other Wikibases, the sample's nights."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb.endpoint import Endpoint, Namespaces, Properties
from kb.errors import BadTermError
from kb.feed import SparqlFeed
from kb.labels import tidy
from kb.model import Label, Probe, Rank, Value, WikiTime
from kb.relations import Relations
from kb.replay import Rehearsal
from kb.store import LocalStore
from kb.turtle import TurtleWriter
from tests.unit.kb import made
from tests.unit.kb.made import AT, statement

HOSTILE = [
    '"} UNION { ?s ?p ?o } #',
    "> . <http://evil> <http://evil> <http://evil",
    '\\u0022 \\" \\',
    'O\'Brien "the" {subject} $items ${items} %s',
    "line\nbreak\ttab",
    "<script>alert(1)</script>",
    "Ħ\u202e ẞ 🇸🇪 \u0301",
]


def graph(labels=(), statements=(), probes=(), writer=None):
    lines = (writer or TurtleWriter()).graph(
        until=AT, probes=probes, statements=statements, labels={one.entity: one for one in labels}
    )
    return "".join(lines)


def test_hostile_labels_come_back_as_they_are(served):
    labels = [Label(f"Q{number}", text, "en") for number, text in enumerate(HOSTILE, start=1)]
    with served(graph(labels)) as url:
        found = SparqlFeed(Endpoint.local(url)).labels([one.entity for one in labels])
    assert {one.text for one in found.values()} == {tidy(text) for text in HOSTILE}
    assert len(found) == len(HOSTILE)


@pytest.mark.parametrize("text", ["Q1> <http://evil", "Q1 } UNION { ?s ?p ?o", "Q1\x00", "wd:Q1", "Q1;", ""])
def test_hostile_ids_are_refused_before_anything_is_sent(text):
    feed = SparqlFeed(Endpoint.local("http://127.0.0.1:9/query"))  # nobody listens there
    for ask in (
        feed.probe,
        feed.labels,
        lambda ids: feed.statements(ids, ["P6"]),
        lambda ids: feed.statements(["Q1"], ids),
    ):
        with pytest.raises(BadTermError):
            ask([text])


def test_any_labels_and_statements_round_trip(tmp_path):
    """One server, many made-up contents: what goes in as statements comes out as the same statements."""

    @settings(max_examples=10, deadline=None)
    @given(
        made.groups(largest=12),
        st.dictionaries(
            st.sampled_from(["Q1", "Q2", "Q3", "Q100"]),
            st.text(st.characters(codec="utf-8", exclude_characters="\x00")),
        ),
    )
    def check(group, texts):
        labels = [Label(entity, text, "en") for entity, text in texts.items() if tidy(text)]
        probe = Probe("Q100", 7, datetime(2026, 8, 31, tzinfo=UTC))
        file = tmp_path / "content.nt"
        file.write_text(graph(labels, group, [probe]), encoding="utf-8")
        store = LocalStore(tmp_path / "store")
        store.load(file)
        with store.serve() as url:
            feed = SparqlFeed(Endpoint.local(url))
            found = feed.statements(["Q100"], ["P6"])
            assert {one.id: one for one in found} == {one.id: one for one in group}
            assert feed.probe(["Q100"]) == [probe]
            assert feed.lag() == AT
            assert {one.entity: one.text for one in feed.labels(texts).values()} == {
                one.entity: tidy(one.text) for one in labels
            }

    check()


def test_literal_values_round_trip(served):
    values = [
        Value.time(WikiTime("1949-05-23", 11)),
        Value.time(WikiTime("-0043", 9)),
        Value.time(WikiTime("-0499", 7)),
        Value.time(WikiTime("0000", 6)),
        Value.time(WikiTime("1616-05-03", 11, julian=True)),
        Value.quantity("84358845", None),
        Value.quantity("-12.5", "Q712226"),
        Value.string('a "quoted" \\ text'),
        Value.monolingual("Königreich", "de"),
    ]
    rows = [statement(number=number, value=value) for number, value in enumerate(values)]
    with served(graph((), rows, [Probe("Q100", 7, AT)])) as url:
        assert [one.value for one in SparqlFeed(Endpoint.local(url)).statements(["Q100"], ["P6"])] == values


def test_another_wikibase_is_a_matter_of_settings(served):
    names = Namespaces.of("https://wiki.museum.net")
    own = Properties(instance_of="P1", subclass_of="P2", start="P3", end="P4", point_in_time="P5")
    rows = [
        statement(
            "Q7", 1, property="P10", start=made.until("2001-05"), end=made.until("2002"), rank=Rank.PREFERRED
        ),
        statement("Q8", 2, property="P10", point_in_time=made.day("2003-04-05")),
    ]
    text = graph(
        [Label("Q100", "Museum", "de")],
        rows,
        [Probe("Q100", 7, AT - timedelta(days=1))],
        TurtleWriter(names, own),
    )
    assert "wikidata.org/entity" not in text
    relation = replace(Relations.load()["P6"], property="P10")
    with served(text) as url:
        endpoint = replace(Endpoint.local(url), namespaces=names, properties=own, languages=("de", "en"))
        feed = SparqlFeed(endpoint)
        assert feed.lag() == AT
        assert feed.discover(AT - timedelta(days=2), AT, [relation]) == ["Q100"]
        assert feed.statements(["Q100"], ["P10"]) == rows
        assert feed.labels(["Q100"]) == {"Q100": Label("Q100", "Museum", "de")}
        foreign = SparqlFeed(Endpoint.local(url))
        assert foreign.statements(["Q100"], ["P10"]) == []


def test_the_samples_nights_rehearsed_give_what_the_sample_expects(tmp_path):
    expected = tomllib.loads((resources.files("kb.sample") / "expected.toml").read_text(encoding="utf-8"))[
        "expected"
    ]
    relations = Relations.load()
    store, ledger = LocalStore(tmp_path / "store"), Rehearsal(relations)
    subjects: set[str] = set()
    for number in (1, 2):
        night = store.load_night(number)
        with store.serve() as url:
            feed = SparqlFeed(Endpoint.local(url), relations=relations)
            window = datetime(2000, 1, 1, tzinfo=UTC), feed.lag() + timedelta(seconds=1)
            subjects |= set(feed.discover(*window, relations.values()))
            result = ledger.night(feed, number, night.reference_time, sorted(subjects))
            assert feed.skipped == []
        assert result.stopped == ()
    kinds = {
        (one.subject, one.property, one.new.value.canonical if one.new else None): one
        for one in result.changes
    }
    for row in expected:
        found = kinds.get((row["subject"], row["property"], row.get("new", row.get("old")))) or kinds.get(
            (row["subject"], row["property"], None)
        )
        assert found is not None, row
        assert found.kind.value == row["kind"], row
        if "reason" in row:
            assert found.held_back_for().value == row["reason"], row


def test_discovery_finds_items_alone(served):
    """Properties and lexemes carry statements too, and are nobody's subject."""
    rows = [
        statement(number=number, subject=one, id=f"{one}${number}")
        for number, one in enumerate(("Q100", "P31", "L7"))
    ]
    probes = [Probe(row.subject, 7, AT - timedelta(days=1)) for row in rows]
    relation = replace(Relations.load()["P6"], classes=())
    with served(graph((), rows, probes)) as url:
        feed = SparqlFeed(Endpoint.local(url))
        assert feed.discover(AT - timedelta(days=2), AT, [relation]) == ["Q100"]
