"""States as they are kept: at the keys of the written weights, counted more often, as exact as before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import memit, state
from editor.keys import KeyReader
from editor.rebuild import rebuild
from editor.write import reweighed, write_states
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings

HOLD = 16.0


@pytest.fixture
def settings(settings: MemitSettings) -> MemitSettings:
    """With a λ that leaves something of each value, as on a real model."""
    return replace(settings, moment_weight=5.0, hold=HOLD)


def close(lm: LanguageModel, other: LanguageModel, base: LanguageModel) -> bool:
    """Whether two models' edited matrices differ by less than a thousandth of the edit."""
    for layer in LAYERS:
        ours, theirs, first = (one.layers.matrix(one.model, layer) for one in (lm, other, base))
        if (ours - theirs).norm() > 1e-3 * (ours - first).norm():
            return False
    return True


@pytest.mark.parametrize("weight", [1.0, 4.0, HOLD])
def test_another_weight_pulls_alike(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, weight: float
) -> None:
    """Counted otherwise, at the same keys, a state leaves the weights where they are."""
    outcome = memit.edit(lm, requests_of(4), settings=settings, moments=moments)
    others = reweighed(lm, outcome.states, weight)
    assert {(one.weight, one.moment_weight) for one in others} == {(weight, 0.0)}
    base, fresh = tiny.language_model("llama"), tiny.language_model("llama")
    write_states(fresh, others, settings=settings, moments=moments)
    assert close(lm, fresh, base)


def test_states_are_kept_at_the_keys_of_the_written_weights(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Nearer to what is read from the edited model than those that were measured before refinement."""
    settings = replace(settings, steps=4, refine_steps=8)
    texts = [c for unit in memit.units_of(lm, requests_of(4), settings, ()) for c in unit.columns]
    plain = tiny.language_model("llama")
    on_the_way = memit.edit(plain, requests_of(4), settings=replace(settings, hold=1.0), moments=moments)
    kept = memit.edit(lm, requests_of(4), settings=settings, moments=moments)
    far = []
    for model, states in ((plain, on_the_way.states), (lm, kept.states)):
        reader = KeyReader(model, texts, LAYERS)
        found = {layer: reader.read(layer)[0] for layer in LAYERS}
        far.append(
            sum(
                float(
                    (torch.cat([one.keys[layer] / one.weight**0.5 for one in states]) - found[layer]).norm()
                )
                for layer in LAYERS[1:]
            )
        )
    assert far[1] < 0.5 * far[0]


def test_what_counts_more_is_moved_less(moments: Moments, settings: MemitSettings) -> None:
    """A later night changes less at the keys of an earlier one."""
    moved = []
    for hold in (1.0, HOLD):
        lm = tiny.language_model("llama")
        chosen = replace(settings, hold=hold)
        first = memit.edit(lm, requests_of(3), settings=chosen, moments=moments)
        texts = [unit.columns[0] for unit in memit.units_of(lm, requests_of(3), settings, ())]
        reader = KeyReader(lm, texts, LAYERS)
        keys = {layer: reader.read(layer)[0] for layer in LAYERS}
        before = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in LAYERS}
        memit.edit(lm, requests_of(2, start=3), settings=chosen, moments=moments, live=first.states)
        after = {layer: lm.layers.matrix(lm.model, layer) for layer in LAYERS}
        moved.append(sum(float(((after[layer] - before[layer]) @ keys[layer].T).norm()) for layer in LAYERS))
    assert moved[1] < 0.7 * moved[0]


def test_nights_are_one_solve_and_a_retraction_leaves_nothing(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """The algebra is that of what is kept: from the base the states give the weights; without, the base."""
    base, fresh = tiny.language_model("llama"), tiny.language_model("llama")
    first = memit.edit(lm, requests_of(3), settings=settings, moments=moments)
    second = memit.edit(lm, requests_of(2, start=3), settings=settings, moments=moments, live=first.states)
    kept = [*first.states, *second.states]
    write_states(fresh, kept, settings=settings, moments=moments)
    assert close(lm, fresh, base)
    moved = {
        layer: (fresh.layers.matrix(fresh.model, layer) - base.layers.matrix(base.model, layer)).norm()
        for layer in LAYERS
    }
    memit.edit(lm, [], settings=settings, moments=moments, retired=kept)
    for layer in LAYERS:
        left = lm.layers.matrix(lm.model, layer) - base.layers.matrix(base.model, layer)
        assert left.norm() < 1e-3 * moved[layer]


def test_the_weight_is_kept_with_the_state(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Written and read, it is the same state."""
    states = memit.edit(lm, requests_of(2), settings=settings, moments=moments).states
    assert [one.weight for one in state.from_bytes(state.to_bytes(states))] == [HOLD, HOLD]


def test_a_rebuild_at_a_larger_moment_weight_is_lighter(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """As far as if each had counted once all along: what counts often would not give way by itself."""
    base = tiny.language_model("llama")
    heavier = replace(settings, moment_weight=20.0, refine_steps=2, refine_stop_loss=100.0)

    def moved(one: LanguageModel) -> float:
        ours, first = (model.layers.matrix(model.model, LAYERS[0]) for model in (one, base))
        return float((ours - first).norm())

    left = []
    for hold in (1.0, HOLD):
        chosen, fresh = replace(settings, hold=hold), tiny.language_model("llama")
        states = memit.edit(fresh, requests_of(4), settings=chosen, moments=moments).states
        again, chosen = tiny.language_model("llama"), replace(heavier, hold=hold)
        made = rebuild(again, requests_of(4), states, settings=chosen, moments=moments, refine=True)
        assert made.reports == ()
        assert {one.weight for one in made.states} == {hold}
        left.append(moved(again) / moved(fresh))
    assert left[0] < 0.9
    assert left[1] == pytest.approx(left[0], abs=0.03)
