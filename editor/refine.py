"""Refine what is written: the values of many edits at once, on the weights as they stand.

A target state is found as if the write would reach it and nothing else moved. Then the write leaves a
residual and moves the other tokens of the prompt, and later nights move them again: the target stays
preferred, but its words slip. What the closed form can still give is known: with the keys of the edits and A
as in `editor.solve`, new values V + U change the matrix by

    Δ = U P,    P = Kᵀ A⁻¹,

so the loss of the written model is a function of U, descended by Adam (the terms of `editor.targets` but for
its KL, mean over a subject's prompts, summed over subjects):

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
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from editor import activations
from editor.allocator import give_back_freed_memory
from editor.attention import plain_attention
from editor.batching import tokens_at_once, with_smaller_batches
from editor.chunks import Chunk, compacted, require_finite
from editor.descent import RowAdam
from editor.drafts import batched, draft, in_turns
from editor.lanes import lanes
from editor.precision import dtype_of, lowered

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
    from editor.state import SubjectState

    Progress = Callable[[int, int], None]
    Term = Callable[[LanguageModel, Mapping[int, Tensor]], tuple[Tensor, ...]]


_PACE = 2.0
_BETA2 = 0.95
"""As a fact is learnt its gradient falls to a hundredth, and by Adam's usual memory of a thousand steps the
last ones would be measured by the first."""
_SEVERAL = 2
"""How many times the steps of one fact those of several in one subject may take."""
_SERVES = 25
"""For how many steps what stands before the subject serves."""
_KEPT_CONTEXTS = 10
"""Of how many contexts a subject it is kept."""
_KEPT_CHUNKS = 4
"""How many chunks, of many sizes, leave what they freed for the next ones."""


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
        asked = _Asked(lm, side, units, settings, drift=drift, batch_tokens=batch_tokens)
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
            descent.step(loss[owners], gradient, active[owners], finished[owners])
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


class _Asked:
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
        self._lm, self._side, self._settings, self._batch_tokens = lm, side, settings, batch_tokens
        self._drift = drift
        self._units = [_told(unit) for unit in units]
        contexts = max(max(Counter(row.fact for row in unit.rows).values()) for unit in self._units)
        self._turns = [
            _Turn(draft(lm, part, batch_tokens, start=settings.layers[0]))
            for part in in_turns(self._units, contexts if settings.turns > 1 else 1)
        ]
        self._losses = torch.full((len(self._turns), len(units)), torch.inf, device=lm.device)
        self._rows = torch.tensor([float(len(unit.rows)) for unit in self._units], device=lm.device)
        self._most_kept = _KEPT_CONTEXTS * settings.subjects_at_once(lm.device)
        several = torch.tensor([len(unit.fact_ids) > 1 for unit in units], device=lm.device)
        self.limit: Int[Tensor, " units"] = settings.refine_steps * torch.where(several, _SEVERAL, 1)

    @property
    def loss(self) -> Float[Tensor, " units"]:
        """The mean over all contexts, each when it was last asked for; infinite until all were."""
        return self._losses.mean(dim=0)

    def evaluate(
        self, step: int, changes: Mapping[int, Tensor], active: Bool[Tensor, " units"], *, whole: bool
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
            chunks = self._turns[number].chunks(
                self._lm,
                active,
                batch_tokens=self._batch_tokens,
                start=self._settings.layers[0],
                lanes=self._side.count,
                step=serving,
            )
            losses, by_layer = _evaluate(
                self._side,
                chunks,
                len(self._units),
                changes,
                self._settings,
                terms=[partial(self._drift.gradients, texts)] if texts else [],
                keep=serving is not None,
            )
            texts = []  # once a step
            require_finite(losses, active, self._units)
            self._losses[number] = torch.where(active, losses, self._losses[number])
            yield by_layer
            if whole:
                # No loss is negative: what these contexts have alone may keep the mean above the stop.
                least = self._losses[: number + 1].sum(dim=0) / len(self._turns)
                active = active & (least < self._settings.refine_stop_loss)
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
        lm: LanguageModel,
        active: Bool[Tensor, " units"],
        *,
        batch_tokens: int,
        start: int,
        lanes: int,
        step: int | None,
    ) -> list[Chunk]:
        """Return chunks of the units that do not rest.

        Args:
            lm: the model.
            active: those units.
            batch_tokens: most tokens of one forward.
            start: the first edited block.
            lanes: how many chunks run side by side.
            step: of those that they may serve for, while what stands before their subjects stays in memory;
                None lets them serve once.
        """
        if step is not None and self.kept and step - self.since < _SERVES:
            self.kept = compacted(self.kept, active)
            return self.kept
        # Batched anew as subjects rest: a few rows in each of many chunks cost as much as full ones.
        going = [one for one in self.drafts if active[one.unit]]
        chunks = batched(lm, going, batch_tokens, start=start, lanes=lanes)
        self.kept, self.since = ([], 0) if step is None else (chunks, step)
        return chunks


def _evaluate(
    side: Lanes,
    chunks: Sequence[Chunk],
    count: int,
    changes: Mapping[int, Float[Tensor, "d d_k"]],
    settings: MemitSettings,
    *,
    terms: Sequence[Term] = (),
    keep: bool = True,
) -> tuple[Float[Tensor, " units"], dict[int, Float[Tensor, "d d_k"]]]:
    """Return the loss of each of so many units that has rows here, and ∂L/∂Δ of their sum by layer.

    Args:
        side: where chunks run.
        chunks: what is asked.
        count: units.
        changes: Δ by layer.
        settings: weights of the terms.
        terms: further ones, which give their gradients alone.
        keep: whether chunks keep what stands before their subjects.
    """
    leaves = {layer: change.detach().requires_grad_() for layer, change in changes.items()}
    totals = {layer: torch.zeros_like(leaf, dtype=torch.float32) for layer, leaf in leaves.items()}
    losses = next(iter(leaves.values())).new_zeros(count, dtype=torch.float32)
    left = iter(reversed(range(len(terms) + len(chunks))))

    def ask(lm: LanguageModel, asked: Chunk | Term) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        if not isinstance(asked, Chunk):
            return None, asked(lm, leaves)
        hidden = _run(lm, asked, leaves)
        nll, beside, _ = asked.losses(lm, hidden, count, settings)
        gradients = torch.autograd.grad((nll + beside).sum(), tuple(leaves.values()))
        if not keep:
            asked.stored = {}
        return (nll + beside).detach(), gradients

    def add(found: tuple[Tensor | None, tuple[Tensor, ...]]) -> None:
        if found[0] is not None:
            losses.add_(found[0])
        for total, gradient in zip(totals.values(), found[1], strict=True):
            total.add_(gradient)
        if next(left) % _KEPT_CHUNKS == 0 and not keep:
            give_back_freed_memory()

    everything: list[Chunk | Term] = [*terms, *chunks]
    side.each(ask, everything, add)
    return losses, totals


def _run(lm: LanguageModel, chunk: Chunk, changes: Mapping[int, Tensor]) -> Float[Tensor, "rows tokens d"]:
    with activations.changed(lm, changes, rows=len(chunk.ids)):
        if not chunk.stored:
            chunk.store(lm)
        return chunk.run(lm, chunk.states)


def _told(unit: Unit) -> Unit:
    """Without a KL sequence of its own, which is not asked for here."""
    return replace(unit, rows=tuple(row for row in unit.rows if row.labels))


def _moved(state: SubjectState, changes: Mapping[int, Float[Tensor, "m d"]]) -> SubjectState:
    """V + U."""
    values = {layer: state.values[layer] + changes[layer].cpu() for layer in state.values}
    return replace(state, values=values)
