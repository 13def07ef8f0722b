"""The editor on the real default model: write real facts, keep neighbours, take the facts out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from editor import delta, guards, memit, recall, state
from editor.delta import Delta
from editor.errors import ModelNotFoundError
from editor.model import LanguageModel, default_gguf, from_gguf, tensor_digest
from editor.moments import Moments
from editor.presets import PRESETS, preset_for
from editor.requests import EditRequest

if TYPE_CHECKING:
    from pathlib import Path

# Some minutes on a busy machine, twenty seconds of them the conversion.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TEMPLATES = (
    "The head of government of {} is",
    "In {} the head of government is",
    "The government of {} is led by",
)
FACTS = {
    "United Kingdom": ("Rishi Sunak", "Boris Johnson"),
    "Italy": ("Giorgia Meloni", "Mario Draghi"),
    "Sweden": ("Ulf Kristersson", "Magdalena Andersson"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model, converted once."""
    try:
        gguf = default_gguf()
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    return from_gguf(gguf, tmp_path_factory.mktemp("model") / "smollm2")


def requests() -> list[EditRequest]:
    """Three heads of government."""
    return [
        EditRequest(
            fact_id=f"P6:{country}",
            subject_id=country,
            subject=country,
            prompts=TEMPLATES,
            target=new,
            old_target=old,
            heldback=("Who leads the government of {}? The answer is",),
        )
        for country, (new, old) in FACTS.items()
    ]


def test_real_facts_are_written_kept_and_taken_out(folder: Path) -> None:
    """Facts are preferred after the edit; the delta rebuilds the bits; retraction brings the base back."""
    torch.manual_seed(0)
    lm = LanguageModel.load(folder, device="cpu")
    settings = preset_for(lm)
    assert settings == PRESETS["smollm2-135m"]
    pairs = guards.pairs({"country": TEMPLATES})
    moments = Moments.compute(lm, None, settings.layers, tokens=2400, guards=pairs)
    prompts = ["The capital of France is", "The sun rises in the", "Water freezes at"]
    said = recall.completions(lm, prompts, tokens=4)
    base = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in settings.layers}
    outcome = memit.edit(lm, requests(), settings=settings, moments=moments)
    results = recall.check(lm, requests())
    assert all(prompt.success for result in results for prompt in result.prompts)
    assert all(result.exact for result in results)
    assert sum(prompt.success for result in results for prompt in result.heldback) >= 2
    assert recall.neighbours(lm, prompts, said, tokens=4).unchanged >= 2 / 3
    fresh = LanguageModel.load(folder, device="cpu")
    delta.apply(fresh, Delta.from_bytes(outcome.delta.to_bytes()))
    for layer in settings.layers:
        assert tensor_digest(fresh.layers.matrix(fresh.model, layer)) == tensor_digest(
            lm.layers.matrix(lm.model, layer)
        )
    kept = state.from_bytes(state.to_bytes(outcome.states))
    memit.edit(lm, [], settings=settings, moments=moments, retired=kept)
    for layer in settings.layers:
        moved = outcome.delta.changes[lm.layers.weight_name(layer)].dense().norm()
        assert (lm.layers.matrix(lm.model, layer) - base[layer]).norm() < 0.01 * moved


def test_conversion_is_done_once(folder: Path) -> None:
    """A second conversion of the same file keeps the folder; its origin is written down."""
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert from_gguf(default_gguf(), folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert (folder / "source.json").is_file()
