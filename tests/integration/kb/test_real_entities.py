"""Real entity documents: the same rows from a server as from JSON, and verdicts on what people wrote."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from kb.document_feed import DocumentFeed
from kb.documents import DocumentReader, read_file
from kb.endpoint import Endpoint, Layout
from kb.errors import BadEntityError
from kb.feed import SparqlFeed
from kb.relations import Relations
from kb.semantics import verdict
from tests.integration.kb.real_entities import ENTITIES, needs_entities, real_documents
from tests.integration.kb.world import UNTIL, export


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
