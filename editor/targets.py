"""Target states z of many edits at once.

z = h + δ, where h is the state at the subject's last token after the last edited block and δ is shared by
all contexts of a subject. δ minimises, per subject (Meng et al. 2022, eq. 16, with the terms of the
reference code):

    mean over contexts of  -log p(target | context, h + δ) / tokens
                           - end_weight · log p(the word ends | context, target, h + δ)
      + kl_factor · KL(p(· | subject, h) ‖ p(· | subject, h + δ))  +  weight_decay · ‖δ‖ / ‖h‖²
      + shift_cost · ‖δ‖ / ‖h‖

with ‖δ‖ ≤ clamp · ‖h‖ after each step, until all but the last term are below the stop. The loss is summed
over subjects, so rows stay independent and the result does not depend on what else is in the batch. Only
what depends on δ is run: blocks above the last edited one, tokens from the subject's last on (the keys and
values of those before are kept), logits at target positions; finished subjects leave, and others take their
places (continuous batching, as of Yu et al., OSDI 2022).

Differs from the paper, where the settings ask for it:
- A step takes a part of the contexts, the next step another (`turns`): Adam goes as far in a step whatever it
  is judged by, so a third of the contexts costs a third and ends as low (benchmarks/RESULTS.md, "Nights").
  The loss is then the mean of every part's last one, and the KL, read in the first part, has 1/turns of its
  weight.
- A subject may also be finished once its targets are the likeliest (`stop_said`; ENCORE, arXiv 2502.01636).
- L-BFGS in place of Adam (`editor.descent`), and with it a shift_cost, without which it goes far for the
  last of the loss.
"""

from __future__ import annotations

import itertools
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch

from editor.allocator import give_back_freed_memory
from editor.attention import plain_attention
from editor.batching import tokens_at_once, with_smaller_batches
from editor.chunks import compacted
from editor.cohorts import Cohort
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

    def left(self) -> list[int]:
        """Return the units that are still to be found."""
        return (self.steps == _UNKNOWN).nonzero().flatten().tolist()


_UNKNOWN = -1

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
    found = Targets(
        torch.zeros(len(units), anchors.shape[1], device=lm.device),
        torch.zeros(len(units), device=lm.device),
        torch.full((len(units),), _UNKNOWN, device=lm.device),
    )

    def together(places: int) -> None:
        def attempt(batch_tokens: int) -> None:
            _search(
                lm,
                units,
                anchors.float(),
                settings,
                found=found,
                places=places,
                progress=progress,
                batch_tokens=batch_tokens,
            )

        longest = max((units[number].longest for number in found.left()), default=0)
        with_smaller_batches(longest, tokens_at_once(lm, settings), attempt)

    # What stands before their subjects is kept for all that are sought together: where that does not fit,
    # fewer are.
    with_smaller_batches(1, settings.subjects_at_once(lm.device), together)
    give_back_freed_memory()  # blocks of what comes next are of other sizes
    return found


def _search(
    lm: LanguageModel,
    units: Sequence[Unit],
    anchors: Float[Tensor, "units d"],
    settings: MemitSettings,
    *,
    found: Targets,
    places: int,
    progress: Callable[[int, int], None] | None,
    batch_tokens: int,
) -> None:
    """Find what is left to be found, so many subjects together.

    Once half of the places are free, subjects that wait come in, so that a few that take long keep nobody
    waiting. All are asked for the same turn, and each began with the first.
    """
    waiting, turn = deque(found.left()), 0
    with plain_attention(lm), lanes(lm) as side, ExitStack() as rounding:
        table = _Table(lm, side, rounding, settings, found, batch_tokens=batch_tokens)
        while waiting or table.going:
            table.step(turn)
            free = places - table.going
            if waiting and (free == places or (turn == 0 and 2 * free >= places)):
                numbers = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                table.join(Cohort(numbers, [units[n] for n in numbers], anchors[numbers], settings))
                turn = 0
            if progress is not None:
                progress(len(units) - len(found.left()), len(units))
            turn = (turn + 1) % settings.turns


class _Table:
    """Subjects that are sought together.

    Args:
        lm: the model.
        side: where chunks run.
        rounding: holds the model in a lower precision between two that come in.
        settings: how to search.
        found: where it goes.
        batch_tokens: most tokens of one forward.
    """

    def __init__(
        self,
        lm: LanguageModel,
        side: Lanes,
        rounding: ExitStack,
        settings: MemitSettings,
        found: Targets,
        *,
        batch_tokens: int,
    ) -> None:
        self._lm, self._side, self._rounding, self._settings = lm, side, rounding, settings
        self._found, self._batch_tokens = found, batch_tokens
        self._cohorts: list[Cohort] = []
        self._by_turn: list[list[Chunk]] = []

    @property
    def going(self) -> int:
        """How many are not found yet."""
        return sum(one.going for one in self._cohorts)

    def join(self, cohort: Cohort) -> None:
        """Let subjects come in, and take their first step.

        It is taken in the model's own precision: Adam's first step goes as far in a component whose gradient
        is nearly nothing as in any other, so what rounding makes of it is not small.
        """
        lm, precision = self._lm, self._settings.precision
        self._rounding.close()
        self._by_turn = []
        give_back_freed_memory()
        first = self._prepared([cohort], 0)
        self._ask([cohort], first, 0)
        self._cohorts = [one for one in (*self._cohorts, cohort) if one.going]
        if self._cohorts == [cohort]:
            by_turn = [compacted(first, cohort.active)]
        else:
            by_turn = [self._prepared(self._cohorts, 0)]
        with lowered(lm, precision):  # the first evaluation of the other turns is a lowered one
            by_turn += [self._prepared(self._cohorts, turn) for turn in range(1, self._settings.turns)]
        self._rounding.enter_context(lowered(lm, precision, start=self._settings.layers[-1] + 1))
        for chunk in itertools.chain(*by_turn):
            chunk.store_as(dtype_of(lm))
        self._by_turn = by_turn

    def step(self, turn: int) -> None:
        """Ask everyone for a turn's contexts, and let them step."""
        if self._cohorts:
            self._ask(self._cohorts, self._by_turn[turn], turn)
            active = torch.cat([one.active for one in self._cohorts])
            self._by_turn = [compacted(chunks, active) for chunks in self._by_turn]

    def _ask(self, cohorts: list[Cohort], chunks: list[Chunk], turn: int) -> None:
        point = torch.cat([one.point for one in cohorts])
        sizes = [len(one.units) for one in cohorts]
        parts = (torch.split(each, sizes) for each in _evaluate(self._side, chunks, point, self._settings))
        for cohort, *own in zip(cohorts, *parts, strict=True):
            ended = cohort.take(turn, *own)
            numbers = torch.tensor(cohort.numbers, device=ended.device)[ended]
            self._found.shifts[numbers] = cohort.shifts[ended]
            self._found.losses[numbers] = cohort.losses[ended]
            self._found.steps[numbers] = cohort.steps[ended]

    def _prepared(self, cohorts: list[Cohort], turn: int) -> list[Chunk]:
        """Return chunks of those who go on, and run what does not depend on δ."""
        resting = ((one.units[row], on) for one in cohorts for row, on in enumerate(one.active.tolist()))
        units = [unit if on else replace(unit, rows=()) for unit, on in resting]
        lm, start = self._lm, self._settings.layers[-1] + 1
        drafts = draft(lm, in_turns(units, self._settings.turns)[turn], self._batch_tokens, start=start)
        chunks = batched(lm, drafts, self._batch_tokens, start=start, lanes=self._side.count)
        self._side.each(partial(_complete, self._settings), chunks, lambda _: None)
        return chunks


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


@torch.no_grad()
def _complete(settings: MemitSettings, lm: LanguageModel, chunk: Chunk) -> None:
    """Run what does not depend on δ: keys and values of earlier tokens, the KL reference."""
    chunk.store(lm)
    if len(chunk.guarded) and settings.kl_factor:
        hidden = chunk.run(lm, chunk.states)
        chunk.guard = logits_of(lm.model, hidden[chunk.guarded, 0]).float().log_softmax(dim=1)
