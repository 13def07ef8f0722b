"""What is owed is told before a sync, and what was edited after it, over real nights of a tiny model."""

import json
import sys

import pytest

from flows.cli.main import main
from flows.workspace import opened_model
from tests.integration.flows.conftest import open_gate

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process: exit code and output."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["factsync", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, capsys.readouterr().out

    return call


def held(settings):
    """The facts that the model holds."""
    with opened_model(settings) as (ws, model):
        return {(row.subject, row.property, row.slot) for row in ws.ledger.live_facts(model)}


def scopes(edits):
    return {(one["subject"], one["property"], one["slot"]) for one in edits}


def test_a_limited_sync_says_what_it_edited_and_what_is_left(settings, run, monkeypatch):
    before = json.loads(run("plan", "--json")[1])
    assert (before["owed"], before["owed_edits"]) == (0, [])
    everything = sum(before["counts"].get(kind, 0) for kind in ("insert", "replace", "retract", "suppress"))
    code, said = run("sync", "--limit", "8")
    assert code == 0
    assert f"8 edited, {everything - 8} still owed." in said
    assert "What was edited" in said
    plan = json.loads(run("plan", "--json")[1])
    assert plan["owed"] == len(plan["owed_edits"]) == everything - 8
    assert scopes(plan["owed_edits"]).isdisjoint(first := held(settings))
    blocked = plan["owed_edits"][0]["subject"]
    monkeypatch.setenv("FACTSYNC_TRUST_BLOCK_SUBJECTS", blocked)
    ruled_out = sum(one["subject"] == blocked for one in plan["owed_edits"])
    assert json.loads(run("plan", "--json")[1])["owed"] == plan["owed"] - ruled_out
    code, said = run("sync", "--limit", "3", "--json")
    night = json.loads(said)
    assert (night["edited"], night["owed"]) == (3, everything - 11 - ruled_out)
    assert blocked not in {one["subject"] for one in night["edits"]}
    status = json.loads(run("status", "--json")[1])
    assert (status["owed"], status["left_alone"]) == (night["owed"], ruled_out)
    assert f"{ruled_out} more are of a relation not synced" in run("status")[1]
    assert scopes(night["edits"]) == held(settings) - first
    assert scopes(night["edits"]) < scopes(plan["owed_edits"])
    assert night["edits"][0]["new_label"]


def test_what_a_rejected_night_left_is_in_the_next_plan(settings, run, monkeypatch):
    monkeypatch.setenv("FACTSYNC_ISOLATE_TRIES", "0")
    open_gate(monkeypatch, "EXACT", 1)  # the tiny model never says a name
    code, said = run("sync")
    assert code == 5
    owed = json.loads(run("status", "--json")[1])["owed"]
    assert owed
    assert f"0 edited, {owed} still owed." in said
    assert "What was edited" not in said
    _, said = run("plan")
    assert f"{owed} owed from earlier runs: a sync edits these too." in said
    assert "What a sync would do" not in said, "no empty table"
    open_gate(monkeypatch, "EXACT", 0)
    code, said = run("sync")
    assert code == 0
    assert f"{owed} edited, 0 still owed." in said
    assert "What changed" not in said
    assert said.count("│ insert ") == owed, "each edit has its row"
    assert "owed from earlier runs" not in run("plan")[1]


def test_a_night_that_edits_all_of_its_plan_shows_it_once(settings, run):
    _, said = run("sync")
    assert "What changed" in said
    assert "What was edited" not in said
    assert " edited, 0 still owed." in said


def test_what_waits_for_a_person_counts_as_edited(settings, run):
    night = json.loads(run("sync", "--limit", "2", "--approval", "--json")[1])
    assert night["promoted"] is False
    assert night["edited"] == 2
    assert night["owed"]
