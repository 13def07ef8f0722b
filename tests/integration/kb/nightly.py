"""A whole nightly pull of forty items, and a clock on which waiting takes no time."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from kb.budget import Clock
from kb.cursor import advance
from kb.relations import Relations
from tests.integration.kb.wikibase_rdf import Exporter

NOW = datetime(2026, 9, 1, 2, tzinfo=UTC)
UNTIL = "2026-09-01T01:00:00Z"
IDS = [f"Q{number}" for number in range(100, 140)]
P6 = Relations.load()["P6"]
CURSOR = datetime(2026, 9, 1, 0, tzinfo=UTC)


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


def pull(feed, cursor):
    """A whole nightly pull; gives the cursor to store together with the rows."""
    before = feed.lag()
    since = cursor - timedelta(hours=24)
    new = feed.discover(since, before, [P6])
    probes = feed.probe(IDS)
    statements = feed.statements(new, ["P6"])
    labels = feed.labels(new)
    return advance(cursor, before, feed.lag(), NOW), (new, probes, statements, labels)
