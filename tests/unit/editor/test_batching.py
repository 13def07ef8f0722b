"""How many tokens run at once: what a token takes, what free memory holds, what the settings say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editor import activations, memit, recall
from editor.attention import plain_attention
from editor.batching import bytes_of_a_token, fitting, groups, in_groups, tokens_at_once
from editor.errors import OutOfMemoryError
from editor.generation import sample_texts
from editor.lanes import Lanes
from editor.moments import Moments
from editor.sampling import sampled
from editor.turns import evaluated
from tests.unit.editor import tiny
from tests.unit.editor.conftest import chunks_of, requests_of

if TYPE_CHECKING:
    from collections.abc import Callable

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
        evaluated(Lanes([lm]), chunks, 4, nothing, settings)
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


LENGTHS = st.lists(st.integers(1, 40), max_size=30)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 100), room=st.integers(40, 100))
def test_items_come_in_order_in_groups_that_memory_holds(
    lengths: list[int], batch_tokens: int, room: int
) -> None:
    """As many as the batch takes, fewer where they do not fit, and each of them once."""

    def padded(group: list[int]) -> int:
        return max(group) * len(group)

    def work(group: list[int]) -> int:
        if padded(group) > room:
            raise torch.OutOfMemoryError
        return sum(group)

    found = list(in_groups(lengths, batch_tokens, int, work))
    assert [length for group, _ in found for length in group] == lengths
    assert all(done == sum(group) and padded(group) <= room for group, done in found)
    if room >= batch_tokens:
        assert [group for group, _ in found] == list(groups(lengths, batch_tokens, int))
        assert all(len(group) == 1 or padded(group) <= batch_tokens for group, _ in found)


def test_one_item_too_many_is_told_with_its_size() -> None:
    """No batch is smaller than one item; other errors are not taken for want of memory."""

    def work(_: list[int]) -> None:
        raise MemoryError

    with pytest.raises(OutOfMemoryError) as caught:
        list(in_groups([5, 3], 64, int, work))
    assert caught.value.batch_tokens == 5
    with pytest.raises(ZeroDivisionError):
        list(in_groups([5], 64, int, lambda group: group[0] // 0))


_TEXTS = ("Paris is a city in France.", "Who leads Norway?", "The capital of Germany is Berlin.", "Paris")


def _asked(lm: LanguageModel) -> list[float]:
    return [one.probability for one in recall.likelihoods(lm, [(text, "Olaf") for text in _TEXTS])]


def _counted(lm: LanguageModel) -> list[float]:
    return [float(Moments.compute(lm, [*_TEXTS] * 3, (1,)).matrices[1].sum())]


def _texts_of_its_own(lm: LanguageModel) -> list[str]:
    return sample_texts(lm, _TEXTS, length=24)


@pytest.mark.parametrize(
    "ask",
    [
        _asked,
        _counted,
        lambda lm: [recall.perplexity(lm, _TEXTS)],
        lambda lm: [float(ord(mark)) for text in recall.completions(lm, _TEXTS) for mark in text],
    ],
    ids=["likelihoods", "second moments", "perplexity", "completions"],
)
def test_what_is_asked_of_a_model_goes_on_in_smaller_batches(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, ask: Callable[[LanguageModel], list[float]]
) -> None:
    """With memory for one text and for all of them, the answers are the same."""
    roomy = ask(lm)
    failed = _with_little_memory(monkeypatch, 50)
    assert ask(lm) == pytest.approx(roomy, rel=1e-4)
    assert failed


@pytest.mark.parametrize(
    "draw",
    [_texts_of_its_own, lambda lm: [row for rows in sampled(lm, 1500, seed=3) for row in rows]],
    ids=["generation", "text for second moments"],
)
def test_what_is_drawn_in_smaller_batches_is_as_much_and_seeded(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, draw: Callable[[LanguageModel], list[list[int] | str]]
) -> None:
    """Half a batch draws other text; the same each time, and nothing of the attempt that failed."""
    roomy = draw(lm)
    failed = _with_little_memory(monkeypatch, 50)
    tight = draw(lm)
    assert len(tight) == len(roomy)
    assert failed
    assert draw(lm) == tight


def test_what_fails_in_cudas_libraries_for_want_of_memory_is_halved_too() -> None:
    """A handle that cannot be allocated says so in words alone; the run is cut where it failed."""
    seen = []

    def work(group: list[int]) -> int:
        seen.append(len(group))
        if len(group) > 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return group[0]

    assert [found for _, found in in_groups([5, 5, 5], 1024, int, work)] == [5, 5, 5]
    assert seen == [3, 1, 1, 1]


def _with_little_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """Let forwards of more tokens fail; return the list that they are counted in."""
    run, failed = activations.run, []

    def limited(lm: LanguageModel, ids: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        if ids.numel() > tokens:
            failed.append(ids.numel())
            raise torch.OutOfMemoryError
        return run(lm, ids, *given, **named)

    monkeypatch.setattr(activations, "run", limited)
    return failed
