"""Refine what is written: the values of many edits at once, on the weights as they stand.

A target state is found as if the write would reach it and nothing else moved. Then the write leaves a
residual and moves the other tokens of the prompt, and later nights move them again: the target stays
preferred, but its words slip. What the closed form can still give is known: with the keys of the edits and A
as in `editor.solve`, new values V + U change the matrix by

    Δ = U P,    P = Kᵀ A⁻¹,

so the loss of the written model is a function of U, descended by Adam (the terms of `editor.targets` but for
its KL and its decay, mean over a subject's prompts, summed over subjects):

    L(U) = Σ_subjects  -log p(target | prompt; W + U P) / tokens  -  end_weight · log p(the word ends | ...)
           + D(U P)
    ∂L/∂U = ∂L/∂Δ Pᵀ,  with  ∂L/∂Δ = Σ_prompts g kᵀ  taken at the subject's last token,

and D what the change moves on other text (`editor.drift`).

What is kept of an edit are its keys and values, and those are what changes here: all that holds for a write
(undoing, replacing, rebuilding in one solve) holds for a refined one.

Differs from the paper, which writes once. At other tokens the change is run but not followed: they are the
words of the relation, which all its facts share, and a descent along them teaches the relation to name
somebody, whoever is asked about (docs/log.md). What stands before the subject moves little in a step, so its
keys and values serve for some.

| symbol | shape | meaning |
|---|---|---|
| K, k | (d_k, n), (d_k,) | keys of the edits as stored; a key in this forward |
| U | (d, n) | change of their values |
| P | (n, d_k) | how the matrix follows the values |
| g | (d,) | gradient at the written matrix's output |
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from editor.allocator import give_back_freed_memory
from editor.attention import plain_attention
from editor.batching import tokens_at_once, with_smaller_batches
from editor.descent import RowAdam
from editor.lanes import lanes
from editor.precision import dtype_of, lowered
from editor.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from editor.drift import Drift
    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Unit
    from editor.state import SubjectState

    Progress = Callable[[int, int], None]


_PACE = 2.0
_BETA2 = 0.95
"""As a fact is learnt its gradient falls to a hundredth, and by Adam's usual memory of a thousand steps the
last ones would be measured by the first."""


@dataclass(frozen=True, slots=True)
class Refined:
    """What a refinement found.

    Attributes:
        states: the states with their new values, in the order given.
        steps: in how many steps each took part; 0 where nothing had to be done.
    """

    states: tuple[SubjectState, ...]
    steps: tuple[int, ...]


def refine(
    lm: LanguageModel,
    units: Sequence[Unit],
    states: Sequence[SubjectState],
    spans: Mapping[int, Float[Tensor, "n d_k"]],
    settings: MemitSettings,
    *,
    drift: Drift,
    progress: Progress | None = None,
) -> Refined:
    """Change values until every subject's loss is below the stop, or the steps are used up.

    First all are looked at: a subject below the stop over all of its contexts rests. When all rest, all are
    looked at again, for what the others moved. Steps in between take one context of each fact, where the
    settings take contexts in turns. A subject of several facts may take twice as many steps.

    Args:
        lm: the model with the states written; its weights are not touched.
        units: tokenised subjects.
        states: the state of each.
        spans: P by layer, one row a key, in the order of the states.
        settings: `refine_steps`, `refine_stop_loss`, and the rate and precision of target states.
        drift: what the change moves on other text.
        progress: called with (resting subjects, subjects).

    Returns:
        The states, and how it went.

    Raises:
        NonFiniteError: a loss is not finite.
        OutOfMemoryError: memory ran out at the smallest batch.
    """
    counts = [len(state.keys[settings.layers[0]]) for state in states]
    owner = torch.arange(len(states)).repeat_interleave(torch.tensor(counts)).to(lm.device)
    attempt = partial(_descend, lm, units, owner, spans, settings, drift=drift, progress=progress)
    longest = max(unit.longest for unit in units)
    found, steps = with_smaller_batches(longest, tokens_at_once(lm, settings), attempt)
    give_back_freed_memory()  # blocks of what comes next are of other sizes
    changes = {layer: torch.split(U, counts) for layer, U in found.items()}
    refined = [
        _moved(state, {layer: own[number] for layer, own in changes.items()})
        for number, state in enumerate(states)
    ]
    return Refined(tuple(refined), tuple(steps.tolist()))


def _descend(
    lm: LanguageModel,
    units: Sequence[Unit],
    owner: Int[Tensor, " n"],
    spans: Mapping[int, Tensor],
    settings: MemitSettings,
    *,
    drift: Drift,
    batch_tokens: int,
    progress: Progress | None,
) -> tuple[dict[int, Float[Tensor, "n d"]], Int[Tensor, " units"]]:
    """Return U by layer, and how many steps each subject took."""
    layers = settings.layers
    # A layer's share of a target state's step, as the residual is spread (eq. 20 of the paper), at twice the
    # pace: these steps run more blocks. Four times the pace costs perplexity and saves no step (docs/log.md).
    rate = _PACE * settings.learning_rate / len(layers)
    unbounded = torch.full((len(layers) * len(owner),), torch.inf, device=lm.device)
    descent = RowAdam(unbounded, lm.layers.d, rate=rate, beta2=_BETA2)
    owners = owner.repeat(len(layers))
    gradient = torch.zeros_like(descent.point)
    with plain_attention(lm), lowered(lm, settings.precision), lanes(lm) as side:
        P = {layer: span.to(dtype_of(lm)) for layer, span in spans.items()}  # as what Δ is added to
        asked = Turns(lm, side, units, settings, drift=drift, batch_tokens=batch_tokens)
        steps, active, whole = torch.zeros_like(asked.limit), asked.limit > 0, True
        for step in itertools.count():
            U = torch.split(descent.point, len(owner))
            changes = {
                layer: own.T.to(P[layer].dtype) @ P[layer] for layer, own in zip(layers, U, strict=True)
            }
            gradient.zero_()
            for by_layer in asked.evaluate(step, changes, active, whole=whole):
                for own, layer in zip(torch.split(gradient, len(owner)), layers, strict=True):
                    own.add_(P[layer] @ by_layer[layer].T.to(P[layer].dtype))  # ∂L/∂Δ Pᵀ
            loss, spent = asked.loss, steps >= asked.limit
            finished = active & ((loss < settings.refine_stop_loss) | spent)
            descent.step(gradient, active[owners], finished[owners])
            active = active & ~finished
            if progress is not None:
                progress(int((~active).sum()), len(units))
            steps += active.long()
            # All contexts where it is asked who rests, a part of them in between.
            looked, whole = whole, not active.any()
            if whole:
                active = ~spent
            if whole and (looked or not active.any()):
                break
    values = torch.split(descent.value, len(owner))
    return dict(zip(layers, values, strict=True)), steps


def _moved(state: SubjectState, changes: Mapping[int, Float[Tensor, "m d"]]) -> SubjectState:
    """V + U."""
    values = {layer: state.values[layer] + changes[layer].cpu() for layer in state.values}
    return replace(state, values=values)
