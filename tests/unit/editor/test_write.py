"""The write: what stands all night or joins a solve later is one thing, and guards weigh what they should."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import memit
from editor.moments import Moments
from editor.write import History, Writer
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.presets import MemitSettings

SHARE = 3.0


@pytest.fixture
def guarded(lm: LanguageModel) -> Moments:
    """Second moments with guards on two subjects of the tests' facts and one other."""
    subjects = [*(fact.subject for fact in requests_of(2)), "Lagos"]
    pairs = [("The capital of {} is", subject) for subject in subjects]
    return Moments.compute(lm, None, LAYERS, tokens=600, guards=pairs, guard_share=SHARE)


def test_guards_weigh_their_share_of_lambda(
    lm: LanguageModel, settings: MemitSettings, guarded: Moments
) -> None:
    """All of them together count as their share of λ, each as much: λ (C + share/n G Gᵀ)."""
    assert guarded.guards is not None
    layer = LAYERS[0]
    L = History(lm, settings, guarded, ()).at(layer)._lower
    G = guarded.guards.keys[layer].double()
    expected = settings.moment_weight * (guarded.layer(layer, lm.device).double() + SHARE / len(G) * G.T @ G)
    torch.testing.assert_close(L @ L.T, expected, rtol=1e-9, atol=1e-12)


def test_what_a_solve_holds_may_stand_in_the_history_or_beside_it(
    lm: LanguageModel, settings: MemitSettings, guarded: Moments
) -> None:
    """Live states given to the writer hold as those that stand; so do guards that might have changed."""
    settings = replace(settings, moment_weight=10.0)
    one, other = memit.edit(
        tiny.language_model("llama"), requests_of(2), settings=settings, moments=guarded
    ).states
    layer = LAYERS[0]
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(lm.layers.d_k, 3, generator=generator, dtype=torch.float64)
    values = torch.randn(lm.layers.d, 3, generator=generator, dtype=torch.float64)
    changes, spans = [], []
    for standing, beside, changing in (
        ([one], [other], [other.label]),
        ([], [one, other], [one.label, other.label, "Lagos"]),
    ):
        history = History(tiny.language_model("llama"), settings, guarded, standing, changing=changing)
        spans.append(Writer(history, live=beside).span(layer)[-len(other.keys[layer]) :])
        changes.append(Writer(history, live=beside).write(layer, keys, values).dense())
    torch.testing.assert_close(changes[1], changes[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(spans[1], spans[0], rtol=1e-4, atol=1e-6)
