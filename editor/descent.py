"""Minimise many independent functions at once, one a row: Adam as published, and L-BFGS in a trust region.

Every row of a target-state search is a smooth function of some hundred variables that is cheap to evaluate
only together with the others. So both methods take one evaluation of all rows a step and decide row by row.

`RowAdam` is Adam (Kingma and Ba, arXiv 1412.6980) as kmeng01/memit runs it.

`RowLBFGS` is the limited-memory BFGS method (Nocedal and Wright, Numerical Optimization, 2nd ed., algorithms
7.4 and 7.5). For a row, with x the accepted point, f and g the function and its gradient there:

    s_i = x_{i+1} - x_i,  y_i = g_{i+1} - g_i,  rho_i = 1 / (s_iᵀ y_i)      where s_iᵀ y_i > 0
    p = -H g                                    H of the last pairs, H_0 = (sᵀy / yᵀDy) D (eq. 7.20: D = I)
    p ← p · min(1, r / ‖p‖)                     r the row's radius
    x ← x + p if f(x + p) ≤ f(x)                else r ← 0.4 ‖p‖, and again from x

Differs from the book:
- A radius in place of a line search, since a line search asks rows for different numbers of evaluations, and
  one evaluation of all rows costs the same for a few. A step of full length lets the radius grow by half.
- D is diagonal, the inverse root of the mean squared gradient, as in Adam: with D = I the shifts held on the
  prompts they were found for, and less on other prompts and among neighbours (docs/log.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

_MEMORY = 15
_FIRST_RADIUS, _LARGEST_RADIUS = 0.1, 0.15
_GROW, _SHRINK = 1.5, 0.4
_LEAST_COSINE = 1e-8
_TINY = 1e-12


class Descent(ABC):
    """A minimiser of independent rows, which starts at zero.

    Args:
        limit: longest row; longer ones are shortened.
        width: d.

    Attributes:
        value: the rows found so far.
        point: where function and gradient are wanted next.
        steps: steps taken, per row.
    """

    def __init__(self, limit: Float[Tensor, " rows"], width: int) -> None:
        self.value: Float[Tensor, "rows d"] = limit.new_zeros(len(limit), width)
        self.point = self.value
        self._limit = limit
        self._evaluations = torch.zeros_like(limit, dtype=torch.long)

    @property
    def steps(self) -> Int[Tensor, " rows"]:
        """Steps taken: the first evaluation is none."""
        return (self._evaluations - 1).clamp(min=0)

    def step(
        self,
        loss: Float[Tensor, " rows"],
        gradient: Float[Tensor, "rows d"],
        active: Bool[Tensor, " rows"],
        finished: Bool[Tensor, " rows"],
    ) -> Bool[Tensor, " rows"]:
        """Take what was evaluated at `point`, and choose the next.

        Args:
            loss: the function, per row.
            gradient: its gradient.
            active: rows that were evaluated.
            finished: those of them that shall stay where they were evaluated.

        Returns:
            The rows whose value is now the point that was evaluated.
        """
        self._evaluations += active.long()
        taken = self._take(loss, gradient, active, finished)
        self.value = torch.where(taken[:, None], self.point, self.value)
        going = active & ~finished
        moved = _shortened(self._next(gradient), self._limit)
        self.point = torch.where(going[:, None], moved, self.value)
        return taken

    @abstractmethod
    def _take(self, loss: Tensor, gradient: Tensor, active: Tensor, finished: Tensor) -> Tensor:
        """Return which rows accept the point."""

    @abstractmethod
    def _next(self, gradient: Tensor) -> Tensor:
        """Return the next point of every row, as if all went on."""


class RowAdam(Descent):
    """Adam with a step count per row. See `Descent`.

    Args:
        rate: learning rate.
        beta2: β₂, how much of the mean of squared gradients a step keeps.
    """

    def __init__(
        self, limit: Float[Tensor, " rows"], width: int, *, rate: float, beta2: float = 0.999
    ) -> None:
        super().__init__(limit, width)
        self._rate, self._beta2 = rate, beta2
        self._first = torch.zeros_like(self.value)
        self._second = torch.zeros_like(self.value)

    def _take(self, loss: Tensor, gradient: Tensor, active: Tensor, finished: Tensor) -> Tensor:
        del loss, gradient, finished
        return active

    def _next(self, gradient: Tensor) -> Tensor:
        # In place where nobody else looks: each of these is as large as all values of a night.
        self._first.mul_(0.9).add_(gradient, alpha=0.1)
        self._second.mul_(self._beta2).addcmul_(gradient, gradient, value=1 - self._beta2)
        t = self._evaluations[:, None].clamp(min=1).float()
        root = (self._second / (1 - self._beta2**t)).sqrt_().add_(1e-8)
        step = (self._first / (1 - 0.9**t)).div_(root).mul_(-self._rate)
        return step.add_(self.value)


class RowLBFGS(Descent):
    """L-BFGS with a trust radius per row. See `Descent` and the module's text.

    Args:
        scale: length in which radii are measured, per row: they start at a tenth of it.
    """

    def __init__(self, limit: Float[Tensor, " rows"], width: int, *, scale: Float[Tensor, " rows"]) -> None:
        super().__init__(limit, width)
        self._radius, self._largest = _FIRST_RADIUS * scale, _LARGEST_RADIUS * scale
        self._loss = torch.full_like(limit, torch.inf)
        self._gradient = torch.zeros_like(self.value)
        self._square = torch.zeros_like(self.value)
        # (s, y, rho) with rho = 0 where a row's pair is not used.
        self._pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_MEMORY)

    def _take(self, loss: Tensor, gradient: Tensor, active: Tensor, finished: Tensor) -> Tensor:
        taken = active & ((loss <= self._loss) | finished)
        self._square = self._square + gradient.square()
        step = self.point - self.value
        self._remember(step, gradient - self._gradient, active & (self._evaluations > 1))
        self._resize(step.norm(dim=1), active & (self._evaluations > 1), taken)
        self._gradient = torch.where(taken[:, None], gradient, self._gradient)
        self._loss = torch.where(taken, loss, self._loss)
        return taken

    def _next(self, gradient: Tensor) -> Tensor:
        del gradient
        return self.value + self._direction()

    def _remember(self, step: Tensor, change: Tensor, active: Tensor) -> None:
        """Keep the pair of every row where the function curves upward along the step (a refused one too)."""
        product = (step * change).sum(dim=1)
        curved = active & (product > _LEAST_COSINE * step.norm(dim=1) * change.norm(dim=1))
        self._pairs.append((step, change, torch.where(curved, 1 / product.clamp(min=_TINY), 0.0)))

    def _resize(self, length: Tensor, active: Tensor, taken: Tensor) -> None:
        full = length > 0.99 * self._radius  # the radius cut the step, but for rounding
        grown = (self._radius * _GROW).minimum(self._largest)
        kept = torch.where(full, grown, self._radius)
        self._radius = torch.where(active, torch.where(taken, kept, length * _SHRINK), self._radius)

    def _direction(self) -> Float[Tensor, "rows d"]:
        """Return p, by the two loops of algorithm 7.4, no longer than the radius."""
        g, D = self._gradient, self._diagonal()
        downhill = D * g
        scale = self._radius / downhill.norm(dim=1).clamp(min=_TINY)
        steepest = scale[:, None] * downhill
        q, products = g, []
        for s, y, rho in reversed(self._pairs):
            alpha = rho * (s * q).sum(dim=1)
            products.append(alpha)
            q = q - alpha[:, None] * y
        for _, y, rho in self._pairs:  # the last pair that a row uses sets its H_0
            own = 1 / (rho * (D * y.square()).sum(dim=1)).clamp(min=_TINY)
            scale = torch.where(rho > 0, own, scale)
        p = scale[:, None] * D * q
        for (s, y, rho), alpha in zip(self._pairs, reversed(products), strict=True):
            beta = rho * (y * p).sum(dim=1)
            p = p + (alpha - beta)[:, None] * s
        p = torch.where(((p * g).sum(dim=1) > 0)[:, None], p, steepest)
        return _shortened(-p, self._radius)

    def _diagonal(self) -> Float[Tensor, "rows d"]:
        """Return D, of mean 1."""
        inverse = 1 / self._square.sqrt().clamp(min=_TINY)
        return inverse / inverse.mean(dim=1, keepdim=True)


def _shortened(rows: Float[Tensor, "rows d"], limit: Float[Tensor, " rows"]) -> Float[Tensor, "rows d"]:
    norms = rows.norm(dim=1)
    if not (norms > limit).any():
        return rows
    return rows * torch.where(norms > limit, limit / norms, torch.ones_like(norms))[:, None]
