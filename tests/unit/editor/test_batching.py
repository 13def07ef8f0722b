"""How many tokens run at once: what a token takes, what free memory holds, what the settings say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editor import memit, refine
from editor.attention import plain_attention
from editor.batching import bytes_of_a_token, fitting, tokens_at_once
from editor.lanes import Lanes
from tests.unit.editor import tiny
from tests.unit.editor.conftest import chunks_of, requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.presets import MemitSettings


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_token_takes_what_is_reckoned_or_less(name: str, settings: MemitSettings) -> None:
    """What a step of refinement keeps for its backward, counted by storage, is a fifth to all of it."""
    lm, settings = tiny.language_model(name), replace(settings, layers=(1,))
    chunks = chunks_of(lm, memit.units_of(lm, requests_of(4), settings, ()), 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in lm.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    nothing = {1: torch.zeros(lm.layers.d, lm.layers.d_k)}
    with plain_attention(lm), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        refine._evaluate(Lanes([lm]), chunks, 4, nothing, settings)
    taken = sum(one.untyped_storage().nbytes() for at, one in kept.items() if at not in weights)
    reckoned = bytes_of_a_token(lm) * sum(chunk.ids.numel() for chunk in chunks)
    assert reckoned / 5 < taken < reckoned


@given(free=st.integers(0, 2**42))
def test_as_many_tokens_as_fit(free: int) -> None:
    """Half of free memory holds them, and not twice as many; never fewer than 256 nor more than 16,384."""
    lm = tiny.language_model("llama")
    tokens, half = fitting(lm, free), free / 2
    assert tokens in {2**power for power in range(8, 15)}
    assert tokens == 256 or tokens * bytes_of_a_token(lm) <= half
    assert tokens == 16384 or 2 * tokens * bytes_of_a_token(lm) > half


def test_the_settings_have_the_last_word(lm: LanguageModel, settings: MemitSettings) -> None:
    """A number that is set is taken; without one a CPU takes small batches."""
    assert tokens_at_once(lm, replace(settings, batch_tokens=77)) == 77
    assert tokens_at_once(lm, replace(settings, batch_tokens=0)) == 256


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_asked_for_its_free_memory(settings: MemitSettings) -> None:
    """A tiny model's tokens all fit."""
    lm = tiny.language_model("llama")
    lm.model.to("cuda")
    assert tokens_at_once(lm, replace(settings, batch_tokens=0)) == 16384
