"""What a night hands to the ledger."""

from datetime import timedelta

import pytest

from flows import night, translate
from flows.pulling import Pulled, Seen
from flows.settings import Settings
from flows.workspace import Workspace
from kb.model import Label, Probe, Rank, Statement, Value
from kb.rows import Skipped
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
                night.plan(ws, lease, run, Pulled(Seen(at, at, None, (), ()), (), {}, at))
                ws.ledger.finish_run(lease, run, "nothing")
            (pending,) = ws.ledger.pending(lease.model)
    assert pending.previous_values == remembered


class Feed:
    """A source in which Q1 gained one statement and is not edited again; its object's label can change."""

    def __init__(self):
        self.at = steps.START
        self.skipped, self.objects = [], {}
        self.texts = {"Q1": "Anywhere", "Q10": "Ada Example", "Q66": "A Prank"}
        self.probed, self.revisions = 1, {"Q1": 1}
        self.values = ["Q10"]

    def lag(self):
        return self.at

    def discover(self, *_window):
        return ["Q1"]

    def probe(self, ids):
        known = {"Q1": Probe("Q1", self.probed, steps.START), **self.objects}
        return [known[one] for one in sorted(ids) if one in known]

    def statements(self, _ids, _properties):
        revision = self.revisions["Q1"]
        return [
            Statement(f"Q1${one}", "Q1", "P6", Value.item(one), Rank.NORMAL, revision=revision)
            for one in self.values
        ]

    def labels(self, ids):
        return {one: Label(one, self.texts[one], "en") for one in ids if one in self.texts}


def a_night(ws, lease, feed):
    seen = night.probe(ws, feed, as_of=feed.at)
    pulled = night.pull(ws, lease.model, feed, seen)
    run = night.begin(ws, lease, pulled.seen)
    report = night.record(ws, lease, run, pulled)
    night.plan(ws, lease, run, pulled)
    ws.ledger.finish_run(lease, run, "nothing")
    feed.at += timedelta(days=2)
    return seen, report


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6")
    with Workspace.open(Settings.read(tmp_path)) as ws:
        ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
        with ws.writer() as lease:
            yield ws, lease


def test_what_is_newer_than_the_version_that_dates_it_waits(opened):
    """Documents are ahead of their index: a prank of this hour is read beside a date of last week."""
    ws, lease = opened
    feed = Feed()
    feed.at += timedelta(days=7)
    feed.revisions["Q1"], feed.values = 2, ["Q66"]
    a_night(ws, lease, feed)
    (pending,) = ws.ledger.pending(lease.model)
    assert (pending.value, pending.reason) == ("Q66", "hold: it must stand 48 h")
    feed.revisions["Q1"], feed.values = 3, ["Q10"]  # it is put right, and the index stands still
    seen, _ = a_night(ws, lease, feed)
    assert seen.changed == ("Q1",)
    assert ws.ledger.owed(lease.model) == []
    feed.probed = 3
    a_night(ws, lease, feed)
    (owed,) = ws.ledger.owed(lease.model)
    assert owed.value == "Q10"
    seen, _ = a_night(ws, lease, feed)
    assert seen.changed == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRUST_BLOCK_SUBJECTS", "Q1"),
        ("TRUST_BLOCK_RELATIONS", "P6"),
        ("TRUST_BLOCK_VALUES", "Q10"),
        ("RELATIONS", "P35"),
    ],
)
def test_what_a_person_rules_out_after_it_was_queued_is_left_alone(opened, name, value, monkeypatch):
    ws, lease = opened
    feed = Feed()
    feed.at += timedelta(days=7)
    a_night(ws, lease, feed)
    assert [row.value for row in ws.owed(lease.model)] == ["Q10"]
    monkeypatch.setenv(f"FACTSYNC_{name}", value)
    with Workspace.open(Settings.read(ws.settings.home)) as narrowed:
        assert narrowed.owed(lease.model) == []
        assert len(narrowed.ledger.owed(lease.model)) == 1, "it stays in the queue"


@pytest.mark.parametrize("older", [0, 1])
def test_an_answer_without_statements_from_before_they_were_made_takes_none_away(opened, older):
    """A replica that knows an item's first version, or not even that; the probe was answered by another."""
    ws, lease = opened
    feed = Feed()
    feed.probed = feed.revisions["Q1"] = 2
    a_night(ws, lease, feed)
    feed.probed, feed.revisions["Q1"], feed.values = 3, older, []
    _, report = a_night(ws, lease, feed)
    assert report.deleted == 0
    feed.revisions["Q1"], feed.values = 3, ["Q10"]
    seen, report = a_night(ws, lease, feed)
    assert seen.changed == ("Q1",), "it is read again although the probe stands still"
    (owed,) = ws.ledger.owed(lease.model)
    assert owed.value == "Q10"


def test_the_label_of_what_waits_is_read_again_each_night(tmp_path, monkeypatch):
    """The subject stands still; its object was defaced when it was first seen, and is put right meanwhile."""
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6")
    feed = Feed()
    with Workspace.open(Settings.read(tmp_path)) as ws:
        ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
        with ws.writer() as lease:
            for text in ("A prank", "Ada Example", "Ada Example", "Ada Example"):
                feed.texts["Q10"] = text
                seen, _ = a_night(ws, lease, feed)
            (owed,) = ws.ledger.owed(lease.model)
    assert seen.changed == ()
    assert (owed.value, owed.target) == ("Q10", "Ada Example")


def test_an_object_edited_this_hour_is_read_twice_also_where_its_subject_is_old(opened):
    """A first night takes what has stood for days; whoever defaced the object's label did it just now."""
    ws, lease = opened
    feed = Feed()
    feed.at += timedelta(days=30)
    feed.texts["Q10"] = "A prank"
    feed.objects["Q10"] = Probe("Q10", 7, feed.at - timedelta(hours=1))
    a_night(ws, lease, feed)
    (pending,) = ws.ledger.pending(lease.model)
    assert pending.reason.startswith("label-unsettled: Q10 was edited")
    feed.texts["Q10"] = "Ada Example"
    a_night(ws, lease, feed)
    assert ws.ledger.owed(lease.model) == []
    a_night(ws, lease, feed)
    (owed,) = ws.ledger.owed(lease.model)
    assert owed.target == "Ada Example"


@pytest.mark.parametrize("property_", ["P6", ""])
def test_a_statement_that_cannot_be_read_takes_none_away(opened, caplog, property_):
    ws, lease = opened
    feed = Feed()
    a_night(ws, lease, feed)
    feed.probed = feed.revisions["Q1"] = 2
    feed.values = []
    feed.skipped.append(Skipped("Q9$OLD", "Q9", "P6", "unreadable"))  # of an earlier pull
    read = feed.statements

    def torn(ids, properties):
        feed.skipped.append(Skipped("Q1$Q10", "Q1", property_, "unreadable"))
        return read(ids, properties)

    feed.statements = torn
    with caplog.at_level("WARNING"):
        _, report = a_night(ws, lease, feed)
    assert report.deleted == 0
    assert "1 statements could not be read and change nothing: Q1$Q10 of Q1" in caplog.text
    feed.statements, feed.probed, feed.revisions["Q1"] = read, 3, 3
    _, report = a_night(ws, lease, feed)
    assert report.deleted == 1


@pytest.mark.parametrize("target", [None, "Q2"])
def test_an_item_that_is_gone_is_fetched_once(opened, target):
    ws, lease = opened
    feed = Feed()
    a_night(ws, lease, feed)
    feed.values = []
    feed.objects["Q1"] = Probe("Q1", None, None, target)
    assert a_night(ws, lease, feed)[0].changed == ("Q1",)
    assert a_night(ws, lease, feed)[0].changed == ()
    feed.objects.clear()
    assert a_night(ws, lease, feed)[0].changed == ("Q1",), "it was restored"
