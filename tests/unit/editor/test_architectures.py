"""Every architecture is edited end to end; partial runs equal the model's own forward."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache

from editor import activations, memit, recall
from editor.errors import MethodError, UnknownArchitectureError
from editor.layers import ARCHITECTURES, LayerMap, logits_of
from editor.moments import Moments
from editor.presets import MemitSettings
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel

# A norm between the written matrix and the stream bounds how far one write can move a state.
_LANDED = {"gemma2": 0.5, "gemma3": 0.5, "olmo2": 0.5, "olmo3": 0.5, "glm4": 0.5}


def test_every_row_of_the_table_is_built_here() -> None:
    """A family cannot be listed without a tiny model of it."""
    built = {getattr(transformers, config).model_type for config, _ in tiny.ARCHITECTURES.values()}
    assert built == set(ARCHITECTURES)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_partial_run_equals_whole_forward(name: str) -> None:
    """Run above block 1 in two parts with kept keys and values: the logits of the model's own forward."""
    lm = tiny.language_model(name)
    ids = torch.randint(2, 390, (3, 9), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(9).expand(3, -1)
    mask = (positions < torch.tensor([[9], [7], [5]])).long()
    cache = DynamicCache()
    with torch.no_grad():
        whole = lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        with activations.record(lm, states=[1]) as (_, states):
            assert torch.equal(activations.run(lm, ids, mask, positions, stop_after=1), states[1])
        early, late = states[1][:, :4], states[1][:, 4:]
        activations.run(lm, ids[:, :4], mask[:, :4], positions[:, :4], start=2, states=early, cache=cache)
        stored = {layer: (cache.layers[layer].keys, cache.layers[layer].values) for layer in (2, 3)}
        cache = activations.cache_of(lm, stored)
        hidden = activations.run(lm, ids[:, 4:], mask, positions[:, 4:], start=2, states=late, cache=cache)
        real = mask[:, 4:].bool()
        torch.testing.assert_close(
            logits_of(lm.model, hidden[real]), whole[:, 4:][real], rtol=1e-4, atol=1e-4
        )
    assert not any("forward" in lm.layers.block(lm.model, layer).__dict__ for layer in range(4))


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_every_architecture_takes_an_edit(name: str) -> None:
    """A tiny model of each family gets target states and takes them; nothing else changes."""
    lm = tiny.language_model(name)
    settings = MemitSettings(
        layers=(1, 2),
        moment_weight=0.02,
        steps=10,
        learning_rate=0.1,
        clamp=0.5,
        refine_steps=1,
        precision="float32",
    )
    moments = Moments.compute(lm, None, settings.layers, tokens=300)
    facts = requests_of(3)
    pairs = [(prompt.format(fact.subject), fact.target) for fact in facts for prompt in fact.prompts]
    before = [-math.log(rated.probability) for rated in recall.likelihoods(lm, pairs)]
    names = {lm.layers.weight_name(layer) for layer in settings.layers}
    untouched = {n: p.clone() for n, p in lm.model.named_parameters() if n not in names}
    outcome = memit.edit(lm, facts, settings=settings, moments=moments)
    assert set(outcome.delta.changes) == names
    # A random model can hardly be talked into a sentence; what an architecture must give is a target state
    # that lowers the loss, and a write that puts it in place.
    losses = [report.loss for report in outcome.reports]
    assert sum(losses) / len(losses) < sum(before) / len(before)
    assert max(report.residual for report in outcome.reports) < _LANDED.get(name, 0.02)
    for parameter_name, parameter in lm.model.named_parameters():
        if parameter_name in untouched:
            assert torch.equal(parameter, untouched[parameter_name])


class _Odd(nn.Module):
    """A model that no table knows."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        block = nn.ModuleDict({"up": nn.Linear(8, 32), "down": nn.Linear(wide, 8)})
        self.stack = nn.ModuleList(
            [block, nn.ModuleDict({"up": nn.Linear(8, 32), "down": nn.Linear(wide, 8)})]
        )
        self.config = type("Config", (), {"model_type": "odd", "hidden_size": 8})()


def test_unknown_architecture_names_the_row_to_add() -> None:
    """A model without a narrowing matrix is refused with the way out."""
    with pytest.raises(UnknownArchitectureError, match=r"ARCHITECTURES in editor/layers\.py") as caught:
        LayerMap.discover(_Odd(wide=8))
    assert caught.value.model_type == "odd"


def test_found_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family without a row is found by the shapes of its blocks."""
    model = tiny.model("llama")
    expected = LayerMap.discover(model)
    monkeypatch.setattr("editor.layers.ARCHITECTURES", {})
    assert LayerMap.discover(model) == expected


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_a_norm_behind_the_matrix_is_found_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as if it were not there, a block would give the stream something else than was asked for."""
    model = tiny.model(name)
    expected = LayerMap.discover(model)
    monkeypatch.setattr("editor.layers.ARCHITECTURES", {})
    assert expected.post_norm
    assert LayerMap.discover(model) == expected


def test_blocks_that_are_not_alike_are_refused() -> None:
    """A mixture of experts behind a dense first block has no such matrix further up."""
    model = tiny.model("llama")
    model.model.layers[2].mlp = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(80, 32)])})  # type: ignore[union-attr,index]
    with pytest.raises(UnknownArchitectureError, match=r"layers\.2\.mlp\.down_proj\.weight is not what"):
        LayerMap.discover(model)


@pytest.mark.parametrize(
    "wrong", [{"layers": (2, 1)}, {"layers": (1, 1)}, {"layers": (-1, 0)}, {"clamp": -1.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    """Where they are made."""
    with pytest.raises(MethodError, match=r"layers are|clamp is"):
        MemitSettings(**{"layers": (1, 2), "moment_weight": 1.0, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [(), (1, 9)])
def test_blocks_that_the_model_does_not_have_are_refused(
    lm: LanguageModel, moments: Moments, layers: tuple[int, ...]
) -> None:
    """Before anything is computed."""
    settings = MemitSettings(layers=layers, moment_weight=1.0)
    with pytest.raises(MethodError, match="the model has blocks 0 to 3"):
        memit.edit(lm, requests_of(1), settings=settings, moments=moments)
