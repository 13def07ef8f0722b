"""Twenty thousand items through the real server: every row once, in little memory."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from kb.endpoint import Endpoint
from kb.feed import SparqlFeed
from kb.model import Bound, Label, Probe, Rank, Statement, Value, WikiTime
from kb.relations import Relations
from kb.turtle import TurtleWriter

ITEMS = 20_000
UNTIL = datetime(2026, 9, 1, tzinfo=UTC)
IDS = [f"Q{1_000 + number}" for number in range(ITEMS)]
PEAK_BYTES = 200 * 1024 * 1024


def statement(number, prop, version):
    return Statement(
        id=f"{IDS[number]}$0000-{prop}-{version}",
        subject=IDS[number],
        property=prop,
        value=Value.item(f"Q{500 + (number * 7 + version) % 400}"),
        rank=Rank.NORMAL,
        start=Bound("value", WikiTime("2020-07-01", 11)),
        reference_count=number % 3,
        revision=10_000 + number,
    )


@pytest.fixture(scope="module")
def world():
    probes = [
        Probe(entity, 10_000 + number, UNTIL - timedelta(seconds=ITEMS - number))
        for number, entity in enumerate(IDS)
    ]
    statements = [statement(number, prop, 1) for number in range(ITEMS) for prop in ("P6", "P54")]
    labels = {entity: Label(entity, f"Land {entity}", "en") for entity in IDS}
    return probes, statements, labels


def measured(work):
    """What a piece of work gives, its peak of memory in Python's objects, and its seconds."""
    tracemalloc.start()
    start = time.perf_counter()
    try:
        found = work()
        return found, tracemalloc.get_traced_memory()[1], time.perf_counter() - start
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_thousand_items_come_whole_and_in_bounded_memory(served, world, record_property):
    probes, statements, labels = world
    graph = "".join(TurtleWriter().graph(until=UNTIL, probes=probes, statements=statements, labels=labels))
    shipped = Relations.load()
    rels = [replace(shipped[prop], classes=(), not_values=()) for prop in ("P6", "P54")]
    properties = list(shipped)  # as a nightly sync asks: for every relation it knows
    with served(graph) as url:
        feed = SparqlFeed(Endpoint.local(url))
        work = {
            "probe": lambda: feed.probe(IDS),
            "discover": lambda: feed.discover(UNTIL - timedelta(days=1), UNTIL, rels),
            "statements": lambda: feed.statements(IDS, properties),
            "labels": lambda: feed.labels(IDS),
        }
        found, peaks = {}, {}
        for name, ask in work.items():
            found[name], peaks[name], took_s = measured(ask)
            record_property(name, f"{took_s:.1f} s, {peaks[name] / 1024 / 1024:.0f} MiB")
        # A night that changed little asks little, however much there is.
        _, few_bytes, _ = measured(lambda: feed.statements(IDS[:100], properties))
        quiet, _, _ = measured(lambda: feed.discover(UNTIL - timedelta(seconds=50), UNTIL, rels))
    assert found["probe"] == probes
    assert found["discover"] == IDS
    assert found["statements"] == sorted(
        statements, key=lambda one: (int(one.property[1:]), int(one.subject[1:]), one.id)
    )
    assert found["labels"] == labels
    assert quiet == IDS[-50:]
    assert feed.skipped == []
    assert max(peaks.values()) < PEAK_BYTES
    assert few_bytes < peaks["statements"] / 5  # one answer in memory, not 400
