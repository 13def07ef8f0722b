"""Backfill, approval and decisions: every branch, on the real store, ledger, editor and Prefect."""

import json
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import get_client

from flows import backfill as module
from flows import decide, provision
from flows.backfill import backfill
from flows.decide import promote, reject
from flows.errors import (
    BackfillInputError,
    CandidateWaitsError,
    NoCandidateError,
    NothingLiveError,
    UnknownModelNameError,
)
from flows.evaluation import evaluate
from flows.rollback import rollback
from flows.settings import Settings
from flows.sync import require_promoted, sync
from flows.workspace import Workspace, opened_model
from kb.store import LocalStore
from storage.errors import UnknownCheckpointError
from tests.integration.flows.conftest import open_gate

pytestmark = pytest.mark.usefixtures("prefect_server")


def status(settings):
    with opened_model(settings) as (ws, model):
        return ws.ledger.status(model)


def params(settings):
    """What the last run was called with, as the ledger says."""
    with opened_model(settings) as (ws, _):
        return json.loads(ws.ledger.query("SELECT params FROM sync_runs ORDER BY run_id DESC").rows[0][0])


def test_a_dry_run_writes_nothing(settings):
    done = backfill(relations=["P6 head of government"], dry_run=True)
    assert done.run is None
    assert set(done.plan.counts) == {"insert"}
    assert {change.property for change in done.plan.changes} == {"P6"}
    assert done.ending.name == "Dry run"
    counts = done.plan.counts["insert"]
    assert done.ending.message.startswith(f"{done.subjects} items: {counts} insert. Nothing was written")
    assert not (settings.home / "ledger.db").exists()


def test_batches_have_a_checkpoint_each_and_the_cursor_stays(settings):
    done = backfill(relations=["P6 head of government", "P35 head of state"], batch_size=8, limit=16)
    assert [one.state for one in done.batches] == ["succeeded", "succeeded"]
    assert all(one.owed <= 9 for one in done.batches)  # a subject is never parted
    assert done.left > 0
    assert done.ending.name == "Promoted"
    found = status(settings)
    assert found.live_facts == sum(one.owed for one in done.batches)
    assert not found.cursors
    assert found.owed == done.left
    # The night after it reads all there is, and edits what is still owed.
    night = sync()
    assert night.promoted
    assert status(settings).owed == 0


def test_a_killed_backfill_goes_on(settings, monkeypatch):
    whole = module.batch.edit_batch
    calls = []

    def second_one_dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(module.batch, "edit_batch", second_one_dies)
    with pytest.raises(KeyboardInterrupt):
        backfill(relations=["P6"], batch_size=6, limit=12)
    first = status(settings)
    assert first.live_facts == 6
    assert first.last_run.state == "failed"
    monkeypatch.setattr(module.batch, "edit_batch", whole)
    done = backfill(relations=["P6"], batch_size=6, limit=6)
    assert len(done.batches) == 1
    assert status(settings).live_facts == 12
    assert status(settings).owed == done.left


def test_a_relation_that_is_new_reads_known_items_again(settings, monkeypatch):
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6")
    sync(limit=5)
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6,P35")
    assert "P35" not in {change.property for change in sync(limit=5).plan.changes}
    done = backfill(relations=["P35"], limit=5)
    assert {change.property for change in done.plan.changes} == {"P35"}
    assert done.batches[0].promoted


def test_the_budget_stops_between_batches(settings, monkeypatch):
    times = iter([0.0] + [1e9] * 99)
    # The module's own clock only: everybody else waits by the real one.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(times)))
    done = backfill(relations=["P6"], batch_size=4, limit=8, budget_minutes=1)
    assert len(done.batches) == 1
    assert done.ending.name == "Budget used"
    assert done.ending.ok


def test_a_gate_ends_a_backfill_and_keeps_what_is_owed(settings, monkeypatch):
    open_gate(monkeypatch, "EXACT", 1)
    done = backfill(relations=["P6"], batch_size=4, limit=8)
    assert [one.state for one in done.batches] == ["rejected"]
    assert done.ending.name == "Rejected by a gate"
    assert not done.ending.ok
    found = status(settings)
    assert found.live_facts == 0
    assert found.owed == done.left > 0
    assert found.last_run.state == "rejected"
    assert "exact" in found.last_run.error
    assert "FAILED" in found.last_run.error


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"relations": ["P9999"]}, "P9999 is not among the relations"),
        ({"relations": ["P36 capital"]}, "FACTSYNC_RELATIONS"),
        ({"subjects": ["Germany"]}, "no Wikidata item"),
        ({"since": date(2026, 2, 1), "until": date(2026, 1, 1)}, "not after its begin"),
        ({"since": date(2999, 1, 1)}, "in the future"),
    ],
)
def test_wrong_input_is_a_sentence_and_touches_nothing(settings, given, said):
    with pytest.raises(BackfillInputError, match=said):
        backfill(**given)
    assert not (settings.home / "ledger.db").exists()


def test_approval_ends_as_a_candidate_and_a_person_promotes_it(settings):
    night = sync(limit=4, approval=True)
    require_promoted(night)
    assert night.ending.name == "Waits for approval"
    found = status(settings)
    assert found.head is None
    assert found.open_checkpoint.state == "candidate"
    assert found.last_run.state == "candidate"
    called = params(settings)
    assert called.pop("read")
    assert called == {"as_of": None, "limit": 4, "approve_burst": False, "approval": True}
    # A night in between plans, and does not edit; a backfill is refused.
    between = sync()
    assert between.candidate is None
    assert night.candidate.digest[:12] in between.waiting
    with pytest.raises(CandidateWaitsError, match="factsync promote"):
        backfill(relations=["P6"])
    with pytest.raises(NoCandidateError, match="not fff"):
        promote(checkpoint="fff")
    decision = promote(checkpoint=night.candidate.digest[:8], decided_by="Ada", note="looked at it")
    assert decision.promoted
    assert status(settings).head.digest == night.candidate.digest
    assert status(settings).head.reason == "approved by Ada: looked at it"
    with pytest.raises(NoCandidateError, match="No candidate"):
        promote()


def test_a_rejected_candidate_drops_a_part_and_owes_the_rest(settings):
    night = sync(limit=12, approval=True)
    owed = status(settings).owed
    edits = night.candidate.exam.tonight
    dropped = edits[0].subject_id
    part = sum(1 for one in edits if one.subject_id == dropped)
    decision = reject(drop_subjects=[dropped.lower()])
    assert decision.requeued == len(edits) - part
    assert status(settings).owed == owed + len(edits) - part
    after = sync()
    assert after.promoted
    assert dropped not in {one.subject_id for one in after.candidate.exam.tonight}


def test_a_rollback_and_the_way_forth_again(settings):
    with pytest.raises(UnknownModelNameError):
        rollback()
    first = sync(limit=4).candidate.digest
    with pytest.raises(UnknownCheckpointError):
        rollback(checkpoint="fff")
    again = sync(limit=4)
    second = again.candidate.digest
    assert again.ending.message == f"nothing new, edits were owed; {second[:12]} is live."
    back = rollback(decided_by="Ada", note="looked odd")
    assert back.ending.name == "Rolled back"
    assert (back.moved.digest, back.moved.before) == (first, second)
    assert status(settings).head.digest == first
    assert rollback().moved.digest is None
    with pytest.raises(NothingLiveError, match="nothing to go back from"):
        rollback()
    assert rollback(checkpoint=second[:10]).moved.live_facts == 8
    assert status(settings).live_facts == 8
    assert rollback(checkpoint="base").moved.live_facts == 0


def test_the_live_facts_are_evaluated(settings):
    sync(limit=4)
    done = evaluate(edits=3, methods=["retrieval"])
    assert done.experiments == 2
    assert done.page.is_file()
    assert done.ending.name == "Evaluated"


def test_silence_lets_a_candidate_expire(settings):
    sync(limit=4, approval=True)
    with Workspace.open(Settings.read()) as ws, ws.writer() as lease:
        soon = datetime.now(UTC) + timedelta(hours=71)
        assert decide.expire(ws, lease, now=soon) is not None
        later = datetime.now(UTC) + timedelta(hours=73)
        assert decide.expire(ws, lease, now=later) is None
    night = sync(limit=4)
    assert night.promoted
    with opened_model(settings) as (ws, model):
        assert [row.state for row in ws.ledger.checkpoints(model)] == ["rejected", "promoted"]


def test_a_backfill_with_approval_stops_at_its_first_checkpoint(settings):
    done = backfill(relations=["P6"], batch_size=4, limit=8, approval=True)
    assert [one.state for one in done.batches] == ["candidate"]
    assert done.ending.name == "Waits for approval"
    assert status(settings).last_run.error is None
    called = params(settings)
    assert (called["limit"], called["batch_size"], called["approval"]) == (8, 4, True)
    assert called["relations"] == ["P6"]
    promote()
    assert status(settings).live_facts == 4


def test_subjects_alone(settings):
    LocalStore(settings.store_dir).load_night(1)
    done = backfill(subjects=["Q183"])
    assert {change.subject for change in done.plan.changes} == {"Q183"}
    assert done.subjects == 1
    assert backfill(subjects=["Q183"]).ending.name == "Nothing to do"


def test_a_server_of_ones_own_gets_the_automation_once(capsys):
    for _ in range(2):
        provision.main()
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name(provision.SILENT_RUN)
    assert automation.enabled
    assert provision.SILENT_RUN in capsys.readouterr().out
