"""One fact that fails the gates does not hold the others up: edited, measured and promoted for real."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flows import batch
from flows.backfill import backfill
from flows.errors import GateError
from flows.gates import Gate
from flows.sync import require_promoted, sync
from flows.workspace import opened_model

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def culprit(settings, monkeypatch):
    """A subject whose presence fails the gate `exact`, whatever the tiny model says."""
    from flows.dry_run import dry_run

    subject = min(change.subject for change in dry_run(settings).edits)
    real = batch.tasks.check

    def check(*args: object) -> object:
        candidate = real(*args)
        there = any(one.fact_id.startswith(f"{subject}/") for one in candidate.marks.tonight)
        gate = Gate("exact", 0.0 if there else 1.0, 0.6, not there, "for the test")
        marks = replace(
            candidate.marks,
            tonight=tuple(
                replace(one, exact=not one.fact_id.startswith(f"{subject}/"))
                for one in candidate.marks.tonight
            ),
        )
        return replace(candidate, gates=(gate,), marks=marks)

    monkeypatch.setattr(batch.tasks, "check", check)
    return subject


def test_the_rest_is_promoted_and_the_cause_named(settings, culprit):
    night = sync()
    assert night.promoted
    with opened_model(settings) as (ws, model):
        live = {row.subject for row in ws.ledger.live_facts(model)}
        assert culprit not in live
        assert live == {change.subject for change in night.plan.edits} - {culprit}
        assert ws.ledger.status(model).owed == 0
        states = [row.state for row in ws.ledger.checkpoints(model)]
        assert sorted(states) == ["promoted", "rejected", "rejected"]
        rows = ws.ledger.query("SELECT subject, reason FROM failed_edits").rows
    assert {row[0] for row in rows} == {culprit}
    assert all("exact 0.000" in row[1] for row in rows)
    again = sync()
    assert again.candidate is None, "it is not tried again until its statements change"


def test_a_backfill_counts_what_is_live(settings, culprit):
    done = backfill()
    (apart,) = done.batches
    with opened_model(settings) as (ws, model):
        facts = len(ws.ledger.live_facts(model))
    assert (apart.live, apart.checkpoints) == (facts, 1)
    assert facts < apart.owed
    assert f"{facts} edits live in 1 checkpoints, 0 still owed" in done.ending.message


def test_without_tries_all_stays_owed(settings, culprit, monkeypatch):
    monkeypatch.setenv("FACTSYNC_ISOLATE_TRIES", "0")
    night = sync()
    assert not night.promoted
    with pytest.raises(GateError, match=r"exact 0.000.* should go on with .*Exact: look for long"):
        require_promoted(night)
    with opened_model(settings) as (ws, model):
        assert ws.ledger.status(model).owed == len(night.plan.edits)
