"""The GPU benchmark runs on a CPU with tiny shapes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_shape_runs(dtype: torch.dtype) -> None:
    """Every figure is there, in either precision."""
    figures = gpu.measure("tiny", 4, "cpu", dtype, None)
    assert figures["edits"] == 4
    assert float(str(figures["edits_per_s"])) > 0
    assert figures["share_of_peak"] is None


def test_published_shapes_are_as_published() -> None:
    """Widths and depths of the two models that are timed."""
    assert gpu.SHAPES["gpt-j-6b"].arguments["n_layer"] == 28
    assert gpu.SHAPES["llama-3-8b"].arguments["intermediate_size"] == 14336
