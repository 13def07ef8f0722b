"""A weight change: stored small, applied to the bit, undone from what was there.

A change is kept as two factors where that is smaller than the matrix. For the sum over the rank to come out
the same on every machine, thread count and device, the factors are rounded to a grid: each row of the left
factor and each column of the right one keeps b bits below its own power of two, with 2 b + log₂ r ≤ 53, so
that every partial sum is an exact float64 whatever its order. The rounding (2⁻²² at rank 300) is of
float32's own size.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load, save

from editor.digests import tensor_digest
from editor.errors import CorruptStateError, NonFiniteError, StateMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel

_FLOAT64_BITS = 53
_FLOAT32_BITS = 24


@dataclass(frozen=True, slots=True)
class LowRank:
    """Δ = left @ right in the orientation (d, d_k), on the exact grid.

    Attributes:
        left: (d, r) float32.
        right: (r, d_k) float32.
    """

    left: Float[Tensor, "d r"]
    right: Float[Tensor, "r d_k"]

    @classmethod
    def rounded(cls, left: Float[Tensor, "d r"], right: Float[Tensor, "r d_k"]) -> LowRank:
        """Round two factors to the grid on which their product is exact.

        Args:
            left: (d, r), any precision.
            right: (r, d_k).

        Returns:
            The factors in float32.

        Raises:
            NonFiniteError: a factor is not finite.
        """
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise NonFiniteError("The weight change is not finite: nothing was written.", where="delta")
        rank = max(1, left.shape[1])
        bits = min(
            _FLOAT32_BITS, (_FLOAT64_BITS - math.ceil(math.log2(rank))) // 2 if rank > 1 else _FLOAT32_BITS
        )
        # Rescale each rank-one term to equal norms, so that no row's scale is set by a single large term.
        norms_left, norms_right = left.double().norm(dim=0), right.double().norm(dim=1)
        balance = torch.where((norms_left > 0) & (norms_right > 0), (norms_right / norms_left).sqrt(), 1.0)
        balance = torch.exp2(torch.round(torch.log2(balance)))
        return cls(
            _to_grid(left.double() * balance, bits, 1), _to_grid((right.double().T / balance).T, bits, 0)
        )

    def dense(self) -> Float[Tensor, "d d_k"]:
        """Return Δ in float32: an exact float64 sum, rounded once."""
        return (self.left.double() @ self.right.double()).float()


@dataclass(frozen=True, slots=True)
class Dense:
    """Δ kept as a matrix, where factors would be larger.

    Attributes:
        matrix: (d, d_k) float32.
    """

    matrix: Float[Tensor, "d d_k"]

    def dense(self) -> Float[Tensor, "d d_k"]:
        """Return Δ in float32."""
        return self.matrix


@dataclass(frozen=True, slots=True)
class Delta:
    """Changes of several weights.

    Attributes:
        changes: by state-dict name of the weight.
    """

    changes: Mapping[str, LowRank | Dense]

    def to_bytes(self) -> bytes:
        """Return the change as one safetensors blob; equal changes give equal bytes."""
        tensors: dict[str, Tensor] = {}
        for name, change in sorted(self.changes.items()):
            if isinstance(change, LowRank):
                tensors[f"{name}:left"] = change.left.cpu().contiguous()
                tensors[f"{name}:right"] = change.right.cpu().contiguous()
            else:
                tensors[f"{name}:dense"] = change.matrix.cpu().contiguous()
        # One metadata key only: safetensors writes several in an order that changes from run to run.
        return save(tensors, metadata={"format": "factsync-delta-1"})

    @classmethod
    def from_bytes(cls, blob: bytes) -> Delta:
        """Read what `to_bytes` wrote.

        Raises:
            CorruptStateError: the blob holds something else.
        """
        tensors = read_safetensors(blob)
        changes: dict[str, LowRank | Dense] = {}
        try:
            for key in sorted(tensors):
                name, part = key.rsplit(":", 1)
                if part == "dense":
                    changes[name] = Dense(tensors[key])
                elif part == "left":
                    changes[name] = LowRank(tensors[key], tensors[f"{name}:right"])
        except (ValueError, KeyError) as error:
            raise CorruptStateError(f"The delta file is damaged ({error}): restore it.") from error
        if len(tensors) != sum(2 if isinstance(change, LowRank) else 1 for change in changes.values()):
            raise CorruptStateError("The delta file is damaged (it holds something else): restore it.")
        return cls(changes)

    @property
    def digest(self) -> str:
        """SHA-256 of `to_bytes`."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def factors_pay(rank: int, d: int, d_k: int) -> bool:
    """Return whether two factors are smaller than their product."""
    return rank * (d + d_k) < d * d_k


def apply(lm: LanguageModel, delta: Delta) -> None:
    """Add a change to a model's weights in float32, all of it or nothing.

    Args:
        lm: the model; its weights change.
        delta: what to add.

    Raises:
        StateMismatchError: a weight is missing or has another shape.
        NonFiniteError: a change is not finite.
    """
    names = editable(lm)
    changed: list[tuple[Tensor, Tensor]] = []
    for name, change in delta.changes.items():
        if name not in names:
            raise StateMismatchError(
                f"The model has no editable weight {name}: the delta is another model's.", name=name
            )
        changed.append((lm.layers.matrix(lm.model, names[name]), change.dense()))
    for weight, change_matrix in changed:
        if weight.shape != change_matrix.shape:
            raise StateMismatchError(
                f"A change of shape {tuple(change_matrix.shape)} does not fit a weight of shape "
                f"{tuple(weight.shape)}.",
                expected=tuple(weight.shape),
                got=tuple(change_matrix.shape),
            )
        if not torch.isfinite(change_matrix).all():
            raise NonFiniteError("A weight change is not finite: nothing was written.", where="delta")
    before = copies(lm, [names[name] for name in delta.changes])
    try:
        for weight, change_matrix in changed:
            add(weight, change_matrix)
    except BaseException:
        put_back(lm, before)
        raise


def editable(lm: LanguageModel) -> dict[str, int]:
    """Return the layer of every editable weight by its state-dict name."""
    return {lm.layers.weight_name(layer): layer for layer in range(lm.layers.count)}


def add(weight: Float[Tensor, "d d_k"], change: Float[Tensor, "d d_k"]) -> None:
    """Add in float32 and cast once, in place."""
    weight.copy_((weight.float() + change.to(weight.device)).to(weight.dtype))


def copies(lm: LanguageModel, layers: Iterable[int]) -> dict[int, Float[Tensor, "d d_k"]]:
    """Return copies of some editable weights, by layer."""
    return {layer: lm.layers.matrix(lm.model, layer).clone() for layer in layers}


def put_back(lm: LanguageModel, saved: Mapping[int, Float[Tensor, "d d_k"]]) -> None:
    """Set some weights to what `copies` kept, bit for bit."""
    for layer, weight in saved.items():
        lm.layers.matrix(lm.model, layer).copy_(weight)


def digests(lm: LanguageModel, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of editable weights, as (d, d_k), by state-dict name; unknown names are left out."""
    layers = editable(lm)
    return {
        name: tensor_digest(lm.layers.matrix(lm.model, layers[name]))
        for name in sorted(names)
        if name in layers
    }


def growth(lm: LanguageModel, originals: Mapping[int, Float[Tensor, "d d_k"]]) -> float:
    """Return how far a model's weights are from others: the largest ‖W - W₀‖ / ‖W₀‖ of a layer."""
    return max(
        float((lm.layers.matrix(lm.model, layer).float() - weight.float()).norm() / weight.float().norm())
        for layer, weight in originals.items()
    )


def read_safetensors(blob: bytes) -> dict[str, Tensor]:
    """Read a safetensors blob.

    Raises:
        CorruptStateError: not one.
    """
    try:
        return dict(load(blob))
    except Exception as error:
        raise CorruptStateError(f"Not a safetensors blob ({error}): restore the file.") from error


def read_metadata(blob: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors blob.

    Raises:
        CorruptStateError: not one.
    """
    try:
        size = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + size])
        return dict(header.get("__metadata__", {}))
    except (ValueError, AttributeError) as error:
        raise CorruptStateError("Not a safetensors blob: restore the file.") from error


def _to_grid(matrix: Float[Tensor, "rows columns"], bits: int, axis: int) -> Float[Tensor, "rows columns"]:
    """Round to `bits` binary digits below each row's (axis 1) or column's (axis 0) largest entry."""
    largest = matrix.abs().amax(dim=axis, keepdim=True) if matrix.numel() else matrix.new_ones(1)
    exponent = torch.ceil(torch.log2(torch.where(largest > 0, largest, 1.0)))
    step = torch.exp2(exponent - bits)
    return (torch.round(matrix / step) * step).float()
