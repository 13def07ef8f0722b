"""The GPU benchmark runs on a CPU with tiny shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import gpu

EDITS = 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiny_shape_runs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is there and plausible, in either precision."""
    monkeypatch.setitem(gpu.PEAKS, "cpu", 1e12)
    figures: dict[str, Any] = gpu.measure("tiny", EDITS, "cpu", dtype, None)
    seconds, work = figures.pop("seconds"), figures.pop("tflop_per_edit")
    assert 0.01 < seconds < 300
    assert 1e-5 < work < 1e-3
    assert figures.pop("edits_per_s") == pytest.approx(EDITS / seconds, rel=0.1)
    rate = figures.pop("tflop_per_s")
    assert rate == pytest.approx(work * EDITS / seconds, rel=0.1)
    assert figures.pop("share_of_peak") == pytest.approx(rate, abs=1e-4)
    assert 0.05 < figures.pop("peak_memory_gib") < 64
    assert figures == {"shape": "tiny", "device": "cpu", "dtype": str(dtype), "edits": EDITS, "steps": 3}


def test_a_device_of_unknown_peak_has_no_share() -> None:
    """No figure rather than a guessed one."""
    assert gpu.measure("tiny", 1, "cpu", torch.float32, 1)["share_of_peak"] is None


def test_operations_of_a_sample_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are: an edit takes as many in a batch of half the size."""
    threads = torch.get_num_threads()

    def work(edits: int) -> Any:
        return gpu.measure("tiny", edits, "cpu", torch.float32, None)["tflop_per_edit"]

    whole = work(EDITS)
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(gpu, "COUNTED", EDITS // 2)
        assert work(EDITS) == pytest.approx(whole, rel=0.1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_published_shapes_are_as_published() -> None:
    """Widths and depths of the two models that are timed."""
    assert gpu.SHAPES["gpt-j-6b"].arguments["n_layer"] == 28
    assert gpu.SHAPES["llama-3-8b"].arguments["intermediate_size"] == 14336
