"""The main path: two nights of the shipped sample, through the real store, ledger, editor and Prefect."""

import tomllib
from collections import Counter
from dataclasses import asdict
from datetime import timedelta

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from editor.digests import tensor_digest
from editor.presets import MemitSettings
from flows import heads, models, recipe
from flows.cli.checkpoints import checkpoint
from flows.dry_run import dry_run
from flows.editing import fact_id, read_states
from flows.errors import GateError, OtherWeightsError
from flows.publish import export
from flows.settings import Settings
from flows.sync import require_promoted, sync
from flows.workspace import Workspace, opened_model
from kb.store import SAMPLE, LocalStore
from storage.errors import CorruptCheckpointError, LockHeldError
from tests.integration.flows.conftest import RELATIONS

pytestmark = pytest.mark.usefixtures("prefect_server")

EXPECTED = tomllib.loads((SAMPLE / "expected.toml").read_text())


def expected():
    """The kind of change by subject and relation on night two, as the sample's own table says."""
    wanted = RELATIONS.split(",")
    rows = [row for row in EXPECTED["expected"] if row["property"] in wanted]
    return {(row["subject"], row["property"]): str(row["kind"]).split(":")[0] for row in rows}


def edits(plan):
    """The changes that are not `unchanged`."""
    return {
        (one.subject, one.property, one.slot): one.kind
        for one in plan.changes
        if one.kind.value != "unchanged"
    }


def test_two_nights(two_nights):
    settings, first, second = two_nights
    assert set(first.plan.counts) == {"insert"}
    assert first.promoted
    assert second.promoted
    planned = {(change.subject, change.property): change.kind.value for change in second.plan.changes}
    for scope, kind in expected().items():
        assert planned.get(scope, "unchanged") == kind, scope
    kinds = Counter(second.plan.counts)
    with opened_model(settings) as (ws, model):
        status = ws.ledger.status(model)
        assert status.owed == 0
        assert [row.digest for row in ws.ledger.lineage(model)] == [
            first.candidate.digest,
            second.candidate.digest,
        ]
        live = ws.ledger.live_facts(model)
        assert status.live_facts == len(live) == len(first.plan.edits) + kinds["insert"] - kinds["retract"]
        # The subject is the unit: each live subject has one state, in the newest checkpoint that touched it.
        assert {row.subject for row in ws.ledger.subject_states(model)} == {row.subject for row in live}


def test_older_facts_that_slipped_are_kept_up(two_nights):
    """What a write takes from older facts is refined with it, of as many as a night refines.

    Their states move to its checkpoint.
    """
    settings, first, second = two_nights
    touched = {row.subject for row in second.plan.edits}
    with opened_model(settings) as (ws, model):
        rows = ws.ledger.subject_states(model)
        found = {row.subject: row.checkpoint for row in rows}
        older = {row.subject for row in first.plan.edits} & set(found) - touched
        # The tiny model never says a name, so all of them slipped.
        most = MemitSettings(layers=(1,), moment_weight=1.0).refine_older
        assert 0 < most < len(older)
        assert [found[subject] for subject in older].count(second.candidate.digest) == most
        states = read_states(ws.files, rows)
        facts = {fact_id(row.subject, row.property, row.slot) for row in ws.ledger.live_facts(model)}
    assert {fact for state in states.values() for fact in state.fact_ids} == facts


def test_what_the_settings_do_not_trust_waits(settings, monkeypatch):
    everything = dry_run(settings)
    blocked = everything.edits[0].subject
    monkeypatch.setenv("FACTSYNC_TRUST_BLOCK_SUBJECTS", blocked)
    rest = dry_run(Settings.read())
    assert {one.subject for one in everything.edits} - {one.subject for one in rest.edits} == {blocked}
    monkeypatch.setenv("FACTSYNC_TRUST_MIN_REFERENCES", "1000")
    assert dry_run(Settings.read()).edits == []


def test_a_second_sync_changes_nothing(one_night):
    settings, first = one_night
    again = sync()
    assert again.candidate is None
    assert again.plan.edits == []
    with opened_model(settings) as (ws, model):
        assert ws.ledger.head(model).digest == first.candidate.digest


def test_nothing_is_written_by_a_plan(settings):
    plan = dry_run(settings)
    assert not (settings.home / "ledger.db").exists()
    assert plan.counts == sync().plan.counts
    LocalStore(settings.store_dir).load_night(2)
    with opened_model(settings) as (ws, model):
        before = asdict(ws.ledger.status(model))
    planned = dry_run(settings)
    with opened_model(settings) as (ws, model):
        assert asdict(ws.ledger.status(model)) == before
    # A sync passes over groups whose statements are as the ledger has them; a plan counts them as unchanged.
    assert edits(planned) == edits(sync().plan)


def test_a_rejected_night_keeps_yesterdays_model_and_what_is_owed(settings, monkeypatch):
    monkeypatch.setenv("FACTSYNC_GATE_PERPLEXITY", "0")
    monkeypatch.setenv("FACTSYNC_GATE_EXACT", "1")
    night = sync()
    assert not night.promoted
    with pytest.raises(GateError, match="yesterday's model stays"):
        require_promoted(night)
    with opened_model(settings) as (ws, model):
        assert ws.ledger.head(model) is None
        assert ws.ledger.status(model).owed == len(night.plan.edits)
    monkeypatch.setenv("FACTSYNC_GATE_PERPLEXITY", "1e9")
    monkeypatch.setenv("FACTSYNC_GATE_EXACT", "0")
    assert sync().promoted


def test_a_materialized_checkpoint_is_the_model_that_was_checked(two_nights, tmp_path):
    settings, _, second = two_nights
    with opened_model(settings) as (ws, model):
        folder = export(ws, model, None, tmp_path / "out").folder
        lm = models.load_base(settings)
        models.put_on(lm, ws.files, ws.ledger.lineage(model))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, theirs = lm.model.state_dict(), loaded.state_dict()
    assert {name: tensor_digest(tensor) for name, tensor in ours.items()} == {
        name: tensor_digest(tensor) for name, tensor in theirs.items()
    }
    assert second.candidate.digest in (folder / "README.md").read_text()


def test_the_model_of_a_moment_is_what_was_live_then_to_the_bit(two_nights, tmp_path, monkeypatch):
    """Between two nights, also after everything was rolled back; the card says since when."""
    settings, first, second = two_nights
    with opened_model(settings) as (ws, model), ws.writer() as lease:
        between = ws.ledger.checkpoint(model, second.candidate.digest).decided_at - timedelta(microseconds=1)
        heads.go_to(ws, lease, heads.BASE, reason="test")
        recorded = ws.files.open(first.candidate.digest).manifest["weights"]
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(
        checkpoint, ["materialize", "--as-of", f"{between:%Y-%m-%dT%H:%M:%S.%f}"], obj=settings
    )
    assert run.exit_code == 0, run.output
    folder = tmp_path / f"factsync-{first.candidate.digest[:12]}"
    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert recorded
    assert {name: tensor_digest(weights[name]) for name in recorded} == recorded
    card = (folder / "README.md").read_text()
    assert first.candidate.digest in card
    assert second.candidate.digest not in card
    assert "| live since | 20" in card


def test_two_writers_one_model(one_night):
    settings, _ = one_night
    with opened_model(settings) as (ws, _), ws.writer(), pytest.raises(LockHeldError, match="factsync on"):
        sync()


def test_a_flipped_byte_is_found_before_anything_is_loaded(one_night):
    settings, night = one_night
    LocalStore(settings.store_dir).load_night(2)
    path = settings.checkpoints_dir / night.candidate.digest / models.DELTA_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpointError):
        sync()


def test_settings_select_relations(settings, monkeypatch):
    monkeypatch.setenv("FACTSYNC_RELATIONS", "P6")
    with Workspace.open(Settings.read()) as ws:
        assert list(ws.relations) == ["P6"]
    assert {change.property for change in sync().plan.changes} == {"P6"}


def test_going_back_is_exact_to_the_bit(two_nights):
    settings, first, second = two_nights

    def live_weights():
        with opened_model(settings) as (ws, model):
            lm = models.load_base(settings)
            lineage = ws.ledger.lineage(model)
            models.put_on(lm, ws.files, lineage)
            weights = {name: tensor_digest(tensor) for name, tensor in lm.model.state_dict().items()}
            for row in lineage[-1:]:
                recorded = ws.files.open(row.digest).manifest["weights"]
                assert recorded
                assert recorded.items() <= weights.items()
            return weights

    def go_to(which):
        with opened_model(settings) as (ws, _), ws.writer() as lease:
            heads.go_to(ws, lease, which, reason="test")

    after_two = live_weights()
    go_to(first.candidate.digest)
    after_one = live_weights()
    go_to(heads.BASE)
    base = live_weights()
    lm = models.load_base(settings)
    assert base == {name: tensor_digest(tensor) for name, tensor in lm.model.state_dict().items()}
    go_to(second.candidate.digest)
    assert live_weights() == after_two
    assert len({str(sorted(one.items())) for one in (base, after_one, after_two)}) == 3


def test_another_base_does_not_pass_for_what_was_recorded(one_night, tmp_path):
    settings, night = one_night
    with opened_model(settings) as (ws, model):
        lm = models.load_base(settings)
        layer = recipe.editing_settings(settings, lm).layers[-1]
        lm.layers.matrix(lm.model, layer)[0, 0] += 1e-6
        with pytest.raises(OtherWeightsError) as caught:
            models.put_on(lm, ws.files, ws.ledger.lineage(model))
    assert caught.value.names == (lm.layers.weight_name(layer),)
    assert caught.value.checkpoint == night.candidate.digest
