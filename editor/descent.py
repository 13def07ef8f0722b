"""Minimise many independent functions at once, one a row, by Adam (Kingma and Ba, arXiv 1412.6980).

Every row of a search is a smooth function of some hundred variables that is cheap to evaluate only together
with the others: a step takes one evaluation of all rows, and each row counts its own steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class RowAdam:
    """Adam with a step count per row, as kmeng01/memit runs it; all rows start at zero.

    Args:
        limit: longest row; longer ones are shortened.
        width: d.
        rate: learning rate.
        beta2: β₂, how much of the mean of squared gradients a step keeps.

    Attributes:
        value: the rows where they were evaluated last.
        point: where gradients are wanted next.
        steps: steps taken, per row.
    """

    def __init__(
        self, limit: Float[Tensor, " rows"], width: int, *, rate: float, beta2: float = 0.999
    ) -> None:
        self.value: Float[Tensor, "rows d"] = limit.new_zeros(len(limit), width)
        self.point = self.value
        self._limit, self._rate, self._beta2 = limit, rate, beta2
        self._evaluations = torch.zeros_like(limit, dtype=torch.long)
        self._first = torch.zeros_like(self.value)
        self._second = torch.zeros_like(self.value)

    @property
    def steps(self) -> Int[Tensor, " rows"]:
        """Steps taken: the first evaluation is none."""
        return (self._evaluations - 1).clamp(min=0)

    def step(
        self,
        gradient: Float[Tensor, "rows d"],
        active: Bool[Tensor, " rows"],
        finished: Bool[Tensor, " rows"],
    ) -> None:
        """Take what was evaluated at `point`, and choose the next.

        Args:
            gradient: of each row's function.
            active: rows that were evaluated.
            finished: those of them that shall stay where they were evaluated.
        """
        self._evaluations += active.long()
        self.value = torch.where(active[:, None], self.point, self.value)
        moved = _shortened(self._next(gradient), self._limit)
        self.point = torch.where((active & ~finished)[:, None], moved, self.value)

    def _next(self, gradient: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """Return the next point of every row, as if all went on."""
        # In place where nobody else looks: each of these is as large as all values of a night.
        self._first.mul_(0.9).add_(gradient, alpha=0.1)
        self._second.mul_(self._beta2).addcmul_(gradient, gradient, value=1 - self._beta2)
        t = self._evaluations[:, None].clamp(min=1).float()
        root = (self._second / (1 - self._beta2**t)).sqrt_().add_(1e-8)
        step = (self._first / (1 - 0.9**t)).div_(root).mul_(-self._rate)
        return step.add_(self.value)


def _shortened(rows: Float[Tensor, "rows d"], limit: Float[Tensor, " rows"]) -> Float[Tensor, "rows d"]:
    norms = rows.norm(dim=1)
    if not (norms > limit).any():
        return rows
    return rows * torch.where(norms > limit, limit / norms, torch.ones_like(norms))[:, None]
