"""Tables for people; and that showing them never fails a run."""

import logging
from types import SimpleNamespace

import pytest

from flows import artifacts
from flows.planning import Plan
from kb.diff import BurstVerdict
from kb.model import DesiredFact, Value, ValueKind
from kb.relations import Relations
from kb.trust import Change, ChangeKind, Held
from storage.errors import QueryRefusedError

RELATIONS = Relations.load()


def item(qid):
    return Value(ValueKind.ITEM, qid)


def change(kind, *, old=None, new=None):
    held = Held("Q183", "P6", "", item(old), "Angela Merkel", "Germany") if old else None
    fact = DesiredFact("Q183", "P6", "", item(new), (), None, ()) if new else None
    return Change(kind, "Q183", "P6", "", held, fact, "because", None, ())


def test_changes_read_as_sentences_do():
    changes = (change(ChangeKind.QUARANTINE, new="Q2"), change(ChangeKind.REPLACE, old="Q1", new="Q2"))
    made = Plan(changes, {"Q183": "Germany", "Q2": "Olaf Scholz"}, {}, BurstVerdict(stop=False), {}, {})
    rows = artifacts.changes_rows(made, changes, RELATIONS)
    assert [row["change"] for row in rows] == ["replace", "quarantine"]  # edits first
    assert rows[0] == {
        "change": "replace",
        "subject": "Germany (Q183)",
        "relation": "head of government (P6)",
        "from": "Angela Merkel",
        "to": "Olaf Scholz",
        "why": "because",
    }


def test_outside_a_run_nothing_is_shown():
    artifacts.plan(None, None)  # would fail at once if it looked


@pytest.mark.parametrize(
    "error", [OSError("gone"), RuntimeError("loop"), ValueError("key"), QueryRefusedError("too slow")]
)
def test_a_failure_to_show_is_a_log_line(monkeypatch, caplog, error):
    def fails(**_):
        raise error

    monkeypatch.setattr(artifacts, "flow_run", SimpleNamespace(id="1"))
    monkeypatch.setattr(artifacts, "create_table_artifact", fails)
    made = SimpleNamespace(counts={}, changes=(), labels={}, burst=SimpleNamespace(reasons=()))
    with caplog.at_level(logging.WARNING, logger="flows.artifacts"):
        artifacts.plan(made, RELATIONS)
    assert "could not be shown" in caplog.text


def test_progress_is_written_now_and_then(monkeypatch):
    written = []
    clock = iter(number * 0.5 for number in range(100))
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: next(clock))
    meter = artifacts._Meter()
    monkeypatch.setattr(meter, "_write", lambda _, percent, text: written.append((percent, text)))
    for done in range(1, 21):
        meter.on_progress("targets", done, 20)
    assert len(written) < 10
    assert written[-1] == (100.0, "finding target states: 20 of 20")


def test_a_stage_has_one_artifact_and_is_finished_when_left(monkeypatch):
    made, updated = [], []
    monkeypatch.setattr(artifacts, "flow_run", SimpleNamespace(id="1"))
    monkeypatch.setattr(
        artifacts, "create_progress_artifact", lambda **given: made.append(given["description"]) or len(made)
    )
    monkeypatch.setattr(
        artifacts,
        "update_progress_artifact",
        lambda known, **given: updated.append((known, given["progress"])),
    )
    meter = artifacts._Meter()
    for done in (0, 3, 5, 5):
        meter.on_progress("targets", done, 6)
    meter.on_progress("recall", 1, 2)
    meter.on_progress("recall", 2, 2)
    assert made == ["finding target states: 0 of 6", "asking the model: 2 of 2"]
    assert updated[0] == (1, pytest.approx(100 * 5 / 6))
    meter.on_progress("targets", 0, 4)  # the next batch
    meter.flush()
    assert len(made) == 3
