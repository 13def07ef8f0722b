"""Target states equal those of the published procedure, transcribed plainly under benchmarks/."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.reference_sequential import target_shift
from editor import targets
from editor.keys import KeyReader
from editor.presets import PRESETS, MemitSettings
from editor.requests import plan
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of

# hparams/MEMIT/*.json of kmeng01/memit (GPT-2 XL, GPT-J), xpq-tech/PMET (NeoX) and jianghoucheng/AlphaEdit
# (Llama 3): layers, v_num_grad_steps, v_lr, mom2_update_weight, clamp_norm_factor, v_weight_decay, kl_factor.
PUBLISHED = {
    "gpt2-xl": (range(13, 18), 20, 0.5, 20000, 0.75, 0.5, 0.0625),
    "gpt-j-6b": (range(3, 9), 25, 0.5, 15000, 0.75, 0.5, 0.0625),
    "gpt-neox-20b": (range(6, 11), 20, 0.5, 6000, 0.8, 0.5, 0.0625),
    "llama-3-8b": (range(4, 9), 25, 0.1, 15000, 0.75, 0.5, 0.0625),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_as_published(name: str) -> None:
    """The published files' values, and none of our own terms, once the paper's procedure is asked for."""
    layers, steps, rate, weight, clamp, decay, kl = PUBLISHED[name]
    published = MemitSettings(
        layers=tuple(layers),
        steps=steps,
        learning_rate=rate,
        moment_weight=float(weight),
        clamp=clamp,
        weight_decay=decay,
        kl_factor=kl,
        end_weight=0.0,
        contexts="prefixes",
        word_dropout=0.0,
        keys="mean",
        refine_steps=0,
        history=False,
        hold=1.0,
        precision="float32",
    )
    assert PRESETS[name].as_reference() == published


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_same_objective_same_state(name: str, settings: MemitSettings) -> None:
    """With the paper's prefixes and KL prompt z is the transcription's: cosine > 0.999."""
    lm = tiny.language_model(name)
    facts = [replace(fact, prompts=fact.prompts[:1]) for fact in requests_of(3)]
    units = plan(lm, facts, prefixes=("The city.", "You see."), kl_template="{} is a")
    settings = replace(settings, steps=8, learning_rate=0.1, clamp=0.75, weight_decay=0.5)
    _, anchors = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers).read(settings.layers[0])
    found = targets.optimise(lm, units, anchors, settings)
    for number, unit in enumerate(units):
        expected, steps, _ = target_shift(lm, unit, settings)
        assert int(found.steps[number]) == steps
        assert torch.nn.functional.cosine_similarity(found.shifts[number], expected, dim=0) > 0.999
