"""What an edit moves on text that it is not about: the term by which refinement pays for it.

The closed form weighs other text by C, layer by layer, and knows nothing of what several written layers do
together; a descent on the written weights (`editor.refine`) would not weigh it at all. So each of its steps
looks at a few texts too, and adds to the loss how far their states after the last edited block, which is all
that the blocks above see of the edits, are from those of the unedited model:

    D(Δ) = drift_weight · mean_t ‖h_t(W + Δ) - h_t‖² / ‖h_t‖²,    followed through every token,

t over all tokens of a text but its first.

Differs from the paper, which writes once and does not descend on weights. Refined weights cost real text
about half of what they cost it without, for nearly the same words (benchmarks/RESULTS.md, "Other text").

| symbol | shape | meaning |
|---|---|---|
| W, Δ | (d, d_k) | a written matrix as tonight's states were placed, and its change since |
| h_t(W), h_t | (d,) | state of token t after the last edited block, and that of the unedited model |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editor import activations
from editor.batching import in_groups
from editor.precision import dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.presets import MemitSettings

_AT_ONCE = 2
"""How many texts a step looks at; sixteen did no better (docs/log.md)."""
_MEASURED_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Texts:
    """Some text, and how the unedited model runs it.

    Attributes:
        rows: token ids of each, two or more.
        layer: the block after which states were taken.
        states: of all tokens of all rows, in bfloat16: it rounds them by 0.2 % at most, where a hundred
            facts move them by 10.
    """

    rows: tuple[tuple[int, ...], ...]
    layer: int
    states: Float[Tensor, "tokens d"]


@torch.no_grad()
def measured(lm: LanguageModel, rows: Sequence[Sequence[int]], layer: int) -> Texts:
    """Run texts up to a block.

    Args:
        lm: the unedited model.
        rows: token ids of each.
        layer: the last edited block.
    """

    def states_of(group: list[Sequence[int]]) -> Tensor:
        ids, mask, positions = activations.padded(group, lm.device)
        return activations.run(lm, ids, mask, positions, stop_after=layer)[mask.bool()].bfloat16().cpu()

    states = [found for _, found in in_groups(rows, _MEASURED_TOKENS, len, states_of)]
    nothing = torch.zeros(0, lm.layers.d, dtype=torch.bfloat16)
    return Texts(tuple(tuple(row) for row in rows), layer, torch.cat([nothing, *states]))


class Drift:
    """The term, a few texts a step in an order of its own.

    Args:
        texts: what is held; None holds nothing.
        settings: layers, weight, and the seed of the order.
    """

    def __init__(self, texts: Texts | None, settings: MemitSettings) -> None:
        self._start, self._weight = settings.layers[0], settings.drift_weight
        self._rows: list[tuple[Sequence[int], Tensor]] = []
        if texts is not None and texts.rows and self._weight:
            own = torch.split(texts.states, [len(row) for row in texts.rows])
            generator = torch.Generator().manual_seed(settings.seed)
            order = torch.randperm(len(own), generator=generator).tolist()
            self._rows = [(texts.rows[number], own[number]) for number in order]
            self._stop = texts.layer

    def at(self, step: int) -> list[tuple[Sequence[int], Float[Tensor, "tokens d"]]]:
        """Return the texts of a step with their states; none where nothing is weighed."""
        count = len(self._rows)
        first = step * _AT_ONCE
        return [self._rows[number % count] for number in range(first, first + min(_AT_ONCE, count))]

    def gradients(
        self,
        texts: Sequence[tuple[Sequence[int], Float[Tensor, "tokens d"]]],
        lm: LanguageModel,
        changes: Mapping[int, Float[Tensor, "d d_k"]],
    ) -> tuple[Float[Tensor, "d d_k"], ...]:
        """Return ∂D/∂Δ, in the order of `changes`.

        Args:
            texts: some of them.
            lm: the model with tonight's states placed, or a lane's.
            changes: Δ by layer, leaves of the graph.
        """
        ids, mask, positions = activations.padded([row for row, _ in texts], lm.device)
        below = None
        if self._start:
            with torch.no_grad():
                below = activations.run(lm, ids, mask, positions, stop_after=self._start - 1)
                below = below.to(dtype_of(lm))
        with activations.changed(lm, changes):
            now = activations.run(
                lm, ids, mask, positions, start=self._start, states=below, stop_after=self._stop
            )
        told = mask.bool()
        h = torch.cat([states for _, states in texts]).to(lm.device).float()
        moved = (now[told].float() - h).square().sum(dim=1) / h.square().sum(dim=1)
        # Many models rest their attention on the first token, with a state of another length.
        later = (positions > 0)[told]
        return torch.autograd.grad(self._weight * moved[later].mean(), tuple(changes.values()))
