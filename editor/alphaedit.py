"""AlphaEdit: null-space constrained editing (Fang et al., ICLR 2025, arXiv 2410.02355).

MEMIT's objective with the change projected to where the keys of preserved knowledge have no part (eq. 9-12):

    Δ P,  with P from the eigenvectors U₂ of K₀K₀ᵀ whose eigenvalues are near 0:   P = U₂ U₂ᵀ
    Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L₂ I)⁻¹

| symbol | shape | meaning |
|---|---|---|
| K₀K₀ᵀ | (d_k, d_k) | C, the second moment of the unedited model's keys |
| P | (d_k, d_k) | projection to the null space of K₀K₀ᵀ |
| K, R | (d_k, n), (d, n) | tonight's keys and residuals |
| K_p | (d_k, m) | keys of all earlier batches, kept as K_p K_pᵀ |

Differs: L₂ is the paper's 1 (10 in the released Llama-3 file); the threshold is the released 2·10⁻² on
the eigenvalues of C; target states may be sought in bfloat16 after their first step
(`MemitSettings.precision`).
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from editor.delta import read_metadata, read_safetensors
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

log = logging.getLogger(__name__)

THRESHOLD = 2e-2
RIDGE = 1.0
"""L₂."""


def null_space(C: Float[Tensor, "d_k d_k"], threshold: float = THRESHOLD) -> Float[Tensor, "d_k d_k"]:
    """Return P = U₂ U₂ᵀ over the eigenvectors of C with eigenvalues below the threshold, in float64."""
    values, vectors = torch.linalg.eigh(C.double())
    U2 = vectors[:, values < threshold]
    P: Tensor = U2 @ U2.T
    return P


def projected_update(
    P: Float[Tensor, "d_k d_k"],
    K: Float[Tensor, "d_k n"],
    R: Float[Tensor, "d n"],
    past: Float[Tensor, "d_k d_k"],
) -> Float[Tensor, "d d_k"]:
    """Return Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + L₂ I)⁻¹.

    Args:
        P: projection.
        K: keys.
        R: residuals.
        past: K_p K_pᵀ.

    Returns:
        The change.
    """
    normal = (past + K @ K.T) @ P + RIDGE * torch.eye(len(P), dtype=P.dtype, device=P.device)
    # X (M) = B  is  Mᵀ Xᵀ = Bᵀ.
    change: Tensor = torch.linalg.solve(normal.T, (R @ K.T @ P).T).T
    return change


class AlphaEdit(WeightMethod):
    """AlphaEdit over MEMIT's layers, batch after batch."""

    def __init__(self, lm: LanguageModel, resources: Resources) -> None:
        super().__init__(lm, resources)
        self.settings = replace(resources.settings.as_reference(), precision=resources.settings.precision)
        self._prefixes: tuple[str, ...] | None = None
        self._projections: dict[int, Tensor] = {}
        self._past: dict[int, Tensor] = {}

    def written(self) -> list[str]:
        """Return MEMIT's matrices."""
        return [self.lm.layers.weight_name(layer) for layer in self.settings.layers]

    def teach(self, requests: Sequence[EditRequest], progress: Progress | None) -> None:
        """Write one batch, and keep its keys."""
        self.prepare()
        units = units_of(self.lm, requests, self.settings, self._prefixes or ())
        past: dict[int, Tensor] = {}

        def write(layer: int, K: Tensor, _V: Tensor, R: Tensor) -> None:
            K, R = K.double(), R.double()
            add(self.lm, layer, projected_update(self._projections[layer], K, R, self._past[layer]))
            # The released code measures them again after the write: they are the same (`editor.spread`).
            past[layer] = self._past[layer] + K @ K.T

        spread(self.lm, units, self.settings, write, progress=progress)
        self._require_finite()  # or the weights go back, and what is remembered must not stay
        self._past = past

    def forget(self) -> None:
        """Drop the keys of earlier batches."""
        self._past = {layer: torch.zeros_like(past) for layer, past in self._past.items()}

    def state(self) -> bytes:
        """Return K_p K_pᵀ by layer, and the contexts."""
        self.prepare()
        past = {str(layer): past.cpu().contiguous() for layer, past in self._past.items()}
        return save(past, metadata={"prefixes": json.dumps(self._prefixes)})

    def resume(self, weights: dict[str, Tensor], state: bytes) -> None:
        """Go on from weights, contexts and K_p K_pᵀ."""
        self.prepare()
        super().resume(weights, state)
        self._past = {int(name): past.to(self.lm.device) for name, past in read_safetensors(state).items()}
        self._prefixes = tuple(json.loads(read_metadata(state)["prefixes"]))

    def prepare(self, *, progress: Progress | None = None) -> None:  # noqa: ARG002 - the interface
        """Sample contexts; find the null space of each layer."""
        if self._prefixes is None:
            self._prefixes = sample_prefixes(
                self.lm, self.settings.prefix_count, seed=self.settings.seed, top_k=PAPER_TOP_K
            )
            moments = self.resources.moments()
            for layer in self.settings.layers:
                P = null_space(moments.layer(layer, self.lm.device))
                log.info("layer %d: the null space has %.0f of %d dimensions", layer, P.trace(), len(P))
                self._projections[layer], self._past[layer] = P, torch.zeros_like(P)
