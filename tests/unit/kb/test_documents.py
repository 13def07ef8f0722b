from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb.document_feed import DocumentFeed
from kb.documents import Document, DocumentReader, read_file, read_lines, time_of
from kb.errors import BadEntityError, BadTermError
from kb.model import Statement

READER = DocumentReader()


def claim(**changed):
    values = {
        "id": "q42$abc",
        "rank": "normal",
        "mainsnak": {
            "snaktype": "value",
            "datatype": "wikibase-item",
            "datavalue": {"type": "wikibase-entityid", "value": {"entity-type": "item", "numeric-id": 5}},
        },
    }
    return values | changed


def entity(*claims, **changed):
    return {
        "id": "Q42",
        "type": "item",
        "labels": [],
        "claims": {"P31": list(claims)} if claims else [],
    } | changed


def test_old_documents_without_ids_revisions_or_maps():
    (one,) = READER.read(entity(claim()))
    assert one.statements == (
        Statement("Q42$ABC", "Q42", "P31", one.statements[0].value, one.statements[0].rank),
    )
    assert one.statements[0].value.canonical == "Q5"
    assert (one.revision, one.modified_at, one.labels) == (0, None, {})


@pytest.mark.parametrize(
    "wrong",
    [
        claim(id="nonsense"),
        claim(id=None),
        claim(rank="best"),
        claim(mainsnak={}),
        claim(
            mainsnak={
                "snaktype": "value",
                "datavalue": {"type": "time", "value": {"time": "2003-02"}},
            }
        ),
        claim(mainsnak={"snaktype": "value", "datavalue": {"type": "time", "value": []}}),
        claim(mainsnak={"snaktype": "value", "datavalue": {"type": "quantity", "value": {"amount": "many"}}}),
        claim(
            mainsnak={
                "snaktype": "value",
                "datatype": "musical-notation",
                "datavalue": {"type": "string", "value": "c"},
            }
        ),
        claim(mainsnak={"snaktype": "value", "datavalue": {"type": "string", "value": "x\ud800y"}}),
        claim(qualifiers=[1]),
        claim(references=7),
        None,
        [],
        "claim",
    ],
)
def test_a_claim_that_cannot_be_read_costs_itself_alone(wrong):
    (one,) = READER.read(entity(wrong, claim(id="Q42$def")))
    assert [row.id for row in one.statements] == ["Q42$DEF"]
    assert [row.reason for row in one.skipped] in (["unreadable"], ["bad-claim"])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ([], "not-an-object"),
        ("x", "not-an-object"),
        ({"error": {"code": "maxlag"}}, "error-reply"),
        ({"error": 1}, "error-reply"),
        ({"entities": 5}, "bad-entities"),
        ({"entities": {"Q1": 5}}, "not-an-object"),
        ({"id": "nobody"}, "bad-id"),
        ({}, "bad-id"),
    ],
)
def test_what_is_no_document_says_why(raw, reason):
    with pytest.raises(BadEntityError) as caught:
        READER.read(raw)
    assert caught.value.reason == reason


def test_missing_and_merged_entities():
    reply = {
        "entities": {
            "Q1": {"id": "Q1", "missing": ""},
            "Q2": {"id": "Q3", "lastrevid": 9, "redirects": {"from": "Q2", "to": "Q3"}},
            "Q4": {"entity": "Q4", "redirect": "Q5"},
        }
    }
    gone, merged, forwarded = READER.read(reply)
    assert gone.missing
    assert (merged.entity, merged.target) == ("Q2", "Q3")
    assert (forwarded.entity, forwarded.target) == ("Q4", "Q5")
    feed = DocumentFeed([gone, merged, forwarded])
    probes = {one.subject: one for one in feed.probe(["Q1", "Q2", "Q3", "Q4"])}
    assert probes["Q1"].is_deleted
    assert probes["Q2"].redirect_to == "Q3"
    assert probes["Q3"].revision == 9
    assert probes["Q4"].redirect_to == "Q5"


def test_the_newest_of_several_documents_counts():
    old, new = (Document("Q1", revision=revision, labels={"en": f"r{revision}"}) for revision in (3, 7))
    for documents in ([old, new], [new, old]):
        assert DocumentFeed(documents).labels(["Q1"])["Q1"].text == "r7"


@pytest.mark.parametrize(
    ("text", "precision", "calendar", "iso"),
    [
        ("+2003-00-00T00:00:00Z", 9, "", "2003"),
        ("+00000002013-02-12T00:00:00Z", 11, "", "2013-02-12"),
        ("-0044-03-15T00:00:00Z", 11, "Q1985786", "-0043-03-13"),
        ("-0044-00-00T00:00:00Z", 9, "Q1985786", "-0043"),
        ("+1564-04-26T00:00:00Z", 11, "http://www.wikidata.org/entity/Q1985786", "1564-05-06"),
        ("+1564-04-00T00:00:00Z", 10, "http://www.wikidata.org/entity/Q1985786", "1564-04"),
        ("-0500-00-00T00:00:00Z", 7, "", "-0499"),
        ("+2003-02-30T00:00:00Z", 11, "", "2003-02-28"),
        ("+2003-13-01T00:00:00Z", 11, "", "2003-12-01"),
    ],
)
def test_json_dates_become_what_rdf_says(text, precision, calendar, iso):
    assert time_of({"time": text, "precision": precision, "calendarmodel": calendar}).iso == iso


@pytest.mark.parametrize(
    "text", ["-0000-01-01T00:00:00Z", "2003", "+2003-1a-01T00:00:00Z", "+" + "9" * 17 + "-01-01"]
)
def test_json_dates_that_are_none(text):
    with pytest.raises(BadTermError):
        time_of({"time": text, "precision": 11})


def test_one_bad_line_costs_one_entity():
    lines = [
        "[\n",
        json.dumps(entity(claim())) + ",\n",
        '{"id": "Q2", "cla\n',
        "\n",
        b"\xff\xfe{}\n",
        '{"id":"Q3"}\n',
        "]\n",
    ]
    found = list(read_lines(lines))
    assert [type(one) for one in found] == [Document, BadEntityError, BadEntityError, Document]
    assert "Line 3" in str(found[1])


def test_files_of_every_wrapping(tmp_path):
    body = json.dumps(entity(claim()))
    contents = {
        "dump.json": f"[\n{body},\n{body}\n]\n".encode(),
        "lines.jsonl.gz": gzip.compress(f"{body}\n{body}\n".encode()),
        "pretty.json": json.dumps(entity(claim()), indent=1).encode(),
        "cut.json": json.dumps(entity(claim()), indent=1).encode()[:-5],
        "empty.json": b"",
    }
    counts = {}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        counts[name] = [type(one).__name__ for one in read_file(tmp_path / name)]
    assert counts == {
        "dump.json": ["Document", "Document"],
        "lines.jsonl.gz": ["Document", "Document"],
        "pretty.json": ["Document"],
        "cut.json": ["BadEntityError"],
        "empty.json": [],
    }
    (tmp_path / "torn.gz").write_bytes(gzip.compress(body.encode() * 100)[:-9])
    for path in (tmp_path / "torn.gz", tmp_path / "none.json"):
        with pytest.raises(BadEntityError):
            list(read_file(path))


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    "id",
    "rank",
    "mainsnak",
    "qualifiers",
    "references",
    "snaktype",
    "datavalue",
    "type",
    "value",
    "time",
    "P580",
]


@st.composite
def mutated(draw):
    """A right document with some parts replaced by anything."""
    raw = entity(
        claim(
            qualifiers={
                "P580": [
                    {
                        "snaktype": "value",
                        "datavalue": {"type": "time", "value": {"time": "+2003-01-01T00:00:00Z"}},
                    }
                ]
            }
        ),
        lastrevid=5,
        modified="2026-01-01T00:00:00Z",
        labels={"en": {"language": "en", "value": "x"}},
    )

    def change(node):
        if draw(st.integers(0, 9)) == 0:
            return draw(json_like)
        if isinstance(node, dict):
            return {key: change(value) for key, value in node.items()}
        return [change(value) for value in node] if isinstance(node, list) else node

    return change(raw)


@given(
    mutated()
    | json_like
    | st.dictionaries(st.sampled_from(["entities", "error", "id", "claims", "labels"]), json_like)
)
def test_any_json_is_a_document_or_a_named_error(raw):
    try:
        documents = READER.read(raw)
    except BadEntityError as error:
        if not error.reason:
            raise
        return
    feed = DocumentFeed(documents, until=datetime(2026, 1, 1, tzinfo=UTC))
    ids = [one.entity for one in documents]
    for one in feed.statements(ids, ["P31"]):
        assert Statement.from_json(one.to_json()) == one
    feed.labels(ids)
    feed.probe(ids)


@given(st.text() | st.binary())
def test_any_text_is_a_document_or_a_named_error(text):
    for one in read_lines([text]):
        assert isinstance(one, Document | BadEntityError)
