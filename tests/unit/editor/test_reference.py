"""Target states equal those of the published procedure, transcribed plainly under benchmarks/."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from benchmarks.reference_sequential import target_shift
from editor import targets
from editor.keys import KeyReader
from editor.requests import plan
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of

if TYPE_CHECKING:
    from editor.presets import MemitSettings


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj"])
def test_same_objective_same_state(name: str, settings: MemitSettings) -> None:
    """With the paper's prefixes and KL prompt z is the transcription's: cosine > 0.999."""
    lm = tiny.language_model(name)
    facts = [replace(fact, prompts=fact.prompts[:1]) for fact in requests_of(3)]
    units = plan(lm, facts, prefixes=("The city.", "You see."), kl_template="{} is a")
    settings = replace(settings, steps=8, learning_rate=0.1, clamp=0.75, weight_decay=0.5)
    _, anchors = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers).read(settings.layers[0])
    found = targets.optimise(lm, units, anchors, settings)
    for number, unit in enumerate(units):
        expected, steps, _ = target_shift(lm, unit, settings)
        assert int(found.steps[number]) == steps
        assert torch.nn.functional.cosine_similarity(found.shifts[number], expected, dim=0) > 0.999
