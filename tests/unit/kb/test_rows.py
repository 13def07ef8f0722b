"""Rows that an endpoint should not send, and sometimes does."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.endpoint import Endpoint
from kb.model import Bound, Probe, Value, WikiTime
from kb.rows import StatementReader, moment, probes
from kb.sparql import Node

ENDPOINT = Endpoint.local("http://127.0.0.1:1/query")
WD, PROP = "http://www.wikidata.org/entity/", "http://www.wikidata.org/prop/"
WB, XSD = "http://wikiba.se/ontology#", "http://www.w3.org/2001/XMLSchema#"
SCHEMA, SAME = "http://schema.org/", "http://www.w3.org/2002/07/owl#sameAs"
TYPE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#type"


def uri(text):
    return Node("uri", text)


def literal(text, kind=""):
    return Node("literal", text, datatype=XSD + kind if kind else "")


def row(predicate, value, **more):
    found = {
        "item": uri(WD + "Q100"),
        "claim": uri(PROP + "P6"),
        "statement": uri(WD + "statement/q100-abc"),
        "predicate": uri(predicate),
        "object": value,
    }
    return found | more


RANK = row(WB + "rank", uri(WB + "NormalRank"))
MAIN = row(PROP + "statement/P6", uri(WD + "Q1"))


def probed(entity, predicate, value):
    return {"item": uri(WD + entity), "predicate": uri(predicate), "object": value}


def read(*rows):
    reader = StatementReader(ENDPOINT)
    return reader.read(rows), [one.reason for one in reader.skipped]


def test_a_statement_needs_its_rank_and_its_value():
    (found,), skipped = read(RANK, MAIN)
    assert (found.id, found.value, found.revision, skipped) == ("Q100$ABC", Value.item("Q1"), 0, [])
    for rows in ([MAIN], [RANK], [RANK, MAIN, row(WB + "rank", uri(WB + "PreferredRank"))]):
        assert read(*rows) == ([], ["unreadable"])
    assert read(RANK, MAIN, row(PROP + "statement/P6", uri(WD + "Q2"))) == ([], ["unreadable"])
    assert read(row(WB + "rank", uri(WB + "BestRank")), MAIN) == ([], ["unreadable"])
    assert read(RANK, row(PROP + "statement/P6", literal("x\ud800y"))) == ([], ["unreadable"])


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (Node("bnode", "b0"), Value.somevalue()),
        (uri("http://www.wikidata.org/.well-known/genid/abc"), Value.somevalue()),
        (uri("http://www.example.org/x"), Value.string("http://www.example.org/x")),
        (Node("literal", "Ja", language="de"), Value.monolingual("Ja", "de")),
        (literal("text", "string"), Value.string("text")),
        (literal("2003-05-07T00:00:00Z", "dateTime"), Value.time(WikiTime("2003-05-07", 11))),
        (literal("+12.50", "decimal"), Value.quantity("12.5", None)),
    ],
)
def test_values_without_a_value_node(node, value):
    (found,), _ = read(RANK, row(PROP + "statement/P6", node))
    assert found.value == value


@pytest.mark.parametrize(
    "node",
    [
        uri("http://commons.wikimedia.org/wiki/Special:FilePath/Flag.svg"),
        literal("Point(1 2)", "wktLiteral"),
        literal("+2003-00-00", "dateTime"),
        literal("soon", "dateTime"),
        literal("NaN", "decimal"),
    ],
)
def test_values_that_are_not_read(node):
    found, skipped = read(RANK, row(PROP + "statement/P6", node))
    if node.text.startswith("+2003"):
        assert found[0].value == Value.time(WikiTime("2003", 9))
    else:
        assert (found, skipped) == ([], ["unreadable"])


@pytest.mark.parametrize(
    ("nodes", "bound"),
    [
        ([literal("2003-05-07T00:00:00Z", "dateTime")], Bound("value", WikiTime("2003-05-07", 11))),
        ([literal("+2003-00-00T00:00:00Z", "dateTime")], Bound("value", WikiTime("2003", 9))),
        (
            [literal("2003-05-07", "date"), literal("2001-01-01", "date")],
            Bound("value", WikiTime("2003-05-07", 11)),
        ),
        ([literal("nonsense")], Bound("value", None)),
        ([literal("nonsense"), literal("2003-05-07", "date")], Bound("value", WikiTime("2003-05-07", 11))),
        ([Node("bnode", "b1")], Bound("somevalue")),
    ],
)
def test_ends_without_a_value_node(nodes, bound):
    (found,), _ = read(RANK, MAIN, *(row(PROP + "qualifier/P582", node) for node in nodes))
    assert found.end == bound


def test_an_end_of_novalue_and_a_value_node_that_is_torn():
    (found,), _ = read(RANK, MAIN, row(TYPE, uri(PROP + "novalue/P582")))
    assert found.end == Bound("novalue")
    torn = row(
        PROP + "qualifier/value/P582", literal("11", "integer"), node=uri("v"), part=uri(WB + "timePrecision")
    )
    (found,), _ = read(RANK, MAIN, torn)
    assert found.end is None
    bad = row(PROP + "qualifier/value/P582", literal("never"), node=uri("v"), part=uri(WB + "timeValue"))
    (found,), _ = read(RANK, MAIN, bad)
    assert found.end == Bound("value", None)


def test_rows_of_foreign_things_are_passed_over():
    foreign = [
        {},
        {"item": uri("http://other/Q1")},
        {"item": literal("Q1")},
        {"item": uri(WD + "Q1>")},
        {"item": uri(WD + "Q1"), "object": literal("many")},
    ]
    assert read(*foreign) == ([], [])
    assert read(RANK | {"statement": uri("http://other/s")}, MAIN | {"statement": uri("http://other/s")})[
        1
    ] == ["unreadable"]
    same = [probed("Q1", SCHEMA + "version", literal("+5")), probed("Q1", SAME, uri(WD + "Q1"))]
    assert probes([*foreign, *same], ["Q1"], ENDPOINT) == [Probe("Q1", 5, None, None)]


def test_of_several_redirects_the_oldest_item_counts():
    rows = [probed("Q9", SAME, uri(WD + target)) for target in ("Q20", "Q3", "Q100")]
    assert probes(rows, ["Q9"], ENDPOINT)[0].redirect_to == "Q3"


def test_moments():
    assert moment(None) is None
    assert moment(literal("soon")) is None
    assert moment(literal("2026-09-01T04:00:00+02:00")) == datetime(2026, 9, 1, 2, tzinfo=UTC)
    assert moment(literal("2026-09-01T02:00:00")) == datetime(2026, 9, 1, 2, tzinfo=UTC)


nodes = st.builds(
    Node,
    st.sampled_from(["uri", "literal", "bnode"]),
    st.sampled_from(
        [WD + "Q1", WB + "NormalRank", WB + "timeValue", PROP + "statement/P6", "2003-05-07T00:00:00Z"]
    )
    | st.text(),
    st.sampled_from(["", "en"]),
    st.sampled_from(["", XSD + "dateTime", XSD + "decimal"]) | st.text(max_size=5),
)
wild_rows = (
    st.fixed_dictionaries(
        {"item": nodes | st.just(uri(WD + "Q100"))},
        optional=dict.fromkeys(("object",), nodes),
    )
    | st.builds(
        row,
        st.sampled_from(
            [WB + "rank", PROP + "statement/P6", PROP + "qualifier/P582", PROP + "qualifier/value/P582", TYPE]
        ),
        nodes,
        node=nodes,
        part=nodes,
    )
    | st.builds(
        row, st.sampled_from([WB + "rank", PROP + "statement/P6", PROP + "qualifier/P580", TYPE]), nodes
    )
)


@given(st.lists(wild_rows, max_size=12))
def test_any_rows_give_statements_or_reasons(rows):
    found, skipped = read(*rows)
    assert len(found) + len(skipped) <= 1
    probes(rows, ["Q1"], ENDPOINT)
