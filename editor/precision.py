"""In which precision blocks run where rounding may be: target states, refinement, sampled text."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from editor.model import LanguageModel

_NATIVE_BFLOAT16 = (8, 0)
"""The compute capability of the first NVIDIA processors that multiply bfloat16 (Ampere)."""

Precision = Literal["auto", "float32", "bfloat16"]


def dtype_of(lm: LanguageModel) -> torch.dtype:
    """Return the precision in which the blocks above run at the moment: that of the head."""
    return lm.model.get_output_embeddings().weight.dtype  # type: ignore[no-any-return, operator]


def resolved(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return what "auto" means on a device: bfloat16 where the processor is faster with it."""
    if precision != "auto":
        return precision
    return "bfloat16" if _fast_bfloat16(device) else "float32"


@contextmanager
def lowered(lm: LanguageModel, precision: Precision, *, start: int = 0) -> Iterator[None]:
    """Hold everything but the blocks below `start` in bfloat16, where that is asked for and pays.

    The float32 weights are put back as the same tensors on leaving, so nothing is rounded for good. Casting
    once beats autocast, which casts every weight at every step (a quarter of a step on a CPU with AMX).

    Args:
        lm: the model.
        precision: see `resolved`.
        start: first block that is held in bfloat16, with the embedding and the head.
    """
    wanted = resolved(precision, lm.device)
    kept: set[int] = set()
    for layer in range(start):
        kept.update(id(p) for p in lm.layers.block(lm.model, layer).parameters())
    casts = [p for p in lm.model.parameters() if id(p) not in kept and p.dtype == torch.float32]
    saved: list[tuple[torch.nn.Parameter, Tensor]] = []
    try:
        for parameter in casts if wanted == "bfloat16" else []:
            saved.append((parameter, parameter.data))
            parameter.data = parameter.data.to(torch.bfloat16)
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # `is_bf16_supported` counts what is emulated, and asks the current device.
        return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= _NATIVE_BFLOAT16
    # Intel's tiles, or the dot products of AMD's Zen 4; torch has no public question for them yet.
    asked = (torch.cpu._is_amx_tile_supported, torch.cpu._is_avx512_bf16_supported)  # noqa: SLF001
    return any(supported() for supported in asked)
