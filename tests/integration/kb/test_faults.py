"""Whatever the endpoint does: the right named error or the right rows, and the cursor never moves wrongly."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kb.budget import BanFile, Clock
from kb.cursor import advance
from kb.endpoint import Endpoint
from kb.errors import (
    BadQueryError,
    BannedError,
    ContactMissingError,
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
from kb.relations import Relations
from kb.sparql import Transport
from tests.integration.kb import fault_server as faults
from tests.integration.kb.fault_server import FaultServer, altered, answer
from tests.integration.kb.wikibase_rdf import Exporter

NOW = datetime(2026, 9, 1, 2, tzinfo=UTC)
UNTIL = "2026-09-01T01:00:00Z"
IDS = [f"Q{number}" for number in range(100, 140)]
P6 = Relations.load()["P6"]


def content():
    exporter = Exporter("munged")
    for number, entity in enumerate(IDS):
        exporter.entity(
            {
                "id": entity,
                "lastrevid": 1000 + number,
                "modified": f"2026-08-31T{number % 24:02d}:00:00Z",
                "labels": {"en": {"language": "en", "value": f"Land {number}"}},
                "claims": {
                    "P6": [
                        {
                            "id": f"{entity}$AAAA-{number}",
                            "rank": "normal",
                            "mainsnak": {
                                "snaktype": "value",
                                "datatype": "wikibase-item",
                                "datavalue": {
                                    "type": "wikibase-entityid",
                                    "value": {"entity-type": "item", "id": f"Q{number + 1}"},
                                },
                            },
                        }
                    ]
                },
            }
        )
    return exporter.finish(UNTIL)


class FakeTime:
    """Sleeping takes no time and is written down."""

    def __init__(self):
        self.slept = []
        self.seconds = 1000.0
        self.lock = threading.Lock()
        self.clock = Clock(
            now=lambda: NOW + timedelta(seconds=self.seconds - 1000),
            monotonic=lambda: self.seconds,
            sleep=self.sleep,
            jitter=lambda: 0.5,
        )

    def sleep(self, seconds):
        with self.lock:
            self.slept.append(seconds)
            self.seconds += seconds


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    from kb.store import LocalStore

    folder = tmp_path_factory.mktemp("upstream")
    file = folder / "content.nt"
    file.write_text(content(), encoding="utf-8")
    store = LocalStore(folder / "store")
    store.load(file)
    with store.serve() as url:
        yield url


@pytest.fixture
def server(upstream):
    with FaultServer(upstream) as running:
        yield running


@pytest.fixture
def fake():
    return FakeTime()


@pytest.fixture
def feed(server, fake):
    endpoint = replace(Endpoint.local(server.url), timeout_s=2.0, max_attempts=3, max_wait_s=60.0, parallel=1)
    return SparqlFeed(endpoint, clock=fake.clock)


def pull(feed, cursor):
    """A whole nightly pull; gives the cursor to store together with the rows."""
    before = feed.lag()
    since = cursor - timedelta(hours=24)
    new = feed.discover(since, before, [P6])
    probes = feed.probe(IDS)
    statements = feed.statements(new, ["P6"])
    labels = feed.labels(new)
    return advance(cursor, before, feed.lag(), NOW), (new, probes, statements, labels)


CURSOR = datetime(2026, 9, 1, 0, tzinfo=UTC)
BAN = (
    b"You have been banned until 2026-09-02T02:00:00.000Z, please respect throttling and retry-after headers."
)

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
    "403 with a ban": (answer(403, BAN), BannedError),
    "403 with a ban and no end": (answer(403, b"You are banned."), BannedError),
    "403": (answer(403, b"Please set a user-agent"), ForbiddenError),
    "401": (answer(401), ForbiddenError),
    "500 with a stack trace": (
        answer(500, b"java.lang.NullPointerException\n\tat com.bigdata"),
        EndpointDownError,
    ),
    "500 with a timeout": (
        answer(500, b"SPARQL-QUERY: ...\njava.util.concurrent.TimeoutException"),
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
    import time

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


def test_retry_after_is_waited_for_and_backoff_has_jitter(feed, server, fake):
    server.faults.extend(
        [answer(429, Retry_After="7"), answer(429, Retry_After="Tue, 01 Sep 2026 02:01:00 GMT")]
    )
    feed.lag()
    assert fake.slept[0] == pytest.approx(7.5)
    assert sum(fake.slept) == pytest.approx(60.5, abs=1.0)
    fake.slept.clear()
    server.faults.extend([answer(503), answer(503)])
    feed.lag()
    assert fake.slept == [pytest.approx(1.0), pytest.approx(2.0)]


def test_a_wait_longer_than_allowed_is_handed_on(feed, server, fake):
    server.always = answer(429, Retry_After="3600")
    with pytest.raises(ThrottledError) as caught:
        feed.lag()
    assert caught.value.retry_after_s == 3600
    assert fake.slept == []
    assert len(server.requests) == 1


def test_a_ban_stops_everything_until_it_ends_and_outlives_the_process(server, fake, tmp_path):
    server.always = answer(403, BAN)
    endpoint = Endpoint.local(server.url)
    with pytest.raises(BannedError) as caught:
        SparqlFeed(endpoint, clock=fake.clock, bans=BanFile(tmp_path / "bans.json")).lag()
    assert caught.value.until == datetime(2026, 9, 2, 2, tzinfo=UTC)
    server.always = None
    again = SparqlFeed(endpoint, clock=fake.clock, bans=BanFile(tmp_path / "bans.json"))
    with pytest.raises(BannedError, match="nothing is sent before"):
        again.lag()
    assert len(server.requests) == 1
    fake.seconds += 24 * 3600
    assert again.lag() == datetime.fromisoformat(UNTIL)


def test_a_broken_file_of_bans_is_taken_as_empty(tmp_path):
    path = tmp_path / "bans.json"
    for text in ("{", "[]", '{"http://x": "never"}'):
        path.write_text(text)
        assert BanFile(path).until("http://x") is None
    BanFile(path).remember("http://x", NOW)
    assert BanFile(path).until("http://x") == NOW


def test_batches_are_halved_until_they_fit(feed, server):
    """A service that answers up to five ids: nothing lost or doubled, no more queries than halving needs."""
    expected = feed.statements(IDS, ["P6"])

    def picky(handler, reply):
        ids = server.requests[-1][1].count(b"entity/Q") // 3
        (altered(faults.truncated_with_trace) if ids > 5 else faults.plain)(handler, reply)

    server.always = picky
    server.requests.clear()
    assert feed.statements(IDS, ["P6"]) == expected
    assert len(server.requests) == 15


def test_windows_are_halved_until_they_fit(feed, server):
    since, until = datetime(2026, 8, 31, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC)
    expected = feed.discover(since, until, [P6])

    def picky(handler, reply):
        (faults.plain if reply.count(b'"item"') < 8 else answer(504))(handler, reply)

    server.always = picky
    assert feed.discover(since, until, [P6]) == expected == IDS
    server.requests.clear()
    feed.endpoint = replace(feed.endpoint, first_window_s=60.0)
    assert feed.discover(since, until, [P6]) == expected
    assert len(server.requests) < 40  # a minute grows into hours
    server.always = answer(504)
    with pytest.raises(EndpointTimeoutError):
        feed.discover(until - timedelta(seconds=4), until, [P6])


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


def test_no_more_queries_at_once_than_allowed(server, fake):
    server.delay_s = 0.05
    for parallel in (1, 3):
        server.most_running = 0
        endpoint = replace(Endpoint.local(server.url), parallel=parallel, statement_batch=4)
        SparqlFeed(endpoint, clock=fake.clock).statements(IDS, ["P6"])
        assert server.most_running == parallel


def test_a_failure_among_parallel_batches_stops_the_rest(server, fake):
    server.always = answer(400)
    endpoint = replace(Endpoint.local(server.url), parallel=2, statement_batch=1)
    with pytest.raises(BadQueryError):
        SparqlFeed(endpoint, clock=fake.clock).statements(IDS, ["P6"])
    assert len(server.requests) < 10


def test_query_time_is_budgeted(server, fake):
    endpoint = replace(Endpoint.local(server.url), query_seconds_per_minute=30.0)
    transport = Transport(endpoint, clock=fake.clock)
    server.always = faults.plain
    feed = SparqlFeed(endpoint, clock=fake.clock)
    feed.transport._budget.spend(75.0)  # a bucket of 60 seconds, 15 over
    feed.lag()
    assert fake.slept == [pytest.approx(30.0, abs=0.1)]
    assert transport._budget.wait_s() == 0


@pytest.mark.parametrize(
    "agent", ["", "factsync", "factsync/0.1 (mailto:me)", "bot (https://example.org/bot)", "x@localhost"]
)
def test_a_public_endpoint_wants_a_contact(agent):
    with pytest.raises(ContactMissingError, match="contact"):
        SparqlFeed(Endpoint("https://query.wikidata.org/sparql", user_agent=agent))


@pytest.mark.parametrize(
    "agent", ["factsync/0.1 (mailto:ops@museum.net)", "factsync/0.1 (https://museum.net/bot)"]
)
def test_a_contact_is_enough(agent):
    assert (
        SparqlFeed(Endpoint("https://query.wikidata.org/sparql", user_agent=agent)).transport.agent == agent
    )


def test_everything_is_asked_for_whole_first_and_by_date_when_that_is_too_much(feed, server):
    beginning, until = datetime(2000, 1, 1, tzinfo=UTC), datetime(2026, 9, 1, tzinfo=UTC)
    feed.endpoint = replace(feed.endpoint, first_window_s=7 * 86400.0)
    server.requests.clear()
    assert feed.discover(beginning, until, [P6]) == IDS
    assert len(server.requests) == 1
    server.faults.append(answer(504))
    assert feed.discover(beginning, until, [P6]) == IDS
    assert len(server.requests) < 15  # weeks grow into years


def test_a_plain_server_behind_an_https_url_is_unreachable(server, fake):
    feed = SparqlFeed(Endpoint.local(server.url.replace("http:", "https:")), clock=fake.clock)
    with pytest.raises(EndpointUnreachableError):
        feed.lag()


def test_a_proxy_is_used_when_it_is_set_and_only_then(server, fake, monkeypatch):
    monkeypatch.setenv(
        "http_proxy", "http://127.0.0.1:9"
    )  # the environment is read in one place, and not here
    assert SparqlFeed(Endpoint.local(server.url), clock=fake.clock).lag() == datetime.fromisoformat(UNTIL)
    endpoint = replace(Endpoint.local("http://127.0.0.1:9/query"), proxy=server.url.removesuffix("/query"))
    assert SparqlFeed(endpoint, clock=fake.clock).lag() == datetime.fromisoformat(UNTIL)
    assert server.requests[-1][0]["Host"] == "127.0.0.1:9"
