"""What steps of a refinement ask: contexts in turns, their losses, and gradients at the written matrices.

A step takes one context of each fact; a look takes all, until it is clear that a subject does not rest. What
other text has to say (`editor.drift`) is asked once a step. For a step

    L(Δ) = Σ_subjects mean_contexts( -log p(target | prompt; W + Δ) / tokens
                                     - end_weight · log p(the word ends | ...) ) + D(Δ)
    ∂L/∂Δ = Σ_prompts g kᵀ,    followed at the subject's last token alone but for D (`editor.refine`).

| symbol | shape | meaning |
|---|---|---|
| W, Δ | (d, d_k) | a written matrix, and its change |
| k, g | (d_k,), (d,) | key in this forward, and gradient at the matrix's output |
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from editor import activations
from editor.allocator import give_back_freed_memory
from editor.chunks import Chunk, compacted, require_finite
from editor.drafts import batched, draft, in_turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from editor.drafts import Draft
    from editor.drift import Drift
    from editor.lanes import Lanes
    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Unit

    Gradients = tuple[Tensor, ...]
    Changes = Mapping[int, Tensor]

_SEVERAL = 2
"""How many times the steps of one fact those of several in one subject may take."""
_SERVES = 25
"""For how many steps what stands before the subject serves."""
_KEPT_CONTEXTS = 10
"""Of how many contexts a subject it is kept."""
_KEPT_CHUNKS = 4
"""How many chunks, of many sizes, leave what they freed for the next ones."""


class Turns:
    """The contexts of some subjects, parted into what single steps take, and the losses last found.

    Args:
        lm: the model.
        side: where chunks run.
        units: tokenised subjects.
        settings: whether contexts are taken in turns, and how many steps.
        drift: what is asked of other text.
        batch_tokens: most tokens of one forward.

    Attributes:
        limit: most steps of each subject.
    """

    def __init__(
        self,
        lm: LanguageModel,
        side: Lanes,
        units: Sequence[Unit],
        settings: MemitSettings,
        *,
        drift: Drift,
        batch_tokens: int,
    ) -> None:
        self._side, self._settings, self._drift = side, settings, drift
        self._batched = partial(
            batched, lm, batch_tokens=batch_tokens, start=settings.layers[0], lanes=side.count
        )
        self._units = [_told(unit) for unit in units]
        contexts = max(max(Counter(row.fact for row in unit.rows).values()) for unit in self._units)
        self._turns = [
            _Turn(draft(lm, part, batch_tokens, start=settings.layers[0]))
            for part in in_turns(self._units, contexts if settings.turns > 1 else 1)
        ]
        self._losses = torch.full((len(self._turns), len(units)), torch.inf, device=lm.device)
        self._rows = torch.tensor([float(len(unit.rows)) for unit in self._units], device=lm.device)
        self._most_kept = _KEPT_CONTEXTS * settings.subjects_at_once(lm.device)
        self._floor = torch.tensor([unit.floor for unit in units], device=lm.device)
        several = torch.tensor([len(unit.fact_ids) > 1 for unit in units], device=lm.device)
        self.limit: Int[Tensor, " units"] = settings.refine_steps * torch.where(several, _SEVERAL, 1)

    @property
    def loss(self) -> Float[Tensor, " units"]:
        """The mean over all turns, each when it was last asked for, above what it cannot fall under.

        Infinite until all were.
        """
        return self._losses.mean(dim=0) - self._floor

    def evaluate(
        self, step: int, changes: Changes, active: Bool[Tensor, " units"], *, whole: bool
    ) -> Iterator[dict[int, Float[Tensor, "d d_k"]]]:
        """Ask some subjects, for the contexts of a step or for all; yield ∂L/∂Δ of each turn by layer.

        Args:
            step: counts on from one call to the next.
            changes: Δ by layer.
            active: who is asked.
            whole: for all contexts, until it is clear that a subject does not rest.

        Raises:
            NonFiniteError: a loss is not finite.
        """
        few = float(self._rows[active].sum()) <= self._most_kept
        serving = step if few and not whole and len(self._turns) < _SERVES else None
        if not few:
            give_back_freed_memory()  # of the step before
        if whole:  # who comes back is in none of what was kept
            for turn in self._turns:
                turn.kept = []
        texts = self._drift.at(step)
        for number in range(len(self._turns)) if whole else [step % len(self._turns)]:
            chunks = self._turns[number].chunks(self._batched, active, step=serving)
            losses, by_layer = evaluated(
                self._side,
                chunks,
                len(self._units),
                changes,
                self._settings,
                beside=partial(self._drift.gradients, texts) if texts else None,
                keep=serving is not None,
            )
            texts = []  # once a step
            require_finite(losses, active, self._units, where="refine")
            self._losses[number] = torch.where(active, losses, self._losses[number])
            yield by_layer
            if whole:
                # No loss is negative: what these contexts have alone may keep the mean above the stop.
                least = self._losses[: number + 1].sum(dim=0) / len(self._turns)
                active = active & (least - self._floor < self._settings.refine_stop_loss)
                if not active.any():
                    return


@dataclass(slots=True)
class _Turn:
    """The contexts of one turn.

    Attributes:
        drafts: all of them.
        kept: chunks that serve for some steps.
        since: the step that made them.
    """

    drafts: list[Draft]
    kept: list[Chunk] = field(default_factory=list)
    since: int = 0

    def chunks(
        self,
        batched: Callable[[list[Draft]], list[Chunk]],
        active: Bool[Tensor, " units"],
        *,
        step: int | None,
    ) -> list[Chunk]:
        """Return chunks of the units that do not rest.

        Args:
            batched: puts rows into chunks.
            active: those units.
            step: of those that they may serve for, while what stands before their subjects stays in memory;
                None lets them serve once.
        """
        if step is not None and self.kept and step - self.since < _SERVES:
            self.kept = compacted(self.kept, active)
            return self.kept
        # Batched anew as subjects rest: a few rows in each of many chunks cost as much as full ones.
        on = active.tolist()
        going = [one for one in self.drafts if on[one.unit]]
        chunks = batched(going)
        self.kept, self.since = ([], 0) if step is None else (chunks, step)
        return chunks


def evaluated(
    side: Lanes,
    chunks: Sequence[Chunk],
    count: int,
    changes: Changes,
    settings: MemitSettings,
    *,
    beside: Callable[[LanguageModel, Changes], Gradients] | None = None,
    keep: bool = True,
) -> tuple[Float[Tensor, " units"], dict[int, Float[Tensor, "d d_k"]]]:
    """Return the loss of each of so many units that has rows here, and ∂L/∂Δ of their sum by layer.

    Args:
        side: where chunks run.
        chunks: what is asked.
        count: units.
        changes: Δ by layer.
        settings: weights of the terms.
        beside: the gradients of a further term, given Δ as leaves of the graph.
        keep: whether chunks keep what stands before their subjects.
    """
    leaves = {layer: change.detach().requires_grad_() for layer, change in changes.items()}
    totals = {layer: torch.zeros_like(leaf, dtype=torch.float32) for layer, leaf in leaves.items()}
    losses = next(iter(leaves.values())).new_zeros(count, dtype=torch.float32)

    def of_chunk(lm: LanguageModel, chunk: Chunk) -> tuple[Tensor, Gradients]:
        nll, ends, _ = chunk.losses(lm, _run(lm, chunk, leaves), count, settings)
        found = torch.autograd.grad((nll + ends).sum(), tuple(leaves.values()))
        if not keep:
            chunk.stored = {}
        return (nll + ends).detach(), found

    parts: list[Callable[[LanguageModel], tuple[Tensor, Gradients]]]
    parts = [partial(of_chunk, chunk=chunk) for chunk in chunks]
    if beside is not None:
        parts.insert(0, lambda lm: (torch.zeros(()), beside(lm, leaves)))
    left = iter(reversed(range(len(parts))))

    def add(found: tuple[Tensor, Gradients]) -> None:
        losses.add_(found[0])
        for total, gradient in zip(totals.values(), found[1], strict=True):
            total.add_(gradient)
        if next(left) % _KEPT_CHUNKS == 0 and not keep:
            give_back_freed_memory()

    side.each(lambda lm, part: part(lm), parts, add)
    return losses, totals


def _run(lm: LanguageModel, chunk: Chunk, changes: Changes) -> Float[Tensor, "rows tokens d"]:
    with activations.changed(lm, changes, rows=len(chunk.ids)):
        if not chunk.stored:
            chunk.store(lm)
        return chunk.run(lm, chunk.states)


def _told(unit: Unit) -> Unit:
    """Without a KL sequence of its own, which is not asked for here."""
    return replace(unit, rows=tuple(row for row in unit.rows if row.labels))
