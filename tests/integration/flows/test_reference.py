"""Nights of the paper's procedure: random texts before every template, mean keys, no memory."""

import json

import pytest

from flows.rebuild import rebuild
from flows.sync import sync
from flows.workspace import opened_model
from kb.store import LocalStore
from storage.doctor import examine
from tests.integration.flows.conftest import QUICK

pytestmark = pytest.mark.usefixtures("prefect_server")


def recipes(settings):
    with opened_model(settings) as (ws, model):
        return [
            (ws.files.open(row.digest).manifest["settings"], row.settings) for row in ws.ledger.lineage(model)
        ]


@pytest.fixture
def reference(settings):
    """Settings of a home whose `memit.json` is the reference mode."""
    how = {"reference": True, "layers": [1, 2], "moment_weight": 1.0, "steps": 2, "prefix_count": 2}
    settings.memit_file.write_text(json.dumps(how))
    return settings


def test_nights_keep_their_random_texts_with_the_checkpoint(reference, monkeypatch):
    assert sync().promoted
    # Another machine's generator gives other texts for the same seed.
    monkeypatch.setattr("flows.recipe.sample_prefixes", lambda *_args, **_kwargs: ("Other.", "Texts."))
    LocalStore(reference.store_dir).load_night(2)
    night = sync()
    assert night.promoted
    assert night.plan.counts["replace"], "something leaves"
    first, second = recipes(reference)
    for of_files, of_ledger in (first, second):
        assert of_files == of_ledger
        how = of_files["memit"]
        assert (how["contexts"], how["keys"], how["history"]) == ("prefixes", "mean", False)
    assert len(first[0]["prefixes"]) == 2
    assert second[0]["prefixes"] == first[0]["prefixes"]
    again = rebuild()
    assert again.optimised == 0, "what a state depends on holds the texts that were kept"
    with opened_model(reference) as (ws, model):
        assert examine(ws.ledger, model, ws.files).findings == ()


@pytest.mark.parametrize("how", [{"reference": True}, {"history": False}])
def test_what_was_written_without_history_leaves_by_writing_the_rest_anew(settings, how):
    """What later nights made of its part of the weights is not known; a new subject is written on top."""
    settings.memit_file.write_text(json.dumps({**QUICK, **how, "prefix_count": 2}))
    store = LocalStore(settings.store_dir)
    assert sync(limit=4).promoted
    assert sync().promoted
    store.load_night(2)
    night = sync()
    assert night.plan.counts["replace"], "something leaves"
    with opened_model(settings) as (ws, model):
        assert [row.from_base for row in ws.ledger.lineage(model)] == [False, False, True]
        assert {row.checkpoint for row in ws.ledger.subject_states(model)} == {night.candidate.digest}
        assert examine(ws.ledger, model, ws.files).findings == ()
    assert rebuild().ending.message == "The live checkpoint is this very rebuild."


def test_another_seed_draws_other_texts_and_finds_the_states_anew(reference):
    assert sync().promoted
    how = json.loads(reference.memit_file.read_text())
    reference.memit_file.write_text(json.dumps({**how, "seed": 1}))
    again = rebuild()
    assert again.reused == 0
    first, second = recipes(reference)[-1][0], recipes(reference)[0][0]
    assert first["prefixes"] != second["prefixes"]
