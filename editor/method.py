"""The interface that every way of teaching a model facts has, and what those that write weights share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from editor.errors import NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from editor.cases import Case
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.progress import Progress
    from editor.requests import EditRequest


@dataclass(slots=True)
class Resources:
    """What methods may need besides the model.

    Attributes:
        settings: MEMIT's for this model: where facts are written, and how target states are found.
        moments: gives the second moments of keys, computed when a method first asks.
        training: records that a method may learn from; never those that are measured.
        seed: of all that is drawn.
        folder: where what was learnt is kept between runs; None keeps nothing.
    """

    settings: MemitSettings
    moments: Callable[[], Moments]
    training: Sequence[Case] = ()
    seed: int = 0
    folder: Path | None = None


class Method(Protocol):
    """One way of teaching facts to one model, batch after batch."""

    def prepare(self, *, progress: Progress | None = None) -> None:
        """Do what is done once on the unedited model: second moments, training."""

    def apply(self, requests: Sequence[EditRequest], *, progress: Progress | None = None) -> None:
        """Teach one batch; on any exception the model is as before the batch."""

    def undo(self) -> None:
        """Bring the model back to the bit as it was before the first batch, and forget all batches."""

    def shown(self, prompt: str) -> str:
        """Return what is put to the model for a prompt; the prompt itself, unless facts are put in front."""

    def changed(self) -> dict[str, Tensor]:
        """Return the weights that the method writes, as they are now, by name."""

    def state(self) -> bytes:
        """Return what later batches depend on besides the weights."""

    def resume(self, weights: dict[str, Tensor], state: bytes) -> None:
        """Go on from the weights and the state of an earlier process."""


class WeightMethod(ABC):
    """A method that writes weights. Originals are kept and put back, never subtracted.

    Args:
        lm: the model.
        resources: what the method may need.
    """

    def __init__(self, lm: LanguageModel, resources: Resources) -> None:
        self.lm, self.resources = lm, resources
        self._originals: dict[str, Tensor] | None = None

    @abstractmethod
    def written(self) -> list[str]:
        """Return the names of the weights that the method may change."""

    @abstractmethod
    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Change the weights for one batch."""

    def prepare(self, *, progress: Progress | None = None) -> None:  # noqa: B027 - as `forget`
        """Do what is done once on the unedited model; most methods need nothing."""

    def forget(self) -> None:  # noqa: B027 - most methods remember nothing
        """Drop what earlier batches left besides the weights."""

    def apply(self, requests: Sequence[EditRequest], *, progress: Progress | None = None) -> None:
        """Teach one batch; on any exception the weights are as before it.

        Raises:
            NonFiniteError: a weight would not be finite.
        """
        if not requests:
            return
        before = self.changed()
        if self._originals is None:
            self._originals = before
        try:
            self.teach(requests, progress)
            self._require_finite()
        except BaseException:
            self._put(before)
            raise

    def undo(self) -> None:
        """Put the originals back."""
        if self._originals is not None:
            self._put(self._originals)
        self._originals = None
        self.forget()

    def shown(self, prompt: str) -> str:
        """Return the prompt: the weights know the facts."""
        return prompt

    def changed(self) -> dict[str, Tensor]:
        """Return copies of the weights that the method may change."""
        weights = dict(self.lm.model.named_parameters())
        return {name: weights[name].detach().clone() for name in self.written()}

    def state(self) -> bytes:
        """Return nothing: the weights are all."""
        return b""

    def resume(self, weights: dict[str, Tensor], state: bytes) -> None:  # noqa: ARG002 - some have a state
        """Go on from the weights of an earlier process."""
        if self._originals is None:
            self._originals = self.changed()
        self._put(weights)

    def _put(self, saved: dict[str, Tensor]) -> None:
        weights = dict(self.lm.model.named_parameters())
        with torch.no_grad():
            for name, value in saved.items():
                weights[name].copy_(value)

    def _require_finite(self) -> None:
        weights = dict(self.lm.model.named_parameters())
        bad = [name for name in self.written() if not torch.isfinite(weights[name]).all()]
        if bad:
            raise NonFiniteError(
                f"The weights {', '.join(bad[:3])} would not be finite: nothing was written.", where="method"
            )
