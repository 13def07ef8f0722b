"""How a feed behaves towards an endpoint: who asks, how long it waits, how much it asks for at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kb.budget import BanFile
from kb.endpoint import Endpoint
from kb.errors import BadQueryError, BannedError, ContactMissingError, EndpointTimeoutError, ThrottledError
from kb.feed import FIRST_DAY, SparqlFeed
from kb.sparql import Transport
from tests.integration.kb import fault_server as faults
from tests.integration.kb.fault_server import altered, answer
from tests.integration.kb.nightly import IDS, NOW, P6, UNTIL


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


def test_a_proxy_is_used_when_it_is_set_and_only_then(server, fake, monkeypatch):
    monkeypatch.setenv(
        "http_proxy", "http://127.0.0.1:9"
    )  # the environment is read in one place, and not here
    assert SparqlFeed(Endpoint.local(server.url), clock=fake.clock).lag() == datetime.fromisoformat(UNTIL)
    endpoint = replace(Endpoint.local("http://127.0.0.1:9/query"), proxy=server.url.removesuffix("/query"))
    assert SparqlFeed(endpoint, clock=fake.clock).lag() == datetime.fromisoformat(UNTIL)
    assert server.requests[-1][0]["Host"] == "127.0.0.1:9"


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
    server.always = answer(403, faults.BAN)
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


def test_a_window_that_is_no_whole_number_of_seconds_is_halved_to_one(feed, server):
    until = datetime(2026, 9, 1, tzinfo=UTC)
    server.requests.clear()
    server.faults.append(answer(504))
    feed.discover(until - timedelta(seconds=1.5), until, [P6])
    assert len(server.requests) <= 4


def test_everything_is_asked_for_whole_first_and_by_date_when_that_is_too_much(feed, server):
    beginning, until = FIRST_DAY, datetime(2026, 9, 1, tzinfo=UTC)
    feed.endpoint = replace(feed.endpoint, first_window_s=7 * 86400.0)
    server.requests.clear()
    assert feed.discover(beginning, until, [P6]) == IDS
    assert len(server.requests) == 1
    server.faults.append(answer(504))
    assert feed.discover(beginning, until, [P6]) == IDS
    assert len(server.requests) < 15  # weeks grow into years


def test_no_more_queries_at_once_than_allowed(server, fake):
    server.delay_s = 0.2  # long enough for all of them to meet on a busy machine
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
