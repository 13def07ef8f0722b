"""What a night hands to the ledger."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from flows import night, translate
from flows.settings import Settings
from flows.workspace import Workspace
from kb.model import Label, Probe, Rank, Statement, Value
from storage.records.pulled import EntityRow
from tests.unit.storage import steps


def says(value, revision):
    """A row that a pull brings."""
    one = Statement("Q1$1", "Q1", "P6", Value.item(value), Rank.NORMAL, revision=revision)
    return translate.statement_row(one)


@pytest.mark.parametrize(("memory_hours", "remembered"), [(72, ("Q10",)), (24, ())])
def test_a_value_that_went_is_remembered_as_long_as_the_settings_say(
    tmp_path, monkeypatch, memory_hours, remembered
):
    monkeypatch.setenv("FACTSYNC_TRUST_FLIP_MEMORY_HOURS", str(memory_hours))
    with Workspace.open(Settings.read(tmp_path)) as ws:
        ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
        with ws.writer() as lease:
            for number, value in enumerate(["Q10", None, "Q10"], start=1):
                at = steps.START + timedelta(days=number)
                run = ws.ledger.begin_run(lease, "sync", reference_time=at)
                ws.ledger.ingest(
                    lease,
                    run,
                    source=ws.source,
                    cursor_to=None,
                    entities=[
                        EntityRow("Q1", "Anywhere", "en", revision=number, modified_at=at),
                        EntityRow("Q10", "Ada Example", "en"),
                    ],
                    statements=[says(value, number)] if value else [],
                    pulled_groups=[("Q1", "P6")],
                )
                night.plan(ws, lease, run, SimpleNamespace(seen=SimpleNamespace(at=at), labels={}))
                ws.ledger.finish_run(lease, run, "nothing")
            (pending,) = ws.ledger.pending(lease.model)
    assert pending.previous_values == remembered


class Feed:
    """A source in which Q1 gained one statement and is not edited again; its object's label can change."""

    def __init__(self):
        self.at = steps.START
        self.texts = {"Q1": "Anywhere", "Q10": "Ada Example"}

    def lag(self):
        return self.at

    def discover(self, *_window):
        return ["Q1"]

    def probe(self, _ids):
        return [Probe("Q1", 1, steps.START)]

    def statements(self, _ids, _properties):
        return [Statement("Q1$1", "Q1", "P6", Value.item("Q10"), Rank.NORMAL, revision=1)]

    def labels(self, ids):
        return {one: Label(one, self.texts[one], "en") for one in ids}


def test_the_label_of_what_waits_is_read_again_each_night(tmp_path, monkeypatch):
    """The subject stands still; its object was defaced when it was first seen, and is put right meanwhile."""
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6")
    feed = Feed()
    with Workspace.open(Settings.read(tmp_path)) as ws:
        ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
        with ws.writer() as lease:
            for text in ("A prank", "Ada Example", "Ada Example", "Ada Example"):
                feed.texts["Q10"] = text
                seen = night.probe(ws, feed, as_of=feed.at)
                pulled = night.pull(ws, lease.model, feed, seen)
                run = night.begin(ws, lease, pulled.seen)
                night.record(ws, lease, run, pulled)
                night.plan(ws, lease, run, pulled)
                ws.ledger.finish_run(lease, run, "nothing")
                feed.at += timedelta(days=2)
            (owed,) = ws.ledger.owed(lease.model)
    assert seen.changed == ()
    assert (owed.value, owed.target) == ("Q10", "Ada Example")
