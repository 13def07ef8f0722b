"""A rebuild: all live facts from the base, through the gates, the same twice; and the policy that runs it."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from editor import delta as deltas
from editor.digests import tensor_digest
from editor.errors import OutOfMemoryError
from flows import models, policy, remaking
from flows.backfill import backfill
from flows.batch import CANDIDATE
from flows.cli.main import main
from flows.decide import promote, reject
from flows.rebuild import rebuild
from flows.settings import Settings
from flows.sync import sync
from flows.workspace import opened_model
from kb.store import LocalStore
from storage.doctor import examine
from storage.errors import DiskFullError, LedgerError
from tests.integration.flows.conftest import QUICK, open_gate

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def nights(two_nights):
    """The settings of a home after them."""
    return two_nights[0]


def live_model(settings):
    with opened_model(settings) as (ws, model):
        lm = models.load_base(settings)
        models.put_on(lm, ws.files, ws.ledger.lineage(model))
    return lm


def matrices(lm):
    return [lm.layers.matrix(lm.model, layer) for layer in QUICK["layers"]]


def held(settings):
    with opened_model(settings) as (ws, model):
        return ws.ledger.live_facts(model)


def add_a_night_without_facts(settings):
    """Promote a checkpoint that holds what the head holds, and has other weights."""
    with opened_model(settings) as (ws, model), ws.writer() as lease:
        head = ws.ledger.head(model)
        run = ws.ledger.begin_run(lease, "sync", reference_time=head.decided_at)
        intent = ws.ledger.begin_checkpoint(lease, run, [], algorithm="memit", settings=head.settings)
        files = {name: path.read_bytes() for name, path in ws.files.open(head.digest).files.items()}
        digest = ws.files.put(files, {"parent": head.digest})
        ws.ledger.record_candidate(
            lease, intent.id, digest=digest, path=digest, size_bytes=0, files={}, metrics={}, edits=[]
        )
        ws.ledger.promote(lease, intent.id, reason="test")
        ws.ledger.finish_run(lease, run, "succeeded")


def test_other_blocks_are_written_on_the_base_alone(nights):
    """What is measured is what stands: nothing of the blocks that were edited before is left in it."""
    nights.memit_file.write_text(json.dumps({**QUICK, "layers": [0, 1]}))
    with opened_model(nights) as (ws, model), ws.writer() as lease:
        at = ws.ledger.head(model).decided_at
        run = ws.ledger.begin_run(lease, "rebuild", reference_time=at)
        made = remaking.remake(ws, lease, run)
        standing = models.load_base(nights)
        deltas.apply(standing, models.read_delta(ws.files, made.edited.digest))
    assert made.reused == 0
    for layer in (0, 1, 2):
        one, other = (lm.layers.matrix(lm.model, layer) for lm in (made.edited.lm, standing))
        assert torch.equal(one, other)


def test_a_rebuild_holds_what_the_nights_hold(nights):
    before, old, base = held(nights), live_model(nights), models.load_base(nights)
    done = rebuild()
    assert done.ending.name == "Promoted"
    assert done.reused == len({row.subject for row in before})
    assert done.optimised == 0
    assert held(nights) == before
    for theirs, ours, first in zip(matrices(old), matrices(live_model(nights)), matrices(base), strict=True):
        assert (ours - theirs).norm() < 1e-3 * (theirs - first).norm()
    with opened_model(nights) as (ws, model):
        head = ws.ledger.head(model)
        assert head.from_base
        assert head.edits == 0
        assert head.live_facts == len(before)
        assert head.metrics["norm"] > 0
        assert {row.checkpoint for row in ws.ledger.subject_states(model)} == {head.digest}
        # The files name no night, only the base.
        assert ws.files.open(head.digest).manifest["parent"] is None
        checks = ws.ledger.query(
            f"SELECT count(DISTINCT fact_id) FROM recall_check WHERE checkpoint_id = {head.id}"
        )
        assert checks.rows[0][0] == len(before)


@pytest.mark.parametrize("how", [{"refine": True}, {"anew": True}], ids=["refined", "every state found anew"])
def test_twice_is_one_digest_also_where_states_change(nights, how):
    digests = set()
    for _ in range(2):
        done = rebuild(approval=True, **how)
        assert done.refined or done.optimised
        digests.add(done.candidate.digest)
        reject()
    assert len(digests) == 1


def test_twice_from_one_ledger_is_one_digest(nights, monkeypatch, capsys):
    first = rebuild(approval=True)
    assert first.state == CANDIDATE
    reject()
    second = rebuild(approval=True)
    assert second.candidate.digest == first.candidate.digest
    promote()
    third = rebuild()
    assert third.candidate is None
    assert third.ending.message == "The live checkpoint is this very rebuild."
    monkeypatch.setattr(sys, "argv", ["factsync", "rebuild", "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    said = json.loads(capsys.readouterr().out)
    assert (said["ending"], said["reused"]) == ("Nothing to do", third.reused)


def test_one_that_is_an_earlier_checkpoint_says_how_to_go_back(one_night):
    settings, _ = one_night
    first = rebuild()
    add_a_night_without_facts(settings)
    again = rebuild()
    assert again.ending.name == "Nothing to do"
    assert f"`factsync rollback {first.candidate.digest[:12]}`" in again.ending.message
    with opened_model(settings) as (ws, model):
        assert ws.ledger.checkpoints(model)[-1].state == "rejected"


def test_nights_go_on_after_a_rebuild_and_one_can_go_back(one_night):
    settings, _ = one_night
    before = live_model(settings)
    with opened_model(settings) as (ws, model):
        night = ws.ledger.head(model).id
    rebuild()
    LocalStore(settings.store_dir).load_night(2)
    assert sync().promoted
    # The new night stands on the rebuild alone.
    with opened_model(settings) as (ws, model):
        lineage = ws.ledger.lineage(model)
        assert [row.from_base for row in lineage] == [False, True, False]
        (settings.checkpoints_dir / lineage[0].digest / models.DELTA_FILE).write_bytes(b"")
    assert live_model(settings)
    with opened_model(settings) as (ws, model), ws.writer() as lease:
        ws.ledger.rollback(lease, night, reason="test", review=False)
        row = ws.ledger.head(model)
        with pytest.raises(LedgerError):
            ws.files.open(row.digest)
    assert before


def test_new_editing_settings_find_every_state_anew(nights):
    nights.memit_file.write_text(json.dumps({**QUICK, "steps": 4}))
    done = rebuild()
    assert done.reused == 0
    assert done.optimised == len({row.subject for row in held(nights)})
    nights.memit_file.write_text(json.dumps(QUICK))
    assert rebuild(anew=True).reused == 0


def test_another_moment_weight_takes_the_stored_states_and_refines_what_slips(nights):
    nights.memit_file.write_text(json.dumps({**QUICK, "moment_weight": 2.0}))
    done = rebuild()
    assert done.ending.name == "Promoted"
    assert done.reused == len({row.subject for row in held(nights)})
    assert done.optimised == 0
    assert done.refined > 0, "the tiny model says no fact in full"
    assert f"({done.refined} refined)" in done.ending.message


def test_a_night_after_another_solve_is_one_change_on_the_base(one_night):
    """What leaves by another λ than it came by would leave a rest, so everything live is written anew."""
    settings, _ = one_night
    settings.memit_file.write_text(json.dumps({**QUICK, "moment_weight": 3.0}))
    LocalStore(settings.store_dir).load_night(2)
    night = sync()
    assert night.promoted
    assert night.plan.counts["replace"], "something leaves"
    with opened_model(settings) as (ws, model):
        assert [row.from_base for row in ws.ledger.lineage(model)] == [False, True]
        assert {row.checkpoint for row in ws.ledger.subject_states(model)} == {night.candidate.digest}
        assert examine(ws.ledger, model, ws.files).findings == ()
    assert rebuild().ending.message == "The live checkpoint is this very rebuild."


def test_a_rebuild_that_a_gate_rejects_leaves_the_model(nights, monkeypatch):
    open_gate(monkeypatch, "EXACT", 1)
    weights = [tensor_digest(one) for one in matrices(live_model(nights))]
    done = rebuild()
    assert done.ending.name == "Rejected by a gate"
    assert [tensor_digest(one) for one in matrices(live_model(nights))] == weights


def test_a_rebuild_that_dies_is_settled_by_the_next_run(nights, monkeypatch):
    def dies(*_args):
        raise KeyboardInterrupt

    before = [tensor_digest(one) for one in matrices(live_model(nights))]
    with monkeypatch.context() as patch:
        patch.setattr("flows.checking.sit_exam", dies)
        with pytest.raises(KeyboardInterrupt):
            rebuild()
    assert [tensor_digest(one) for one in matrices(live_model(nights))] == before
    assert sync().candidate is None
    with opened_model(nights) as (ws, model):
        assert ws.ledger.checkpoints(model)[-1].state == "abandoned"
        assert ws.ledger.status(model).open_checkpoint is None
    assert rebuild().ending.name == "Promoted"
    with opened_model(nights) as (ws, model):
        assert examine(ws.ledger, model, ws.files).findings == ()


def test_nothing_live_is_nothing_to_do(settings):
    done = rebuild()
    assert (done.run, done.ending.name) == (None, "Nothing to do")


def test_policy_runs_it_after_a_promoted_night(settings, monkeypatch):
    monkeypatch.setenv("FACTSYNC_REBUILD_NIGHTS", "2")
    assert sync().rebuilt is None
    LocalStore(settings.store_dir).load_night(2)
    night = sync()
    assert night.rebuilt.ending.name == "Promoted"
    assert "Rebuild: " in night.ending.message
    with opened_model(settings) as (ws, model):
        assert ws.ledger.head(model).digest == night.rebuilt.candidate.digest
        # One rebuild after the other: nothing has happened since.
        assert not policy.due(Settings.read(), ws.ledger.lineage(model))


@pytest.mark.parametrize(("bound", "value"), [("NORM", "0.000001"), ("RETENTION", "1")])
def test_policy_runs_it_where_a_bound_is_crossed(one_night, monkeypatch, bound, value):
    settings, _ = one_night
    monkeypatch.setenv(f"FACTSYNC_REBUILD_{bound}", value)
    monkeypatch.setenv("FACTSYNC_REBUILD_NIGHTS", "0")
    LocalStore(settings.store_dir).load_night(2)
    night = sync()
    assert night.rebuilt.ending.name == "Promoted"
    with opened_model(settings) as (ws, model):
        assert ws.ledger.head(model).from_base


@pytest.mark.parametrize("error", [OutOfMemoryError, DiskFullError])
def test_a_due_rebuild_that_fails_leaves_the_night(settings, monkeypatch, error):
    """It is told, the night is live, and it is not tried again with every night."""

    def full(*_args, **_more):
        raise error("no room for a rebuild")

    monkeypatch.setenv("FACTSYNC_REBUILD_NIGHTS", "1")
    with monkeypatch.context() as patched:
        patched.setattr("editor.rebuild.rebuild", full)
        night = sync()
    assert night.ending.name == "Promoted"
    assert "the night's model stays (no room for a rebuild)" in night.ending.message
    with opened_model(settings) as (ws, model), ws.writer() as lease:
        assert ws.ledger.head(model).digest == night.candidate.digest
        ws.ledger.recover(lease, ws.files)
        assert not policy.wanted(ws, lease)


def test_who_promotes_is_told_that_a_rebuild_is_due(settings, monkeypatch):
    """A run that leaves the decision to a person makes no second checkpoint behind it."""
    monkeypatch.setenv("FACTSYNC_REBUILD_NIGHTS", "1")
    assert sync(approval=True).rebuilt is None
    assert "run `factsync rebuild --refine`" in promote().ending.message
    rebuild()
    LocalStore(settings.store_dir).load_night(2)
    monkeypatch.setenv("FACTSYNC_REBUILD_NIGHTS", "20")
    sync(approval=True)
    assert "rebuild" not in promote().ending.message


def test_policy_runs_it_after_a_backfill(settings, monkeypatch):
    monkeypatch.setenv("FACTSYNC_REBUILD_NIGHTS", "2")
    done = backfill(relations=["P6"], batch_size=4, limit=8)
    assert len(done.batches) == 2
    assert done.rebuilt.ending.name == "Promoted"
    assert "Rebuild: " in done.ending.message


def test_what_is_due(nights):
    with opened_model(nights) as (ws, model):
        one, two = ws.ledger.lineage(model)
    grown = replace(two, metrics={**two.metrics, "norm": 0.5, "retention": 0.9})
    rebuilt = replace(one, from_base=True, metrics={"norm": 0.48})

    def due(*lineage, **bounds):
        return policy.due(nights.model_copy(update=bounds), lineage)

    assert due(one, grown) == ""
    assert "2 checkpoints" in due(one, grown, rebuild_nights=2)
    assert due(one, grown, rebuild_nights=3) == ""
    assert policy.due(nights.model_copy(update={"rebuild_nights": 2}), (one, grown), failed=one.id) == "", (
        "after a rejected one as many nights have to pass again"
    )
    assert "0.500" in due(one, grown, rebuild_norm=0.4)
    assert due(rebuilt, grown, rebuild_norm=0.4) == "", "a rebuild that was as far away could not mend it"
    assert "retention" in due(one, grown, rebuild_retention=0.95)
    assert due(rebuilt, rebuild_nights=1) == ""
    failed = policy.due(nights.model_copy(update={"rebuild_norm": 0.4}), (one, grown), failed=two.id)
    assert failed == "", "a bound that stays crossed is no reason to try every night"


def test_the_norm_of_a_night_is_kept(nights):
    base = models.load_base(nights)
    grown = max(
        float((now - then).norm() / then.norm())
        for now, then in zip(matrices(live_model(nights)), matrices(base), strict=True)
    )
    with opened_model(nights) as (ws, model):
        assert torch.isclose(torch.tensor(ws.ledger.head(model).metrics["norm"]), torch.tensor(grown))
