"""Target states z of many edits at once.

z = h + δ, where h is the state at the subject's last token after the last edited block and δ is shared by
all contexts of a subject. δ minimises, per subject (Meng et al. 2022, eq. 16, with the terms of the
reference code):

    mean over contexts of  -log p(target | context, h + δ) / tokens
                           - end_weight · log p(the word ends | context, target, h + δ)
      + kl_factor · KL(p(· | subject, h + δ) ‖ p(· | subject, h))  +  weight_decay · ‖δ‖ / ‖h‖²

with ‖δ‖ ≤ clamp · ‖h‖ after each step, until that is below the stop (of several objects after one prompt: by
what it is above the least there is, `Unit.floor`). The KL is read right after the subject, in "{} is a" where
contexts are prefixes, in the first template where they are templates. The loss is summed over subjects, so
rows stay independent and the result does not depend on what else is in the batch. Only what depends on δ is
run: blocks above the last edited one, tokens from the subject's last on (the keys and values of those before
are kept), logits at target positions; finished subjects leave.

Differs from the paper, where the settings ask for it:
- A step takes a part of the contexts, the next step another (`turns`): Adam goes as far in a step whatever it
  is judged by, so a third of the contexts costs a third and ends as low (benchmarks/RESULTS.md, "Nights").
  The loss is then the mean of every part's last one, and the KL, read in the first part, has 1/turns of its
  weight.
- A subject may also be finished once its targets are the likeliest (`stop_said`; ENCORE, arXiv 2502.01636).
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch

from editor.allocator import give_back_freed_memory
from editor.attention import plain_attention
from editor.batching import in_groups, tokens_at_once, with_smaller_batches
from editor.chunks import compacted, require_finite
from editor.descent import RowAdam
from editor.drafts import batched, draft, in_turns
from editor.lanes import lanes
from editor.layers import logits_of
from editor.precision import dtype_of, lowered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from editor.chunks import Chunk
    from editor.lanes import Lanes
    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Unit

EXACT_STEPS = 1
"""First evaluations in the model's own precision: Adam's first step goes as far in a component whose gradient
is nearly nothing as in any other, so what rounding makes of it is not small."""


@dataclass(slots=True)
class Targets:
    """Optimised states of some units.

    Attributes:
        shifts: δ, (units, d).
        losses: last mean negative log-likelihood of the targets, per unit (nats a token).
        steps: optimiser steps taken, per unit.
    """

    shifts: Float[Tensor, "units d"]
    losses: Float[Tensor, " units"]
    steps: Int[Tensor, " units"]


Search: TypeAlias = "Callable[..., Targets]"
"""How target states are found: `optimise`, or what takes the same and remembers what it found."""


def optimise(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Float[Tensor, "units d"],
    settings: MemitSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Targets:
    """Find the shift δ of every unit.

    Args:
        lm: the model, unchanged.
        units: tokenised subjects.
        anchors: h of each unit, the state whose norm bounds and scales δ.
        settings: how to optimise.
        progress: called with (finished units, units).

    Returns:
        The shifts, in float32.

    Raises:
        NonFiniteError: a loss is not finite.
        OutOfMemoryError: memory ran out at the smallest batch.
    """
    result = Targets(
        torch.zeros(len(units), anchors.shape[1], device=lm.device),
        torch.zeros(len(units), device=lm.device),
        torch.zeros(len(units), dtype=torch.long, device=lm.device),
    )

    def of_wave(numbers: list[int]) -> Targets:
        def report(finished: int) -> None:
            if progress is not None:
                progress(numbers[0] + finished, len(units))

        wave = [units[number] for number in numbers]
        attempt = partial(_optimise_wave, lm, wave, anchors[numbers].float(), settings, report=report)
        longest = max(unit.longest for unit in wave)
        found = with_smaller_batches(longest, tokens_at_once(lm, settings), attempt)
        give_back_freed_memory()  # blocks of what comes next are of other sizes
        return found

    # What stands before their subjects is kept for all subjects of a wave: where that does not fit, half of
    # them are sought together.
    at_once = settings.subjects_at_once(lm.device)
    for numbers, found in in_groups(range(len(units)), at_once, lambda _: 1, of_wave):
        result.shifts[numbers], result.losses[numbers], result.steps[numbers] = (
            found.shifts,
            found.losses,
            found.steps,
        )
    return result


def _optimise_wave(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Tensor,
    settings: MemitSettings,
    *,
    batch_tokens: int,
    report: Callable[[int], None],
) -> Targets:
    with plain_attention(lm), lanes(lm) as side:
        prepare = partial(_prepared, lm, side, settings=settings, batch_tokens=batch_tokens)
        turns = in_turns(units, settings.turns)
        by_turn = [prepare(part) for part in turns[:EXACT_STEPS]]
        if len(turns) > EXACT_STEPS:  # their first evaluation is a lowered one
            with lowered(lm, settings.precision):
                by_turn += [prepare(part) for part in turns[EXACT_STEPS:]]
        return _descend(lm, units, anchors, by_turn, settings, side=side, report=report)


def _descend(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Tensor,
    by_turn: list[list[Chunk]],
    settings: MemitSettings,
    *,
    side: Lanes,
    report: Callable[[int], None],
) -> Targets:
    """Descend until every unit's loss is below the stop, or the steps are used up."""
    lengths = anchors.norm(dim=1)
    descent = RowAdam(settings.clamp * lengths, anchors.shape[1], rate=settings.learning_rate)
    decay = settings.weight_decay / lengths.square()
    floor = torch.tensor([unit.floor for unit in units], device=anchors.device)
    active = torch.ones(len(units), dtype=torch.bool, device=anchors.device)
    # Of each turn's last evaluation; what was not asked yet is far from learnt.
    losses, beside, missed = torch.full((3, len(by_turn), len(units)), torch.inf, device=anchors.device)
    said = torch.zeros_like(active, dtype=torch.long)
    with ExitStack() as stack:
        for step in range(settings.steps + 1):
            if step == EXACT_STEPS:
                stack.enter_context(lowered(lm, settings.precision, start=settings.layers[-1] + 1))
                for chunk in itertools.chain(*by_turn):
                    chunk.store_as(dtype_of(lm))
            turn, point = step % len(by_turn), descent.point
            *found, gradient = _evaluate(side, by_turn[turn], point, settings)
            for kept, now in zip((losses, beside, missed), found, strict=True):
                kept[turn] = torch.where(active, now, kept[turn])
            size = point.norm(dim=1)
            require_finite(found[0] + found[1] + decay * size, active, units, where="targets")
            # d/dδ of ‖δ‖, zero where δ is zero.
            gradient += decay[:, None] * torch.nn.functional.normalize(point, dim=1)
            total = losses.mean(dim=0) + beside.mean(dim=0) + decay * size
            finished = active & (total - floor < settings.stop_loss)
            if settings.stop_said:
                said += active & (missed.sum(dim=0) == 0)
                finished |= active & (said >= settings.stop_said)
            descent.step(gradient, active, finished)
            active = active & ~finished
            report(int((~active).sum()))
            if not active.any():
                break
            by_turn = [compacted(chunks, active) for chunks in by_turn]
    return Targets(descent.value, losses.mean(dim=0), descent.steps)


def _evaluate(
    side: Lanes, chunks: Sequence[Chunk], value: Tensor, settings: MemitSettings
) -> tuple[
    Float[Tensor, " units"], Float[Tensor, " units"], Float[Tensor, " units"], Float[Tensor, "units d"]
]:
    """Return the targets' NLL, what is asked beside it, missed tokens, and the gradient of the first two."""
    shift = value.detach().requires_grad_()
    count = len(value)
    nll, beside, missed = torch.zeros(3, count, device=value.device)
    gradient = torch.zeros_like(value)

    def ask(lm: LanguageModel, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = chunk.run(lm, _shifted(chunk, shift))
        own_nll, own_beside, own_missed = chunk.losses(lm, hidden, count, settings)
        (own,) = torch.autograd.grad((own_nll + own_beside).sum(), shift)
        return own_nll.detach(), own_beside.detach(), own_missed, own

    def add(found: tuple[Tensor, ...]) -> None:
        for total, own in zip((nll, beside, missed, gradient), found, strict=True):
            total.add_(own)

    side.each(ask, chunks, add)
    return nll, beside, missed, gradient


def _shifted(chunk: Chunk, shift: Float[Tensor, "units d"]) -> Float[Tensor, "rows tokens d"]:
    first = chunk.states[:, :1] + shift[chunk.unit][:, None].to(chunk.states.dtype)
    return torch.cat([first, chunk.states[:, 1:]], dim=1)


def _prepared(
    lm: LanguageModel, side: Lanes, units: Sequence[Unit], *, settings: MemitSettings, batch_tokens: int
) -> list[Chunk]:
    start = settings.layers[-1] + 1
    drafts = draft(lm, units, batch_tokens, start=start)
    chunks = batched(lm, drafts, batch_tokens, start=start, lanes=side.count)
    side.each(partial(_complete, settings), chunks, lambda _: None)
    return chunks


@torch.no_grad()
def _complete(settings: MemitSettings, lm: LanguageModel, chunk: Chunk) -> None:
    """Run what does not depend on δ: keys and values of earlier tokens, the KL reference."""
    chunk.store(lm)
    if len(chunk.guarded) and settings.kl_factor:
        hidden = chunk.run(lm, chunk.states)
        chunk.guard = logits_of(lm.model, hidden[chunk.guarded, 0]).float().log_softmax(dim=1)
