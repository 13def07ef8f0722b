"""Whatever the endpoint does: the right named error or the right rows, and the cursor never moves wrongly."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kb.endpoint import Endpoint
from kb.errors import (
    BadQueryError,
    BannedError,
    EndpointDownError,
    EndpointMovedError,
    EndpointNotFoundError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    ForbiddenError,
    NotSparqlReplyError,
    ReplyTooLargeError,
    SourceWentBackError,
    StaleSourceError,
    ThrottledError,
    TransientKBError,
    TruncatedReplyError,
)
from kb.feed import SparqlFeed
from tests.integration.kb import fault_server as faults
from tests.integration.kb.fault_server import altered, answer
from tests.integration.kb.nightly import CURSOR, IDS, pull

# fault -> the error when it never ends
FAULTS = {
    "html with 200": (answer(200, b"<html>maintenance</html>", "text/html"), NotSparqlReplyError),
    "html that claims to be json": (answer(200, b"<html>", faults.JSON_TYPE), TruncatedReplyError),
    "truncated json with 200": (altered(faults.truncated), TruncatedReplyError),
    "truncated json with a trace": (altered(faults.truncated_with_trace), EndpointTimeoutError),
    "empty body": (answer(200, b"", faults.JSON_TYPE), TruncatedReplyError),
    "fewer bytes than announced": (faults.short, TruncatedReplyError),
    "reset before the reply": (faults.reset_before, EndpointUnreachableError),
    "reset within the reply": (faults.reset_within, TruncatedReplyError),
    "chunks that stop": (faults.chunked_cut, TruncatedReplyError),
    "gzip that stops": (faults.packed_cut, TruncatedReplyError),
    "gzip that is none": (altered(lambda reply: reply, Content_Encoding="gzip"), TruncatedReplyError),
    "another packing": (altered(lambda _: b"\x8b\x00\x80", Content_Encoding="br"), NotSparqlReplyError),
    "csv": (answer(200, b"item\r\n", "text/csv"), NotSparqlReplyError),
    "bad utf-8": (altered(lambda reply: reply.replace(b"http", b"\xff\xfe")), NotSparqlReplyError),
    "json of another shape": (answer(200, b"[]", faults.JSON_TYPE), NotSparqlReplyError),
    "json rows of another shape": (
        answer(200, b'{"head":{"vars":[]},"results":{"bindings":[1]}}', faults.JSON_TYPE),
        NotSparqlReplyError,
    ),
    "other variables": (
        answer(200, b'{"head":{"vars":["x"]},"results":{"bindings":[]}}', faults.JSON_TYPE),
        NotSparqlReplyError,
    ),
    "429 without a wait": (answer(429), ThrottledError),
    "429 with seconds": (answer(429, Retry_After="7"), ThrottledError),
    "429 with a date": (answer(429, Retry_After="Tue, 01 Sep 2026 02:00:30 GMT"), ThrottledError),
    "429 with nonsense": (answer(429, Retry_After="soon"), ThrottledError),
    "429 with an hour": (answer(429, Retry_After="3600"), ThrottledError),
    "403 with a ban": (answer(403, faults.BAN), BannedError),
    "403 with a ban and no end": (answer(403, b"You are banned."), BannedError),
    "403": (answer(403, b"Please set a user-agent"), ForbiddenError),
    "401": (answer(401), ForbiddenError),
    "500 with a stack trace": (
        answer(500, b"java.lang.NullPointerException\n\tat com.bigdata"),
        EndpointDownError,
    ),
    "500 with a timeout": (
        faults.timeout_behind_the_query,
        EndpointTimeoutError,
    ),
    "502": (answer(502, b"<html>Bad Gateway</html>", "text/html"), EndpointDownError),
    "503 with a wait": (answer(503, Retry_After="5"), EndpointDownError),
    "504": (answer(504), EndpointTimeoutError),
    "400": (answer(400, b"MalformedQueryException"), BadQueryError),
    "404": (answer(404), EndpointNotFoundError),
    "414": (answer(414), BadQueryError),
    "301": (answer(301, Location="https://query.example.org/sparql"), EndpointMovedError),
    "302": (answer(302, Location="/elsewhere"), EndpointMovedError),
    "307": (answer(307, Location="/elsewhere"), EndpointMovedError),
    "308": (answer(308), EndpointMovedError),
}
RETRIED = (EndpointDownError, ThrottledError, EndpointUnreachableError, NotSparqlReplyError)
HALVED = (EndpointTimeoutError, TruncatedReplyError, ReplyTooLargeError)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_never_ends_is_its_own_error_and_moves_nothing(feed, server, name):
    fault, error = FAULTS[name]
    expected = pull(feed, CURSOR)
    server.always = fault
    with pytest.raises(error) as caught:
        pull(feed, CURSOR)
    assert str(server.url) in str(caught.value)
    assert isinstance(caught.value, TransientKBError) is (
        error not in {BannedError, ForbiddenError, EndpointMovedError, EndpointNotFoundError, BadQueryError}
    )
    server.always = None
    if error is not BannedError:
        assert pull(feed, CURSOR) == expected


@pytest.mark.parametrize("name", [name for name, (_, error) in FAULTS.items() if error in RETRIED + HALVED])
def test_a_fault_that_passes_loses_and_doubles_no_row(feed, server, name):
    """The fault hits each request of a pull in turn. What cannot be halved (one date) is for the next try."""
    expected = pull(feed, CURSOR)
    fault, error = FAULTS[name]
    for place in range(6):
        server.faults.extend([faults.plain] * place + [fault])
        try:
            assert pull(feed, CURSOR) == expected
        except error:
            assert name == "429 with an hour" or (error in HALVED and place in {0, 5})
            server.faults.clear()


@pytest.mark.parametrize("fault", [faults.drip, faults.drip_headers, faults.silence])
def test_the_deadline_is_for_the_whole_exchange(server, fake, fault):
    server.always = fault
    feed = SparqlFeed(replace(Endpoint.local(server.url), timeout_s=0.5), clock=fake.clock)
    begun = time.monotonic()
    with pytest.raises(EndpointTimeoutError):
        feed.lag()
    assert time.monotonic() - begun < 2.0


def test_nobody_listens(server, fake):
    url = server.url
    server.shutdown()
    server.server_close()
    feed = SparqlFeed(Endpoint.local(url), clock=fake.clock)
    with pytest.raises(EndpointUnreachableError, match="check the network"):
        feed.lag()
    with pytest.raises(EndpointUnreachableError):
        SparqlFeed(
            Endpoint("http://127.0.0.1.nip.invalid/sparql", user_agent="t (mailto:t@factsync.dev)"),
            clock=fake.clock,
        ).lag()


def test_gzip_is_asked_for_and_read(feed, server):
    expected = pull(feed, CURSOR)
    server.always = faults.packed
    assert pull(feed, CURSOR) == expected
    assert server.requests[-1][0]["Accept-Encoding"] == "gzip"
    assert server.requests[-1][0]["User-Agent"].startswith("factsync")


def test_a_reply_that_unpacks_to_more_than_allowed_is_refused(server, fake):
    server.always = faults.bomb
    feed = SparqlFeed(replace(Endpoint.local(server.url), max_reply_bytes=100_000), clock=fake.clock)
    with pytest.raises(ReplyTooLargeError):
        feed.lag()
    server.always = answer(200, b"x" * 200_000, faults.JSON_TYPE)
    with pytest.raises(ReplyTooLargeError):
        feed.lag()


def test_duplicated_and_reordered_rows_change_nothing(feed, server):
    expected = pull(feed, CURSOR)
    server.always = faults.rows(lambda rows: [*reversed(rows), *rows, *rows[:3]])
    assert pull(feed, CURSOR) == expected


def test_replicas_that_disagree(feed, server):
    """Rows of two replicas in one reply: the newer version counts, whichever comes first."""

    def older(rows):
        values = {"1": "1", "2": "2020-01-01T00:00:00Z"}
        return rows + [
            {**row, "object": {**row["object"], "value": values[row["object"]["value"][0]]}} for row in rows
        ]

    expected = feed.probe(IDS)
    for change in (older, lambda rows: list(reversed(older(rows)))):
        server.faults.append(faults.rows(change))
        assert feed.probe(IDS) == expected


def test_a_lag_that_runs_backwards_never_moves_the_cursor(feed, server):
    back = altered(lambda reply: reply.replace(b"2026-09-01T01:00:00Z", b"2026-08-31T23:00:00Z"))
    server.faults.append(back)
    with pytest.raises(SourceWentBackError):
        pull(feed, CURSOR)
    earlier = CURSOR - timedelta(days=1)
    server.faults.append(back)
    moved, _ = pull(feed, earlier)
    assert moved == datetime(2026, 8, 31, 23, tzinfo=UTC)
    server.always = altered(lambda reply: reply.replace(b"2026-09-01T01:00:00Z", b"2026-08-01T00:00:00Z"))
    with pytest.raises(StaleSourceError):
        pull(feed, datetime(2026, 7, 1, tzinfo=UTC))


def test_a_plain_server_behind_an_https_url_is_unreachable(server, fake):
    feed = SparqlFeed(Endpoint.local(server.url.replace("http:", "https:")), clock=fake.clock)
    with pytest.raises(EndpointUnreachableError):
        feed.lag()
