"""What leaves the house: weights in a smaller precision, and the change as a low-rank adapter.

The masters stay in float32. A cast at the end may round an edit away: an entry whose edited and unedited
values become the same number says nothing of the edit any more, and `rounded_away` counts these.

An adapter is LoRA (Hu et al., ICLR 2022, arXiv 2106.09685) without training: Δ = B A by the singular values
of the change, all of them that matter or the largest r. By Eckart and Young no other r lose less.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from editor.errors import NothingToExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jaxtyping import Float
    from torch import Tensor

    from editor.delta import Delta
    from editor.model import LanguageModel

EXACT = 1e-6
"""Relative error below which an adapter counts as exact: float32's own rounding of the edited weights."""

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a cast did to an edit.

    Attributes:
        changed: entries that the edit changed, in float32.
        lost: of these, the entries that are the unedited model's again after the cast.
    """

    changed: int
    lost: int

    @property
    def share(self) -> float:
        """Lost of changed, 0..1."""
        return self.lost / self.changed if self.changed else 0.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A change as a LoRA adapter.

    Attributes:
        factors: by state-dict name of the weight, B (d, r) and A (r, d_k).
        rank: r, one for all weights.
        error: largest ‖Δ - B A‖ / ‖Δ‖ of a weight.
    """

    factors: Mapping[str, tuple[Float[Tensor, "d r"], Float[Tensor, "r d_k"]]]
    rank: int
    error: float

    @property
    def exact(self) -> bool:
        """Whether nothing but float32's rounding is missing."""
        return self.error <= EXACT


def rounded_away(
    lm: LanguageModel, originals: Mapping[int, Float[Tensor, "d d_k"]], dtype: torch.dtype
) -> Rounding:
    """Count the entries of edited weights that a cast makes the unedited model's again.

    Args:
        lm: the edited model, in float32.
        originals: unedited weights by layer.
        dtype: what it would be cast to.
    """
    changed = lost = 0
    for layer, before in originals.items():
        now = lm.layers.matrix(lm.model, layer)
        moved = now != before
        changed += int(moved.sum())
        lost += int((moved & (now.to(dtype) == before.to(dtype))).sum())
    return Rounding(changed, lost)


def total(deltas: Iterable[Delta]) -> dict[str, Float[Tensor, "d d_k"]]:
    """Add up changes, in float64, by name of the weight."""
    found: dict[str, Tensor] = {}
    for delta in deltas:
        for name, change in delta.changes.items():
            dense = change.dense().double()
            found[name] = found[name] + dense if name in found else dense
    return found


def adapter(
    changes: Mapping[str, Float[Tensor, "d d_k"]], *, rank: int | None = None, dtype: torch.dtype
) -> Adapter:
    """Factor changes by their singular values.

    Args:
        changes: by name of the weight, as `total` gives them.
        rank: most of it; None takes what `EXACT` needs.
        dtype: of the factors; what it rounds counts as error.

    Returns:
        The adapter, of one rank for all weights.

    Raises:
        NothingToExportError: nothing was changed.
    """
    if not changes or not any(bool(change.any()) for change in changes.values()):
        raise NothingToExportError("The checkpoint changes nothing, so there is no adapter to write.")
    parts = {name: torch.linalg.svd(change, full_matrices=False) for name, change in changes.items()}
    needed = max(_needed(values) for _, values, _ in parts.values())
    kept = needed if rank is None else min(rank, needed)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    error = 0.0
    for name, (left, values, right) in parts.items():
        # Both factors carry the root, so that neither is out of the range of a small dtype.
        root = values[:kept].sqrt()
        B, A = (left[:, :kept] * root).to(dtype), (root[:, None] * right[:kept]).to(dtype)
        norm = changes[name].norm()
        if norm > 0:
            error = max(error, float((changes[name] - B.double() @ A.double()).norm() / norm))
        factors[name] = (B.contiguous(), A.contiguous())
    return Adapter(factors, kept, error)


def _needed(values: Float[Tensor, " n"]) -> int:
    """How many singular values leave less than half of `EXACT` behind; at least one."""
    square = values.square()
    tail = square.flip(0).cumsum(0).flip(0)
    return max(1, int((tail > (0.5 * EXACT) ** 2 * square.sum()).sum()))


def adapter_files(made: Adapter, *, base: str, transposed: bool) -> dict[str, bytes]:
    """Return the files of a folder that `peft` loads.

    Args:
        made: the adapter.
        base: name of the base model, as the folder's reader may find it.
        transposed: whether the model stores its weights (d_k, d), as GPT-2 does.
    """
    modules = sorted(name.removesuffix(".weight") for name in made.factors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": made.rank,
        "lora_alpha": made.rank,  # peft scales by alpha / r
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": modules,
        "inference_mode": True,
    }
    tensors = {}
    for name, (B, A) in made.factors.items():
        module = name.removesuffix(".weight")
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = B.cpu()
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = A.cpu()
    return {
        "adapter_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }
