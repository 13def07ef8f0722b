"""Chunks side by side: in order, on weights that are shared and modules that are not, the same to the bit."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

from editor import memit, targets
from editor.attention import plain_attention
from editor.drafts import batched, draft
from editor.errors import NonFiniteError
from editor.lanes import Lanes, lanes
from editor.precision import lowered
from editor.turns import evaluated
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, chunks_of, requests_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Give torch two threads, as two cores do."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_as_many_threads_as_lanes(lm: LanguageModel) -> None:
    """Both lanes work at once, each on its own modules; afterwards torch has its threads again."""
    together = threading.Barrier(2, timeout=60)
    seen: set[tuple[int, int, int]] = set()

    def work(own: LanguageModel, number: int) -> int:
        if number < 2:
            together.wait()
        seen.add((threading.get_ident(), id(own.model), torch.get_num_threads()))
        return number**2

    found: list[int] = []
    with lanes(lm) as side:
        side.each(work, range(9), found.append)
    assert found == [number**2 for number in range(9)]
    assert len({thread for thread, _, _ in seen}) == 2
    assert {model for _, model, _ in seen}.isdisjoint({id(lm.model)})
    assert len({model for _, model, _ in seen}) == 2
    assert {threads for _, _, threads in seen} == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_a_lane_runs_the_models_own_weights(name: str, settings: MemitSettings) -> None:
    """Of every family: nothing is copied, what is written or lowered later counts, hooks stay apart."""
    lm = tiny.language_model(name)
    units = memit.units_of(lm, requests_of(2), settings, ())

    def run(own: LanguageModel, _number: int) -> torch.Tensor:
        with torch.no_grad():
            (chunk,) = chunks_of(own, units, 1)
            chunk.store(own)
            return chunk.run(own, chunk.states)

    with plain_attention(lm), lanes(lm) as side:
        weights = {one.data_ptr() for one in lm.model.parameters()}
        models: list[LanguageModel] = []
        side.each(lambda own, _: own, range(2), models.append)
        for own in models:
            assert {one.data_ptr() for one in own.model.parameters()} == weights
        first = run(lm, 0)
        lm.layers.matrix(lm.model, 1).mul_(1.5)
        hook = lm.layers.block(lm.model, 1).register_forward_hook(lambda *_: pytest.fail("a lane's own"))
        with lowered(lm, "bfloat16"):
            found: list[torch.Tensor] = []
            side.each(run, range(3), found.append)
        hook.remove()
        with lowered(lm, "bfloat16"):
            wanted = run(lm, 0)
    for one in found:
        assert torch.equal(one, wanted)
        assert one.dtype == torch.bfloat16 != first.dtype


@pytest.mark.parametrize("count", [2, 4])
def test_what_comes_out_is_the_same_to_the_bit_whatever_the_lanes(
    lm: LanguageModel, settings: MemitSettings, count: int
) -> None:
    """Losses and gradients over several chunks, in some lanes and in the caller's thread."""
    units = memit.units_of(lm, requests_of(5), settings, ())
    chunks = batched(lm, draft(lm, units, 64, start=LAYERS[0]), 16, start=LAYERS[0])
    assert len(chunks) > count
    generator = torch.Generator().manual_seed(0)
    shape = lm.layers.d, lm.layers.d_k
    changes = {layer: 0.01 * torch.randn(shape, generator=generator) for layer in LAYERS}
    torch.set_num_threads(1)
    losses, gradients = evaluated(Lanes([lm]), chunks, 5, changes, settings)
    torch.set_num_threads(count)
    with lanes(lm) as side:
        again, beside = evaluated(side, chunks, 5, changes, settings)
    assert torch.equal(losses, again)
    assert all(torch.equal(gradients[layer], beside[layer]) for layer in LAYERS)


@pytest.mark.parametrize("where", ["work", "take"])
def test_nothing_runs_any_more_once_something_failed(lm: LanguageModel, where: str) -> None:
    """In a lane or in the caller: other weights may be put back next."""
    running, slow = [0], threading.Event()

    def work(_own: LanguageModel, number: int) -> int:
        running[0] += 1
        if number:
            slow.wait(0.3)
        elif where == "work":
            raise NonFiniteError("no", where="targets")
        running[0] -= 1
        return number

    def take(_number: int) -> None:
        raise NonFiniteError("no", where="targets")

    with lanes(lm) as side:
        with pytest.raises(NonFiniteError):
            side.each(work, range(9), take)
        assert running[0] == (where == "work")


def test_what_fails_in_a_lane_fails_the_edit(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes as it is, the weights stand as they did, and torch has its threads again."""
    before = lm.layers.matrix(lm.model, LAYERS[0]).clone()

    def broken(*_args: object) -> torch.Tensor:
        raise NonFiniteError("no", where="targets")

    monkeypatch.setattr(targets, "_shifted", broken)
    with pytest.raises(NonFiniteError):
        memit.edit(lm, requests_of(2), settings=settings, moments=moments)
    assert torch.equal(lm.layers.matrix(lm.model, LAYERS[0]), before)
    assert torch.get_num_threads() == 2


def test_few_rows_are_shared_out_among_lanes(lm: LanguageModel, settings: MemitSettings) -> None:
    """A chunk a lane, alike in size; where rows fill all lanes anyway, chunks are as large as allowed."""
    units = memit.units_of(lm, requests_of(8), settings, ())
    drafts = draft(lm, units, 256, start=LAYERS[0])
    for lanes_, most, chunks in ((1, 256, 1), (2, 256, 2), (64, 256, None), (2, 32, None)):
        found = batched(lm, drafts, most, start=LAYERS[0], lanes=lanes_)
        sizes = [one.ids.numel() for one in found]
        assert sum(len(one.ids) for one in found) == len(drafts)
        if chunks is not None:
            assert len(sizes) == chunks
            assert min(sizes) > 0.6 * max(sizes)
    plain = [one.ids.shape for one in batched(lm, drafts, 32, start=LAYERS[0])]
    assert [one.ids.shape for one in found] == plain
