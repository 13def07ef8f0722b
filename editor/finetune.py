"""Fine-tuning on the facts: with weight decay (FT-W), and constrained (FT-L).

- FT-W, the baseline of Meng et al. 2023 (arXiv 2210.07229, section 5.1): Adam on all weights of one block,
  weight decay exp(0.15589562) · n^-0.87028798 for n edits, as its authors fitted it on GPT-J.
- FT-L (Zhu et al. 2020, arXiv 2012.00363): Adam on one feed-forward matrix θ, after each step brought back
  to  ‖θ - θ₀‖_∞ ≤ ε.

Both minimise  -log p(o | x) / tokens  and stop when the mean loss of a pass is below 0.01.

Differs: targets are teacher-forced, one position a token; the released code scores every target token at
the prompt's last position. The block of FT-W stands at three quarters of the depth, as GPT-J's 21 of 28.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch

from editor.losses import descend, lines
from editor.method import WeightMethod

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from editor.progress import Progress
    from editor.requests import EditRequest

STEPS = 25
RATE = 5e-4
STOP_LOSS = 1e-2
ROWS = 32
EPSILON = 5e-4
DECAY_POWER, DECAY_LOG = -0.87028798, 0.15589562
DEPTH = 0.75


def decay_for(count: int) -> float:
    """Return FT-W's weight decay for a number of edits: exp(0.156) · n^-0.870."""
    return math.exp(DECAY_LOG) * math.pow(count, DECAY_POWER)


def constrain(weight: Tensor, original: Tensor, epsilon: float) -> None:
    """Bring a weight back to within ε of its original, entry by entry, in place."""
    weight.copy_(torch.minimum(torch.maximum(weight, original - epsilon), original + epsilon))


class _FineTuning(WeightMethod):
    """Passes over the facts in chunks, until they are learnt or the steps are used up."""

    @abstractmethod
    def _decay(self, count: int) -> float:
        """Return the weight decay."""

    def _after_step(self, weights: Mapping[str, Parameter]) -> None:
        """Do what follows a step."""

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Descend on the facts."""
        known = dict(self.lm.model.named_parameters())
        weights = {name: known[name] for name in self.written()}

        @torch.no_grad()
        def after_step() -> None:
            self._after_step(weights)

        try:
            for weight in weights.values():
                weight.requires_grad_(True)
            descend(
                self.lm,
                lines(self.lm, requests),
                torch.optim.Adam(weights.values(), lr=RATE, weight_decay=self._decay(len(requests))),
                passes=STEPS,
                at_once=ROWS,
                stop_loss=STOP_LOSS,
                seed=self.resources.seed,
                after_step=after_step,
                progress=progress,
            )
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
                weight.grad = None


class FineTuneDecay(_FineTuning):
    """FT-W: all weights of one block, with weight decay."""

    def written(self) -> list[str]:
        """Return the weights of the block at three quarters of the depth."""
        layer = min(self.lm.layers.count - 1, round(DEPTH * self.lm.layers.count))
        prefix = f"{self.lm.layers.blocks}.{layer}."
        return [name for name, _ in self.lm.model.named_parameters() if name.startswith(prefix)]

    def _decay(self, count: int) -> float:
        return decay_for(count)


class FineTuneConstrained(_FineTuning):
    """FT-L: one matrix, never further than ε from the original, however many batches it is taught."""

    def written(self) -> list[str]:
        """Return the first matrix of MEMIT's range."""
        return [self.lm.layers.weight_name(self.resources.settings.layers[0])]

    def _decay(self, count: int) -> float:  # noqa: ARG002 - none, whatever the count
        return 0.0

    def _after_step(self, weights: Mapping[str, Parameter]) -> None:
        for name, original in (self._originals or {}).items():
            constrain(weights[name], original, EPSILON)
