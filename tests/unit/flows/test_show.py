"""What a night's table says: what was reached, what fell short, what failed."""

from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows.cli import show
from flows.cli.show import metrics_table
from flows.errors import BurstError
from flows.gates import Metrics, judge
from flows.settings import GateThresholds
from flows.sync import Night, require_promoted
from kb.diff import BurstVerdict


def shown(metrics):
    candidate = SimpleNamespace(metrics=metrics, gates=tuple(judge(metrics, GateThresholds())))
    console = Console(width=160, record=True, file=StringIO())
    console.print(metrics_table([("night 1", candidate), ("night 2", None)], title="Measured"))
    return console.export_text()


def test_what_falls_short_is_said():
    text = shown(Metrics(0.97, 0.9, 0.9, 0.4, 0.1, 0.0, None, None, 1.0, 0.85, 23.5, 23.0))
    assert "10.0 % → 97.0 %, short" in text
    assert "85.0 %, short" in text
    assert text.count("short") == 2
    assert "≥ 80 %" in text


def test_a_failed_gate_is_not_called_short():
    text = shown(Metrics(1.0, 1.0, 1.0, 1.0, 0.1, 0.0, 1.0, 1.0, 1.0, 1.0, 26.0, 23.0))
    assert "13.0 %" in text
    assert "short" not in text


def night_of(burst):
    """A night that edited nothing."""
    plan = SimpleNamespace(counts={"quarantine": 3}, burst=burst)
    return Night(1, datetime(2026, 9, 1, tzinfo=UTC), plan, None, promoted=False)


def test_a_night_that_the_burst_guard_held_is_no_success():
    night = night_of(BurstVerdict(stop=True, reasons=("P6 changes 3 of 4 facts",)))
    assert night.ending.name == "Held: burst"
    assert "P6 changes 3 of 4 facts" in show.night_summary(night)
    with pytest.raises(BurstError, match=r"P6 changes 3 of 4 facts.*--approve-burst"):
        require_promoted(night)


def test_what_the_burst_guard_holds_is_told_beside_what_went_through():
    held = night_of(BurstVerdict(stop=True, reasons=("P6 changes 3 of 4 facts",)))
    candidate = SimpleNamespace(digest="3ed5090f" * 8, failures="")
    rebuilt = SimpleNamespace(ending=SimpleNamespace(message="91dd is live."))
    night = replace(held, candidate=candidate, promoted=True, rebuilt=rebuilt)
    assert night.ending.name == "Promoted"
    for text in (night.ending.message, show.night_summary(night)):
        assert "Rebuild: 91dd is live. Held by the burst guard: P6 changes 3 of 4 facts." in text
    assert require_promoted(night) is night


def test_a_quiet_night_is_a_success():
    night = night_of(BurstVerdict(stop=False, reasons=("P6 changes 3 of 4 facts",)))
    assert night.ending.name == "Nothing to do"
    assert "Nothing to edit" in show.night_summary(night)
    assert require_promoted(night) is night


def test_what_is_said_is_no_markup(capsys):
    show.answers("A [bold] prompt [/]", "base [/red]", "live [green]")
    show.console().print(show.table(("a", "b"), [("[/] label", None)], title="two"))
    said = capsys.readouterr().out
    for text in ("A [bold] prompt [/]", "base  base [/red]", "live  live [green]", "[/] label"):
        assert text in said
