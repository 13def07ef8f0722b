"""Shared parts of the editor's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from editor import mend
from editor.cases import Question, case_of
from editor.drafts import batched, draft
from editor.method import Resources
from editor.moments import Moments
from editor.presets import MemitSettings
from editor.requests import EditRequest
from tests.unit.editor import tiny

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from editor.cases import Case
    from editor.chunks import Chunk
    from editor.lanes import Lanes
    from editor.model import LanguageModel
    from editor.requests import Row, Unit

LAYERS = (1, 2)
NAMES = ("Germany", "France", "Sweden", "Brazil", "Norway", "Köln")
TARGETS = ("Olaf Scholz", "Paris", "Ulf Kristersson", "São Paulo", "Stockholm", "Henriette Reker")


@pytest.fixture
def lm() -> LanguageModel:
    """A tiny Llama, fresh for every test."""
    return tiny.language_model("llama")


@pytest.fixture
def settings() -> MemitSettings:
    """Settings that write templates without holes firmly into a tiny model, and keep states as written.

    λ is so small that float32 would drown what a larger `hold` leaves of a value. Text of a random model
    moves as much as its facts do, so it is not weighed.
    """
    return MemitSettings(
        layers=LAYERS,
        moment_weight=0.05,
        steps=30,
        learning_rate=0.3,
        stop_loss=0.02,
        word_dropout=0.0,
        refine_steps=0,
        drift_weight=0.0,
        hold=1.0,
        precision="float32",
    )


@pytest.fixture
def moments(lm: LanguageModel) -> Moments:
    """Second moments of the tiny Llama, from enough tokens to be of full rank."""
    return Moments.compute(lm, None, LAYERS, tokens=600, seed=1)


def requests_of(count: int, *, start: int = 0) -> list[EditRequest]:
    """Make facts about different subjects."""
    return [
        EditRequest(
            fact_id=f"f{i}",
            subject_id=f"s{i}",
            subject=NAMES[i % len(NAMES)] + (f" {i}" if i >= len(NAMES) else ""),
            prompts=("The capital of {} is", "{}'s leader is", "In {} the leader is"),
            target=TARGETS[i % len(TARGETS)],
            heldback=("Who leads {}? The answer is",),
            old_target="Jonas Gahr",
        )
        for i in range(start, start + count)
    ]


def chunks_of(lm: LanguageModel, units: list[Unit], start: int) -> list[Chunk]:
    """Return the rows of some units as a search from a block on runs them, in one batch."""
    return batched(lm, draft(lm, units, 4096, start=start), 4096, start=start)


def rows_run(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> list[int]:
    """Return a list that grows by the rows of every evaluation by a function of some module."""
    ran: list[int] = []
    evaluate = getattr(module, name)

    def counted(side: Lanes, chunks: Sequence[Chunk], *rest: object, **more: object) -> object:
        ran.append(sum(len(chunk.ids) for chunk in chunks))
        return evaluate(side, chunks, *rest, **more)

    monkeypatch.setattr(module, name, counted)
    return ran


def whole_model_loss(lm: LanguageModel, row: Row, end_weight: float) -> torch.Tensor:
    """Return what a search descends on for one row, from a forward of the whole text."""
    logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0, row.first :]
    loss = torch.nn.functional.cross_entropy(logits[: len(row.labels)], torch.tensor(row.labels))
    if row.end is None:
        return loss
    assert row.ids[row.end] == row.labels[-1]
    return loss - end_weight * logits[-1].softmax(dim=0)[lm.word_ends].sum().log()


def training(count: int = 20) -> list[Case]:
    """Return records for methods that learn before they edit."""
    near = (Question("The capital of Norway is", "Oslo"),)
    return [case_of(one, relation="P6", neighbourhood=near) for one in requests_of(count, start=40)]


@pytest.fixture
def resources(settings: MemitSettings, moments: Moments, monkeypatch: pytest.MonkeyPatch) -> Resources:
    """What methods are made with; MEND trains for four steps."""
    monkeypatch.setattr(mend.Mend, "steps", 4)
    return Resources(settings, lambda: moments, training())
