"""What rows open with alike runs once, and gives what each row's own run gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from editor import activations, chunks
from editor.requests import plan
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, chunks_of, requests_of

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIXES = ("The capital of France is Paris.", "Who leads Norway? The answer is Jonas Gahr Støre.")


def _alone(texts: Sequence[tuple[tuple[int, ...], int]]) -> list[tuple[int, Sequence[object]]]:
    return [(0, [text]) for text in texts]


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_openings_run_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of every row are those without sharing, and two fifths of the tokens do not run."""
    lm = tiny.language_model(name)
    units = plan(lm, requests_of(6), prefixes=PREFIXES)
    ran: list[int] = []
    run = activations.run

    def counted(*args: object, **kwargs: object) -> torch.Tensor | None:
        ran.append(args[1].numel())  # type: ignore[attr-defined]
        return run(*args, **kwargs)  # type: ignore[arg-type]

    def states() -> tuple[torch.Tensor, int]:
        (chunk,) = chunks_of(lm, units, LAYERS[-1] + 1)
        ran.clear()
        with monkeypatch.context() as patch:
            patch.setattr(activations, "run", counted)
            chunk.store(lm)
        real = chunk.mask[:, -chunk.ids.shape[1] :].bool()
        with torch.no_grad():
            return chunk.run(lm, chunk.states)[real], sum(ran)

    shared, few = states()
    monkeypatch.setattr(chunks, "openings", _alone)
    alone, many = states()
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)
    assert few < 0.6 * many


def test_keys_and_values_are_stored_once() -> None:
    """A second call has nothing left to run."""
    lm = tiny.language_model("llama")
    (chunk,) = chunks_of(lm, plan(lm, requests_of(6), prefixes=PREFIXES), LAYERS[-1] + 1)
    chunk.store(lm)
    stored, mask = chunk.stored, chunk.mask
    chunk.store(lm)
    assert chunk.stored is stored
    assert chunk.mask is mask
