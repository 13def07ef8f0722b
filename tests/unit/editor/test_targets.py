"""Target states: a batch gives what one at a time gives; gradients are right; everything is put back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import targets
from editor.chunks import drafts
from editor.errors import OutOfMemoryError
from editor.keys import KeyReader
from editor.requests import plan
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of, whole_model_loss

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Unit


def solve_for(lm: LanguageModel, units: list[Unit], settings: MemitSettings) -> targets.Targets:
    """Optimise units from their own states."""
    reader = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers)
    _, states = reader.read(settings.layers[0])
    return targets.optimise(lm, units, states, settings)


@pytest.mark.parametrize(("kl_template", "endings"), [(None, True), ("{} is a", False)])
@pytest.mark.parametrize("batch_tokens", [24, 4096])
def test_batched_equals_one_at_a_time(
    lm: LanguageModel,
    settings: MemitSettings,
    batch_tokens: int,
    kl_template: str | None,
    endings: bool,
) -> None:
    """Whatever else is in the batch and however it is cut, a subject's state is its own: cosine > 0.999."""
    settings = replace(settings, steps=12, batch_tokens=batch_tokens)
    units = plan(lm, requests_of(5), kl_template=kl_template, endings=endings)
    together = solve_for(lm, units, settings)
    for number, unit in enumerate(units):
        alone = solve_for(lm, [unit], replace(settings, batch_tokens=4096))
        cosine = torch.nn.functional.cosine_similarity(together.shifts[number], alone.shifts[0], dim=0)
        assert cosine > 0.999
        assert abs(float(together.losses[number] - alone.losses[0])) < 1e-3


@pytest.mark.parametrize("end_weight", [0.0, 0.5])
def test_gradient_equals_a_whole_model_pass(
    lm: LanguageModel, settings: MemitSettings, end_weight: float
) -> None:
    """The loss and gradient of the cut-down run equal those of the whole model with a hook, all positions."""
    units = plan(lm, requests_of(1), endings=end_weight > 0)
    settings = replace(settings, kl_factor=0.0, end_weight=end_weight)
    chunks = drafts(lm, units, 4096, start=settings.layers[-1] + 1)
    for chunk in chunks:
        targets._complete(lm, chunk, settings)
    shift = torch.randn(1, lm.layers.d, generator=torch.Generator().manual_seed(0))
    nll, beside, gradient = targets._evaluate(lm, chunks, shift, settings)

    delta = shift[0].clone().requires_grad_()
    losses = []
    for row in units[0].rows:

        def add(_module: object, _args: object, output: torch.Tensor, at: int = row.lookup) -> torch.Tensor:
            mask = torch.zeros(output.shape[1], 1)
            mask[at] = 1.0
            return output + mask * delta

        handle = lm.layers.block(lm.model, settings.layers[-1]).register_forward_hook(add)
        losses.append(whole_model_loss(lm, row, end_weight))
        handle.remove()
    oracle = torch.stack(losses).mean()
    oracle.backward()
    torch.testing.assert_close(nll[0] + beside[0], oracle.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[0], delta.grad, rtol=1e-3, atol=1e-6)


def test_shift_stays_within_the_clamp(lm: LanguageModel, settings: MemitSettings) -> None:
    """No state moves further than clamp · ‖h‖."""
    settings = replace(settings, clamp=0.3, stop_loss=0.0)
    units = plan(lm, requests_of(3))
    reader = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers)
    _, states = reader.read(settings.layers[0])
    found = targets.optimise(lm, units, states, settings)
    assert (found.shifts.norm(dim=1) <= 0.3 * states.norm(dim=1) * (1 + 1e-5)).all()
    assert (found.steps == settings.steps).all()


def test_finished_subjects_take_no_more_steps(lm: LanguageModel, settings: MemitSettings) -> None:
    """A subject below the stop at once is left where it is."""
    found = solve_for(lm, plan(lm, requests_of(2)), replace(settings, stop_loss=1e9))
    assert (found.steps == 0).all()
    assert (found.shifts == 0).all()


def test_lbfgs_lowers_the_same_loss_and_a_cost_shortens_the_shift(
    lm: LanguageModel, settings: MemitSettings
) -> None:
    """On random weights both methods end at the clamp; with a cost on the shift neither goes there."""
    units = plan(lm, requests_of(4))
    settings = replace(settings, steps=15, stop_loss=0.0)
    start = solve_for(lm, units, replace(settings, steps=0)).losses
    adam = solve_for(lm, units, settings)
    found = solve_for(lm, units, replace(settings, optimiser="lbfgs"))
    gained = (start - found.losses) / (start - adam.losses)
    assert (gained > 0.9).all()
    short = solve_for(lm, units, replace(settings, optimiser="lbfgs", shift_cost=100.0))
    assert (short.shifts.norm(dim=1) < 0.1 * found.shifts.norm(dim=1)).all()


def test_bfloat16_gives_nearly_the_same_and_is_undone(lm: LanguageModel, settings: MemitSettings) -> None:
    """Weights come back as the same float32 tensors; the shift points the same way.

    With the first step in bfloat16 too, the angle is more than five times as wide and the bound is missed.
    """
    units = plan(lm, requests_of(3))
    settings = replace(settings, steps=2)
    before = {name: (p.data_ptr(), p.dtype) for name, p in lm.model.named_parameters()}
    exact = solve_for(lm, units, settings)
    rough = solve_for(lm, units, replace(settings, precision="bfloat16"))
    assert {name: (p.data_ptr(), p.dtype) for name, p in lm.model.named_parameters()} == before
    assert torch.nn.functional.cosine_similarity(exact.shifts, rough.shifts, dim=1).min() > 1 - 2e-5


def test_memory_is_halved_until_it_fits(
    lm: LanguageModel, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory halves the batch; with a single sequence left it is a named, retryable error."""
    asked: list[int] = []
    real = targets._optimise_wave

    def tight(*args: object, batch_tokens: int, **kwargs: object) -> targets.Targets:
        asked.append(batch_tokens)
        if batch_tokens > 100:
            raise torch.OutOfMemoryError
        return real(*args, batch_tokens=batch_tokens, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(targets, "_optimise_wave", tight)
    settings = replace(settings, batch_tokens=256, steps=1)
    solve_for(lm, plan(lm, requests_of(2)), settings)
    assert asked == [256, 128, 64]

    def never(*_args: object, **_kwargs: object) -> targets.Targets:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(targets, "_optimise_wave", never)
    with pytest.raises(OutOfMemoryError):
        solve_for(lm, plan(lm, requests_of(2)), settings)


def test_attention_and_blocks_are_put_back(lm: LanguageModel, settings: MemitSettings) -> None:
    """The model is as it was: its attention, its forwards, no gradient anywhere."""
    attention = lm.attention
    solve_for(lm, plan(lm, requests_of(2)), replace(settings, steps=1))
    assert lm.attention == attention
    assert all("forward" not in lm.layers.block(lm.model, layer).__dict__ for layer in range(4))
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


def test_other_families_agree_too(settings: MemitSettings) -> None:
    """Families with learned positions and with blocks that return tuples: batch equals alone."""
    for name in ("gpt2", "gptj", "opt"):
        lm = tiny.language_model(name)
        units = plan(lm, requests_of(3))
        short = replace(settings, steps=4)
        together = solve_for(lm, units, short)
        alone = solve_for(lm, units[1:2], short)
        cosine = torch.nn.functional.cosine_similarity(together.shifts[1], alone.shifts[0], dim=0)
        assert cosine > 0.999
