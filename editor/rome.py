"""ROME: rank-one model editing (Meng et al., NeurIPS 2022, arXiv 2202.05262). One fact at a time, one layer.

The edited matrix is the least-squares memory that must give v* for k* (equation 2):

    minimise ‖Ŵ K - V‖  such that  Ŵ k* = v*:      Ŵ = W + Λ (C⁻¹ k*)ᵀ,   Λ = (v* - W k*) / ((C⁻¹ k*)ᵀ k*)

| symbol | shape | meaning |
|---|---|---|
| C | (d_k, d_k) | uncentred second moment of keys, K Kᵀ up to a factor that cancels |
| k* | (d_k,) | the subject's key, mean over contexts (equation 3) |
| v* | (d,) | the value that makes the model say the object (equation 4) |

Differs:
- One k* in both places. The released code takes the mean over contexts for C⁻¹ k* and the bare prompt's
  key in Λ, which has been blamed for edits that break the model (rome, pull request 44).
- v* = W k* + δ, with δ found at the block's output by the batched optimiser: what the matrix adds passes
  through unchanged there.
- The layer is the middle of MEMIT's range; δ may be sought in bfloat16 after its first step
  (`MemitSettings.precision`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from editor import solve
from editor.memit import units_of
from editor.method import WeightMethod
from editor.sampling import PAPER_TOP_K, sample_prefixes
from editor.spread import add, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.method import Resources
    from editor.model import LanguageModel
    from editor.progress import Progress
    from editor.requests import EditRequest


def rank_one(
    lower: Float[Tensor, "d_k d_k"], key: Float[Tensor, " d_k"], residual: Float[Tensor, " d"]
) -> Float[Tensor, "d d_k"]:
    """Return Λ (C⁻¹ k*)ᵀ (equation 2).

    Args:
        lower: Cholesky factor of C.
        key: k*.
        residual: v* - W k*.

    Returns:
        The change of the matrix.
    """
    direction = torch.cholesky_solve(key[:, None], lower)[:, 0]
    return torch.outer(residual / (direction @ key), direction)


class Rome(WeightMethod):
    """ROME, fact after fact: each sees the weights that the one before left."""

    def __init__(self, lm: LanguageModel, resources: Resources) -> None:
        super().__init__(lm, resources)
        layers = resources.settings.layers
        # As in the released files for GPT-2 XL and GPT-J; the last of their 20 looks takes no step.
        self.settings = replace(
            resources.settings.as_reference(),
            layers=(layers[len(layers) // 2],),
            steps=19,
            learning_rate=0.5,
            clamp=4.0,
            weight_decay=0.5,
            precision=resources.settings.precision,
        )
        self._ready: tuple[Tensor, tuple[str, ...]] | None = None

    def written(self) -> list[str]:
        """Return the one matrix."""
        return [self.lm.layers.weight_name(self.settings.layers[0])]

    def prepare(self, *, progress: Progress | None = None) -> None:  # noqa: ARG002 - the interface
        """Sample contexts; factor C."""
        self._prepared()

    def _prepared(self) -> tuple[Tensor, tuple[str, ...]]:
        if self._ready is None:
            prefixes = sample_prefixes(
                self.lm, self.settings.prefix_count, seed=self.settings.seed, top_k=PAPER_TOP_K
            )
            C = self.resources.moments().layer(self.settings.layers[0], self.lm.device)
            self._ready = solve.factor(C.double()), prefixes
        return self._ready

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Write one fact after the other."""
        lower, prefixes = self._prepared()

        def write(layer: int, K: Tensor, _V: Tensor, R: Tensor) -> None:
            add(self.lm, layer, rank_one(lower, K[:, 0].double(), R[:, 0].double()))

        for number, request in enumerate(requests, start=1):
            spread(self.lm, units_of(self.lm, [request], self.settings, prefixes), self.settings, write)
            if progress is not None:
                progress("targets", number, len(requests))

    def state(self) -> bytes:
        """Return the contexts."""
        return json.dumps(self._prepared()[1]).encode()

    def resume(self, weights: dict[str, Tensor], state: bytes) -> None:
        """Go on from weights and contexts."""
        lower, _ = self._prepared()
        super().resume(weights, state)
        self._ready = lower, tuple(json.loads(state))
