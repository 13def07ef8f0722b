"""Causal tracing and calibration on tiny models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from editor import calibrate, tracing
from editor.errors import RequestError
from editor.moments import Moments
from editor.presets import MemitSettings
from editor.tracing import Trace
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of

if TYPE_CHECKING:
    from pathlib import Path

    from editor.model import LanguageModel

KNOWN = [
    ("The capital of {} is", "Germany"),
    ("Who leads {}? The answer is", "Ulf Kristersson"),
    ("{}", "Paris"),
]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "opt"])
def test_putting_everything_back_brings_the_answer_back(name: str) -> None:
    """Corruption moves the answer; effects have a row a place and a column a block; hooks are gone after."""
    lm = tiny.language_model(name)
    found = tracing.trace(lm, KNOWN, window=2)
    assert found.effects.shape == (4, 4)
    assert torch.isfinite(found.effects).all()
    assert found.prompts == 3
    again = tracing.trace(lm, KNOWN, window=2)
    assert torch.equal(found.effects, again.effects)
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_one_window_equals_patching_by_hand(lm: LanguageModel) -> None:
    """The batched effect of one block at the subject's last token is that of a hand-made patch."""
    ids, span = tracing._tokens(lm, *KNOWN[0])
    outputs, clean = tracing._clean(lm, ids)
    answer = int(clean.argmax())
    noise = torch.randn(len(span), lm.layers.d, generator=torch.Generator().manual_seed(0))
    patch = tracing._windows(lm, outputs, span[-1], 1)
    batched = tracing._probability(lm, ids, answer, (span, noise), patch, rows=4)

    def put_back(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[0, span[-1]] = outputs[2][span[-1]]
        return changed

    handle = lm.layers.writer(lm.model, 2).register_forward_hook(put_back)
    alone = tracing._probability(lm, ids, answer, (span, noise), {}, rows=1)
    handle.remove()
    assert float(batched[2]) == pytest.approx(float(alone[0]), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_noise_is_three_times_what_blocks_see_of_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma scales the table's rows by the root of its width; noise of the table's size would be lost."""
    lm = tiny.language_model(name)
    drawn: list[float] = []
    corrupted = tracing._probability

    def looked(lm: LanguageModel, ids: torch.Tensor, *rest: Any, **rows: Any) -> torch.Tensor:
        _, noise = rest[1]
        drawn.append(float(noise.std()))
        return corrupted(lm, ids, *rest, **rows)

    monkeypatch.setattr(tracing, "_probability", looked)
    tracing.trace(lm, KNOWN * 8, window=2)
    seen = lm.model.get_input_embeddings()(torch.arange(390))  # type: ignore[operator]
    assert sum(drawn) / len(drawn) == pytest.approx(3 * float(seen.std()), rel=0.1)


def test_suggestion_ends_at_the_peak() -> None:
    """Five blocks up to the peak at the subject's last token, fewer where it is low."""
    effects = torch.zeros(4, 12)
    effects[1, 6] = 1.0
    assert Trace(effects, 1.0, 0.0, 1, 2).suggest() == (2, 3, 4, 5, 6)
    effects[1, 2] = 2.0
    assert Trace(effects, 1.0, 0.0, 1, 2).suggest() == (0, 1, 2)


def test_suggestion_passes_over_windows_that_reach_the_first_block() -> None:
    """To put the first block back is to put the subject back: SmolLM2's effects have a cliff there."""
    effects = torch.zeros(4, 12)
    effects[1, :3] = 0.25
    effects[1, 7] = 0.05
    assert Trace(effects, 0.3, 0.02, 1, 5).suggest() == (3, 4, 5, 6, 7)
    assert Trace(effects[:, :2], 0.3, 0.02, 1, 1).suggest() == (0,)
    even = torch.zeros(4, 28)  # of four blocks, two stand before the centre
    even[1, :3] = 0.25
    even[1, 14] = 0.05
    assert Trace(even, 0.3, 0.02, 1, 4).suggest() == (10, 11, 12, 13, 14)


def test_heat_map_is_a_picture(tmp_path: Path) -> None:
    """A PNG file is written."""
    Trace(torch.rand(4, 12), 0.5, 0.1, 3, 2).heat_map(tmp_path / "map.png", layers=(2, 3))
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_tracing_needs_prompts(lm: LanguageModel) -> None:
    """No prompts, no trace."""
    with pytest.raises(RequestError):
        tracing.trace(lm, [])


def test_calibration_leaves_the_model_and_gives_its_evidence(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings come with the trace and every trial; weights are bit-identical after."""
    before = {name: parameter.clone() for name, parameter in lm.model.named_parameters()}
    quick = MemitSettings(layers=(1, 2), moment_weight=1.0, steps=4, precision="float32")
    monkeypatch.setattr(calibrate, "preset_for", lambda _lm: quick)

    def moments_of(how: MemitSettings) -> Moments:
        return Moments.compute(lm, None, how.layers, tokens=400)

    found = calibrate.calibrate(lm, requests_of(2), KNOWN, tiny.CORPUS, moments_of=moments_of, layers=(1, 2))
    best = found.best
    assert found.settings == replace(
        quick, moment_weight=best.moment_weight, learning_rate=best.learning_rate
    )
    data = found.to_json()
    assert MemitSettings.from_json(data["settings"]) == found.settings  # type: ignore[arg-type]
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())
