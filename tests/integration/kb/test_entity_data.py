"""Statements from documents that a real HTTP server serves as Special:EntityData does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kb.budget import Clock
from kb.document_feed import DocumentFeed
from kb.documents import DocumentReader
from kb.endpoint import Endpoint
from kb.entity_data import EntityDataFeed
from kb.errors import (
    BadEntityError,
    ContactMissingError,
    EndpointDownError,
    EndpointMovedError,
    EndpointNotFoundError,
    EndpointTimeoutError,
    NotSparqlReplyError,
    ThrottledError,
    TruncatedReplyError,
)
from kb.model import Probe
from kb.rows import Skipped
from tests.integration.kb.entity_data_server import EntityDataServer, Handler
from tests.integration.kb.real_entities import needs_entities, real_documents
from tests.integration.kb.world import world

if TYPE_CHECKING:
    from collections.abc import Iterator

PROPERTIES = ["P6", "P54", "P571", "P1082"]


class Waits:
    """A clock that does not wait, and knows for how long it should have."""

    def __init__(self):
        self.seconds = 0.0
        self.clock = Clock(monotonic=lambda: self.seconds, sleep=self.sleep)

    def sleep(self, seconds):
        self.seconds += seconds


@pytest.fixture
def server() -> Iterator[EntityDataServer]:
    with EntityDataServer(world(), [("Q900", "Q100")]) as running:
        yield running


def index(documents=None):
    return DocumentFeed(one for raw in documents or world() for one in DocumentReader().read(raw))


def feed(server, *, clock=None, **options):
    endpoint = replace(Endpoint.local(server.url), timeout_s=2.0, **options)
    return EntityDataFeed(endpoint, index(), clock=clock or Waits().clock)


def test_the_same_statements_as_from_the_documents_themselves(server):
    ids = ["Q100", "q101", "Q5", "Q404", "Q900"]
    assert feed(server).statements(ids, PROPERTIES) == index().statements(ids, PROPERTIES)
    assert feed(server, parallel=1).statements(ids, PROPERTIES) == index().statements(ids, PROPERTIES)
    assert feed(server).statements([], PROPERTIES) == feed(server).statements(ids, []) == []


@needs_entities
def test_real_documents_come_through_the_wire_unchanged():
    raws = real_documents()
    ids = [one["id"] for one in raws]
    properties = sorted({prop for one in raws for prop in one["claims"] or {}})
    memory = index(raws)
    with EntityDataServer(raws) as server:
        live = EntityDataFeed(replace(Endpoint.local(server.url), parallel=3), memory)
        found = live.statements(ids, properties)
        assert len(found) > 2500
        assert found == memory.statements(ids, properties)
        assert len(live.skipped) == len(memory.skipped)
        asked = [path for path, _ in server.requests]
        assert len(asked) == len(ids)  # one request an item


def test_a_deleted_and_a_merged_item(server):
    live = feed(server)
    assert live.document("Q404").missing
    assert live.document("Q900").target == "Q100"
    assert live.statements(["Q404", "Q900"], PROPERTIES) == []
    assert live.probe(["Q404"]) == [Probe("Q404", None, None)]


def test_an_item_that_is_gone_before_the_index_knows_is_left_out_and_read_again(server):
    """The index may be a dump of last week: neither a deletion nor a merge is told by it yet."""
    del server.documents["Q101"]
    server.redirects["Q102"] = "Q100"
    live = feed(server)
    found = live.statements(["Q100", "Q101", "Q102"], PROPERTIES)
    assert {one.subject for one in found} == {"Q100"}
    assert live.skipped == [Skipped("", "Q101", "", "deleted"), Skipped("", "Q102", "", "merged")]
    assert (live.revisions["Q101"], live.revisions["Q102"]) == (0, 0)
    assert feed(server).statements(["Q101"], PROPERTIES) == []


def test_a_wrong_url_takes_nothing_for_deleted(server):
    endpoint = Endpoint.local(server.url.replace("EntityData", "Elsewhere"))
    with pytest.raises(EndpointNotFoundError):
        EntityDataFeed(endpoint, index(), clock=Waits().clock).statements(["Q100", "Q101"], PROPERTIES)


def reply(status, body=b"", content_type="text/plain", **headers):
    return lambda handler, _: handler.send(status, body, content_type, **headers)


def cut(handler: Handler, body: bytes) -> None:
    handler.send(200, body[: len(body) // 2])


def short(handler: Handler, body: bytes) -> None:
    handler.send(200, body[: len(body) // 2], Content_Length=str(len(body)))


FAULTS = {
    "throttled": (reply(429, Retry_After="7"), ThrottledError),
    "failing": (reply(500, b"a stack trace"), EndpointDownError),
    "html": (reply(200, b"<html>", "text/html"), NotSparqlReplyError),
    "nothing": (reply(200, b"", "application/json"), TruncatedReplyError),
    "no content": (reply(204), TruncatedReplyError),
    "half a document": (cut, TruncatedReplyError),
    "a broken-off body": (short, TruncatedReplyError),
    "bad UTF-8": (reply(200, b'{"a": "\xff\xfe\x80"}', "application/json"), NotSparqlReplyError),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_waited_out_and_one_that_stays_is_named(server, name):
    fault, error = FAULTS[name]
    waits = Waits()
    server.faults.append(fault)
    expected = index().statements(["Q100"], PROPERTIES)
    assert feed(server, clock=waits.clock).statements(["Q100"], PROPERTIES) == expected
    assert waits.seconds >= (7 if name == "throttled" else 0)
    server.faults.extend([fault] * 3)
    with pytest.raises(error):
        feed(server, max_attempts=3).statements(["Q100"], PROPERTIES)
    assert not server.faults


def test_redirects_within_the_host_are_followed(server):
    live = feed(server)
    text = live.transport.fetch(f"{server.url}/q100.json")
    assert text is not None
    assert "Q100" in json.loads(text)["entities"]
    assert [path[-9:] for path, _ in server.requests] == ["q100.json", "Q100.json"]


def test_redirects_elsewhere_and_in_circles_are_refused(server):
    server.faults.append(reply(302, Location="http://localhost:1/Q100.json"))
    with pytest.raises(EndpointMovedError):
        feed(server).statements(["Q100"], PROPERTIES)
    server.faults.extend([reply(302, Location="/a"), reply(302, Location="/b")] * 2)
    with pytest.raises(EndpointMovedError):
        feed(server).statements(["Q100"], PROPERTIES)


def test_an_error_reply_is_no_item_without_statements(server):
    server.faults.append(reply(200, b'{"error": {"code": "internal"}}', "application/json"))
    with pytest.raises(BadEntityError, match="internal"):
        feed(server).statements(["Q100"], PROPERTIES)
    server.faults.append(reply(200, b'{"entities": []}', "application/json"))
    with pytest.raises(BadEntityError):
        feed(server).statements(["Q100"], PROPERTIES)


def test_the_deadline_is_total(server):
    import time

    def drip(handler: Handler, body: bytes) -> None:
        handler.send(200, b"", Content_Length=str(len(body)))
        try:
            for byte in body[:200]:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            return  # the client gave up, as it should

    server.faults.append(drip)
    live = EntityDataFeed(
        replace(Endpoint.local(server.url), timeout_s=0.5, max_attempts=1), index(), clock=Waits().clock
    )
    with pytest.raises(EndpointTimeoutError):
        live.statements(["Q100"], PROPERTIES)


def test_who_asks_is_said(server):
    agent = "factsync/test (mailto:someone@wiki-test.org)"
    feed(server, user_agent=agent).statements(["Q100"], PROPERTIES)
    _, headers = server.requests[0]
    assert headers["User-Agent"] == agent
    assert "json" in headers["Accept"]
    with pytest.raises(ContactMissingError):
        EntityDataFeed(Endpoint("https://www.wikidata.org/wiki/Special:EntityData"), index())
