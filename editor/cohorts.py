"""Subjects whose search for a target state began together: how far each is, and when it is done.

The loss that `editor.targets` tells is evaluated a turn of the contexts at a time; a subject is judged by the
mean of every turn's last evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from editor.chunks import require_finite
from editor.descent import RowAdam, RowLBFGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from editor.descent import Descent
    from editor.presets import MemitSettings
    from editor.requests import Unit


class Cohort:
    """Some subjects, a row each.

    Args:
        numbers: what the caller calls them.
        units: the tokenised subjects.
        anchors: h of each, whose norm bounds and scales δ.
        settings: how to descend, and when to stop.

    Attributes:
        numbers, units: as given.
        active: who goes on.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        units: Sequence[Unit],
        anchors: Float[Tensor, "units d"],
        settings: MemitSettings,
    ) -> None:
        self.numbers, self.units, self._settings = numbers, units, settings
        lengths = anchors.norm(dim=1)
        self._descent = _descent(lengths, anchors.shape[1], settings)
        self._decay = settings.weight_decay / lengths.square()
        self._cost = settings.shift_cost / lengths
        self.active: Bool[Tensor, " units"] = torch.ones_like(lengths, dtype=torch.bool)
        # What was not asked yet is far from learnt.
        self._losses, self._beside, self._missed = torch.full(
            (3, settings.turns, len(units)), torch.inf, device=anchors.device
        )
        self._said = torch.zeros_like(lengths, dtype=torch.long)

    @property
    def going(self) -> int:
        """How many go on."""
        return int(self.active.sum())

    @property
    def point(self) -> Float[Tensor, "units d"]:
        """Where loss and gradient are wanted next."""
        return self._descent.point

    @property
    def shifts(self) -> Float[Tensor, "units d"]:
        """δ as found so far."""
        return self._descent.value

    @property
    def losses(self) -> Float[Tensor, " units"]:
        """Mean negative log-likelihood of the targets (nats a token)."""
        losses: Tensor = self._losses.mean(dim=0)
        return losses

    @property
    def steps(self) -> Int[Tensor, " units"]:
        """Optimiser steps taken."""
        return self._descent.steps

    def take(
        self,
        turn: int,
        nll: Float[Tensor, " units"],
        beside: Float[Tensor, " units"],
        missed: Float[Tensor, " units"],
        gradient: Float[Tensor, "units d"],
    ) -> Bool[Tensor, " units"]:
        """Take what was evaluated at `point`, and step.

        Args:
            turn: whose contexts were asked.
            nll: of the targets.
            beside: what is asked beside it.
            missed: how many of their tokens are not the likeliest.
            gradient: of the first two; it is added to.

        Returns:
            Who ended with it.

        Raises:
            NonFiniteError: a loss is not finite.
        """
        settings, active = self._settings, self.active
        earlier = self._losses[turn].clone()
        for kept, now in zip((self._losses, self._beside, self._missed), (nll, beside, missed), strict=True):
            kept[turn] = torch.where(active, now, kept[turn])
        size = self.point.norm(dim=1)
        require_finite(nll + beside + self._decay * size, active, self.units, where="targets")
        # d/dδ of ‖δ‖, zero where δ is zero.
        gradient += (self._decay + self._cost)[:, None] * torch.nn.functional.normalize(self.point, dim=1)
        total = self.losses + self._beside.mean(dim=0) + self._decay * size
        self._said += active & (self._missed.sum(dim=0) == 0)
        learnt = active & (total < settings.stop_loss)
        if settings.stop_said:
            learnt |= active & (self._said >= settings.stop_said)
        taken = self._descent.step(total + self._cost * size, gradient, active, learnt)
        self._losses[turn] = torch.where(taken, self._losses[turn], earlier)
        ended: Tensor = learnt | (active & (self.steps >= settings.steps))
        self.active = active & ~ended
        return ended


def _descent(lengths: Float[Tensor, " units"], width: int, settings: MemitSettings) -> Descent:
    limit = settings.clamp * lengths
    if settings.optimiser == "adam":
        return RowAdam(limit, width, rate=settings.learning_rate)
    return RowLBFGS(limit, width, scale=lengths)
