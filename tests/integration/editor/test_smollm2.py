"""The editor on the real default model: write real facts, keep neighbours, take the facts out again."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import delta, guards, memit, recall, state
from editor.delta import Delta
from editor.digests import tensor_digest
from editor.errors import ModelNotFoundError
from editor.model import LanguageModel, default_gguf, from_gguf
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


def test_a_tokenizer_of_another_model_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One with as many tokens, which stand for other words; the model's own says nothing."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    made = json.loads((other / "tokenizer.json").read_text())
    words = sorted(made["model"]["vocab"], key=made["model"]["vocab"].get)
    made["model"]["vocab"] = {word: i for i, word in enumerate([*words[:300], *reversed(words[300:])])}
    (other / "tokenizer.json").write_text(json.dumps(made))
    LanguageModel.load(other)
    assert "check that the tokenizer" in caplog.text
    caplog.clear()
    LanguageModel.load(folder)
    assert not caplog.records


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
    now = recall.completions(lm, prompts, tokens=4)
    assert sum(a.partition(" ")[0] == b.partition(" ")[0] for a, b in zip(now, said, strict=True)) >= 2
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


def test_facts_end_in_what_is_true_or_in_what_the_model_believed(folder: Path) -> None:
    """Suppressed facts say so in the old object's place; a retracted one is as likely as before its edit."""
    lm = LanguageModel.load(folder, device="cpu")
    settings = preset_for(lm)
    moments = Moments.compute(lm, None, settings.layers, tokens=2400)
    written = requests()
    base = recall.check(lm, written, greedy=False)
    states = memit.edit(lm, written, settings=settings, moments=moments).states
    before = recall.check(lm, written)
    vacant, former, taken_out = written
    ends = (
        replace(vacant, target="nobody at present", old_target=vacant.target),
        replace(former, target=f"nobody since {former.target}", old_target=former.target),
    )
    memit.edit(lm, ends, settings=settings, moments=moments, retired=states)
    for end, then, now in zip(ends, before, recall.check(lm, ends), strict=False):
        assert now.exact, now.greedy
        assert all(prompt.success for prompt in now.prompts)
        assert now.greedy.startswith(end.target)
        assert now.p_old < 0.2 * then.p_new
    now = recall.check(lm, [taken_out], greedy=False)[0]
    assert before[2].exact
    for first, left, last in zip(base[2].prompts, before[2].prompts, now.prompts, strict=True):
        assert last.p_new < 0.5 * left.p_new
        assert abs(math.log(last.p_new) - math.log(first.p_new)) < 0.5 * (
            math.log(left.p_new) - math.log(first.p_new)
        )


def test_conversion_is_done_once(folder: Path) -> None:
    """A second conversion of the same file keeps the folder; its origin is written down."""
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert from_gguf(default_gguf(), folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert (folder / "source.json").is_file()
