"""The term by which refinement pays for other text: its gradient, its yardstick, and what it wins."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import pytest
import torch

from editor import activations, drift, memit
from editor.drift import Drift, Texts
from editor.errors import MethodError
from editor.presets import MemitSettings
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from editor.model import LanguageModel
    from editor.moments import Moments

ROWS = ((5, 9, 2, 14, 3), (7, 1, 30), (11, 4, 8, 21, 6, 13, 2))


def some_change(lm: LanguageModel, layers: Sequence[int] = LAYERS) -> dict[int, Tensor]:
    """Return a random Δ a layer."""
    generator = torch.Generator().manual_seed(0)
    shape = lm.layers.d, lm.layers.d_k
    return {layer: 0.01 * torch.randn(shape, generator=generator) for layer in layers}


def states_of(lm: LanguageModel, row: Sequence[int], changes: Mapping[int, Tensor], last: int) -> Tensor:
    """Return the states after a block of one whole text alone, but for its first token."""
    handles = [
        lm.layers.writer(lm.model, layer).register_forward_hook(
            lambda _m, args, out, change=change: out + (args[0] @ change.T).reshape(out.shape)
        )
        for layer, change in changes.items()
    ]
    with activations.record(lm, states=[last]) as (_, kept):
        lm.model(input_ids=torch.tensor([list(row)]))
    for handle in handles:
        handle.remove()
    return kept[last][0, 1:]


@pytest.mark.parametrize("layers", [(0,), (1, 2)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "gpt_neox", "falcon_alibi"])
def test_the_gradient_is_that_of_whole_texts(
    name: str, layers: tuple[int, ...], settings: MemitSettings
) -> None:
    """Batched, padded and begun at the first edited block, it is what one text after another gives."""
    lm = tiny.language_model(name)
    held = drift.measured(lm, ROWS, max(layers))
    # What is held are the states of the unedited model, to the rounding of bfloat16.
    single = [states_of(lm, row, {}, max(layers)) for row in ROWS]
    kept = torch.split(held.states, [len(row) for row in ROWS])
    for own, found in zip(single, kept, strict=True):
        torch.testing.assert_close(found[1:].float(), own.detach(), rtol=1e-2, atol=1e-2)
    changes = {layer: one.requires_grad_() for layer, one in some_change(lm, layers).items()}
    moved = []
    for row, states in zip(ROWS, kept, strict=True):
        h = states[1:].float()
        away = states_of(lm, row, changes, max(layers)) - h
        moved.append(away.square().sum(dim=1) / h.square().sum(dim=1))
    (3.0 * torch.cat(moved).mean()).backward()
    term = Drift(held, replace(settings, layers=layers, drift_weight=3.0))
    asked = list(zip(ROWS, kept, strict=True))
    for found, change in zip(term.gradients(asked, lm, changes), changes.values(), strict=True):
        torch.testing.assert_close(found, change.grad, rtol=1e-3, atol=1e-6)


def test_the_yardstick_is_the_unedited_model(lm: LanguageModel, settings: MemitSettings) -> None:
    """Whatever nights have written since: a change that takes all of it back moves nothing."""
    held = drift.measured(lm, ROWS, LAYERS[-1])
    written = some_change(lm)
    with torch.no_grad():
        for layer, change in written.items():
            lm.layers.matrix(lm.model, layer).add_(change)
    term = Drift(held, weighed(settings))
    asked = list(zip(ROWS, torch.split(held.states, [len(row) for row in ROWS]), strict=True))
    there, here = (
        torch.cat([one.flatten() for one in term.gradients(asked, lm, changes)]).norm()
        for changes in (
            {layer: (-one).requires_grad_() for layer, one in written.items()},
            {layer: torch.zeros_like(one).requires_grad_() for layer, one in written.items()},
        )
    )
    assert there < 0.1 * here  # what is left is the rounding of states


def test_every_text_has_its_turn_before_one_comes_again(settings: MemitSettings) -> None:
    """Two a step, in an order of the seed's."""
    rows = tuple((1, number) for number in range(10))
    texts = Texts(rows, 2, torch.zeros(20, 4))
    term = Drift(texts, weighed(settings))
    seen = [row for row, _ in chain.from_iterable(term.at(step) for step in range(10))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(rows)
    assert seen[:10] != list(rows)
    assert len(term.at(7)) == 2
    again, other = Drift(texts, weighed(settings)), Drift(texts, weighed(settings, seed=1))
    assert [row for row, _ in again.at(1)] == seen[2:4]
    assert [row for row, _ in other.at(1)] != seen[2:4]
    assert len(Drift(Texts(rows[:1], 2, torch.zeros(2, 4)), weighed(settings)).at(3)) == 1


def test_nothing_is_asked_where_nothing_is_weighed(lm: LanguageModel, settings: MemitSettings) -> None:
    """Without a weight, or without texts, which second moments made by hand have not."""
    assert Drift(drift.measured(lm, ROWS, 2), weighed(settings, drift_weight=0.0)).at(0) == []
    assert Drift(drift.measured(lm, (), 2), weighed(settings)).at(0) == []
    assert Drift(None, weighed(settings)).at(0) == []


def test_refined_weights_move_other_text_less(moments: Moments, settings: MemitSettings) -> None:
    """Also text that was not looked at; and without texts the weight changes nothing."""
    assert moments.texts is not None
    rows, other = moments.texts.rows[:-4], moments.texts.rows[-4:]
    base = tiny.language_model("llama")
    held = drift.measured(base, rows, LAYERS[-1])
    spread, weights = [], []
    for weight, texts in ((0.0, held), (30.0, held), (30.0, None)):
        lm = tiny.language_model("llama")
        chosen = replace(settings, refine_steps=20, refine_stop_loss=0.0, drift_weight=weight)
        memit.edit(lm, requests_of(4), settings=chosen, moments=replace(moments, texts=texts))
        with torch.no_grad():
            was, now = (torch.cat([states_of(m, row, {}, LAYERS[-1]) for row in other]) for m in (base, lm))
        spread.append(float(((now - was).square().sum(dim=1) / was.square().sum(dim=1)).mean()))
        weights.append([lm.layers.matrix(lm.model, layer) for layer in LAYERS])
    assert spread[1] < 0.9 * spread[0]
    assert all(torch.equal(own, plain) for own, plain in zip(weights[2], weights[0], strict=True))


def test_a_weight_below_nothing_is_refused() -> None:
    """It would pay for moving text."""
    with pytest.raises(MethodError, match="drift_weight is -1"):
        MemitSettings(layers=(0,), moment_weight=1.0, drift_weight=-1.0)


def weighed(settings: MemitSettings, *, drift_weight: float = 1.0, seed: int = 0) -> MemitSettings:
    """Return settings that weigh other text."""
    return replace(settings, drift_weight=drift_weight, seed=seed)
