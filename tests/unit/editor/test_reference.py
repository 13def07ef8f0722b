"""Target states equal those of the published procedure, transcribed plainly under benchmarks/."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.reference_sequential import target_shift
from editor import activations, memit, methods, targets
from editor.keys import KeyReader
from editor.method import Resources
from editor.moments import Moments
from editor.presets import PRESETS, MemitSettings
from editor.requests import plan
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.requests import Unit

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
    """The published files' values, and none of our own terms, once the paper's procedure is asked for.

    The published loop leaves its last look before it steps, so that it steps once less than it looks.
    """
    layers, steps, rate, weight, clamp, decay, kl = PUBLISHED[name]
    published = MemitSettings(
        layers=tuple(layers),
        steps=steps - 1,
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
    method = methods.MemitReference(tiny.language_model("llama"), Resources(PRESETS[name], _no_moments))
    assert replace(method.settings(), precision="float32") == published


def _no_moments() -> Moments:
    raise AssertionError


def test_steps_of_our_own_terms_give_way_to_the_papers(settings: MemitSettings) -> None:
    """Rate and steps that were tuned with the word's end asked for are not the paper's."""
    ours = replace(settings, end_weight=0.25, steps=45, learning_rate=0.25).as_reference()
    assert (ours.steps, ours.learning_rate) == (24, 0.5)


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


def test_same_states_same_weights(settings: MemitSettings) -> None:
    """Algorithm 1, plainly: averaged keys, spread residual, Δ = R Kᵀ (λC + K Kᵀ)⁻¹, block by block."""
    lm, plain = tiny.language_model("llama"), tiny.language_model("llama")
    facts = [replace(fact, prompts=fact.prompts[:1]) for fact in requests_of(4)]
    prefixes = ("The city.", "You see.", "It rained.")
    moments = Moments.compute(lm, None, LAYERS, tokens=600, seed=1)
    settings = replace(settings.as_reference(), steps=5)
    shifts = torch.randn(len(facts), lm.layers.d, generator=torch.Generator().manual_seed(0))

    def search(*_: object, **__: object) -> targets.Targets:
        return targets.Targets(shifts, torch.zeros(len(facts)), torch.full((len(facts),), 5))

    outcome = memit.edit(lm, facts, settings=settings, moments=moments, prefixes=prefixes, search=search)
    assert [tuple(state.keys[LAYERS[0]].shape) for state in outcome.states] == [(1, lm.layers.d_k)] * 4

    units = plan(plain, facts, prefixes=prefixes, kl_template="{} is a")
    z = torch.stack([_at_last(plain, unit, LAYERS[0])[1] for unit in units]) + shifts
    for number, layer in enumerate(LAYERS):
        found = [_at_last(plain, unit, layer) for unit in units]
        K = torch.stack([key for key, _ in found]).double()
        R = (z - torch.stack([state for _, state in found])).double() / (len(LAYERS) - number)
        A = settings.moment_weight * moments.layer(layer).double() + K.T @ K
        W = plain.layers.matrix(plain.model, layer)
        W += (R.T @ K @ torch.linalg.inv(A)).float()
        torch.testing.assert_close(lm.layers.matrix(lm.model, layer), W, rtol=1e-4, atol=1e-5)


def _at_last(lm: LanguageModel, unit: Unit, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k, half bare and half the mean behind prefixes, and the bare h of the last block."""
    keys, states = [], []
    for row in (row for row in unit.rows if row.labels):
        with torch.no_grad(), activations.record(lm, keys=[layer], states=[LAYERS[-1]]) as (k, h):
            lm.model(input_ids=torch.tensor([row.ids]))
        keys.append(k[layer][0, row.lookup])
        states.append(h[LAYERS[-1]][0, row.lookup])
    return 0.5 * keys[0] + 0.5 * torch.stack(keys[1:]).mean(dim=0), states[0]
