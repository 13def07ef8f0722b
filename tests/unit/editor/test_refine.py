"""Refinement of written values: its gradient, what it reaches, what it leaves alone, and who takes part."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import memit, refine
from editor import turns as turns_module
from editor.chunks import Chunk
from editor.drift import Drift
from editor.errors import NonFiniteError
from editor.lanes import Lanes
from editor.turns import Turns, evaluated
from editor.write import History, Writer, write_states
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, chunks_of, requests_of, rows_run, whole_model_loss

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.state import SubjectState

WEAK = 4
"""Steps after which a target state is far from its target."""


def losses_of(lm: LanguageModel, settings: MemitSettings, count: int) -> torch.Tensor:
    """Return what refinement descends on, a subject each, for the weights as they are."""
    units = memit.units_of(lm, requests_of(count), settings, ())
    nothing = {layer: torch.zeros(lm.layers.d, lm.layers.d_k) for layer in settings.layers}
    chunks = chunks_of(lm, units, settings.layers[0])
    return evaluated(Lanes([lm]), chunks, count, nothing, settings)[0]


def values_of(states: tuple[SubjectState, ...]) -> list[torch.Tensor]:
    """Return all values, a state each."""
    return [torch.cat([state.values[layer] for layer in LAYERS]) for state in states]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma2", "gpt_neox", "falcon_alibi"])
def test_the_gradient_is_that_of_the_written_matrix(name: str, settings: MemitSettings) -> None:
    """Loss and ∂L/∂Δ are those of whole texts with Δ at every token, followed at the subject's last."""
    lm = tiny.language_model(name)
    settings = replace(settings, layers=(1,))
    units = memit.units_of(lm, requests_of(2), settings, ())
    generator = torch.Generator().manual_seed(0)
    change = (0.01 * torch.randn(lm.layers.d, lm.layers.d_k, generator=generator)).requires_grad_()
    oracle = change.new_zeros(())
    for unit in units:
        for row in unit.rows:

            def add(
                _module: object, args: tuple[torch.Tensor, ...], out: torch.Tensor, at: int = row.lookup
            ) -> torch.Tensor:
                keys = args[0].reshape(-1, lm.layers.d_k)
                added = keys @ change.detach().T
                added[at] = keys[at] @ change.T
                return out + added.reshape(out.shape)

            handle = lm.layers.writer(lm.model, 1).register_forward_hook(add)
            oracle = oracle + whole_model_loss(lm, row, settings.end_weight) / len(unit.rows)
            handle.remove()
    oracle.backward()

    chunks = chunks_of(lm, units, 1)
    losses, by_layer = evaluated(Lanes([lm]), chunks, 2, {1: change}, settings)
    torch.testing.assert_close(losses.sum(), oracle.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_layer[1], change.grad, rtol=1e-3, atol=1e-6)


def test_what_the_write_left_is_won_back(moments: Moments, settings: MemitSettings) -> None:
    """A good part of what lies between the target states put in place and the written weights."""
    chosen = replace(settings, moment_weight=1.0, learning_rate=0.025)
    left = []
    for steps in (0, 8):
        lm = tiny.language_model("llama")
        outcome = memit.edit(
            lm, requests_of(4), settings=replace(chosen, refine_steps=steps), moments=moments
        )
        in_place = torch.tensor([report.loss for report in outcome.reports])
        left.append(float((losses_of(lm, chosen, 4) - in_place).mean()))
        assert [report.refined for report in outcome.reports] == [steps] * 4
    assert 0 < left[1] < 0.8 * left[0]


def test_it_changes_values_and_nothing_else(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Keys, and what a state depends on, stay; so the stored states alone give the weights back."""
    weak = replace(settings, steps=WEAK)
    plain = memit.edit(tiny.language_model("llama"), requests_of(3), settings=weak, moments=moments)
    outcome = memit.edit(lm, requests_of(3), settings=replace(weak, refine_steps=5), moments=moments)
    for before, after in zip(plain.states, outcome.states, strict=True):
        assert all(torch.equal(before.keys[layer], after.keys[layer]) for layer in LAYERS)
        assert not any(torch.equal(before.values[layer], after.values[layer]) for layer in LAYERS)
    fresh = tiny.language_model("llama")
    write_states(fresh, outcome.states, settings=settings, moments=moments)
    for layer in LAYERS:
        assert torch.equal(lm.layers.matrix(lm.model, layer), fresh.layers.matrix(fresh.model, layer))


def test_the_span_is_how_the_matrix_follows_the_values(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Writing values V + U in place of V moves the matrix by U P; also where only some of them move."""
    outcome = memit.edit(lm, requests_of(3), settings=settings, moments=moments)
    layer = LAYERS[0]
    still, moving = outcome.states[:1], outcome.states[1:]
    span = Writer(History(lm, settings, moments, still), live=moving).span(layer)
    U = torch.randn(len(span), lm.layers.d, generator=torch.Generator().manual_seed(1))
    split = U.split([len(state.values[layer]) for state in moving])  # type: ignore[no-untyped-call]
    moved = [
        *still,
        *(
            replace(state, values={**state.values, layer: state.values[layer] + change})
            for state, change in zip(moving, split, strict=True)
        ),
    ]
    fresh = tiny.language_model("llama")
    write_states(fresh, moved, settings=settings, moments=moments)
    before, after = (model.layers.matrix(model.model, layer) for model in (lm, fresh))
    torch.testing.assert_close(after - before, U.T @ span, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("turns", [1, 3])
def test_nothing_is_done_where_all_is_said(
    lm: LanguageModel,
    moments: Moments,
    settings: MemitSettings,
    monkeypatch: pytest.MonkeyPatch,
    turns: int,
) -> None:
    """Below the stop nobody moves: one look at all contexts, no step."""
    lax = replace(settings, refine_stop_loss=100.0, turns=turns)
    plain = memit.edit(tiny.language_model("llama"), requests_of(2), settings=lax, moments=moments)
    ran = rows_run(monkeypatch, turns_module, "evaluated")
    outcome = memit.edit(lm, requests_of(2), settings=replace(lax, refine_steps=5), moments=moments)
    assert [report.refined for report in outcome.reports] == [0, 0]
    assert outcome.delta.digest == plain.delta.digest
    assert sum(ran) == 2 * len(requests_of(2)[0].prompts)


def test_a_step_asks_one_turn_and_a_look_until_it_is_clear(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look asks who rests: whose first context alone keeps the mean above the stop does not."""
    chosen = replace(settings, steps=WEAK, refine_steps=4, turns=3)
    first = float(losses_of(lm, chosen, 2).min())
    for stop, look in ((0.0, [2]), (first / 4, [2]), (0.9 * first, [2, 2, 2])):
        ran = rows_run(monkeypatch, turns_module, "evaluated")
        fresh = tiny.language_model("llama")
        chosen = replace(chosen, refine_stop_loss=stop)
        memit.edit(fresh, requests_of(2), settings=chosen, moments=moments)
        assert ran[: len(look) + 1] == [*look, 2]
        monkeypatch.undo()


def test_a_subject_of_several_facts_may_take_twice_the_steps(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step asks one context of each of its facts; another subject rests when its own steps are over."""
    steps, turns = 4, 3
    several = [replace(one, subject_id="s", subject="Oslo") for one in requests_of(2)]
    alone = requests_of(3)[2:]
    ran = rows_run(monkeypatch, turns_module, "evaluated")
    chosen = replace(settings, steps=WEAK, refine_steps=steps, refine_stop_loss=0.0, turns=turns)
    outcome = memit.edit(lm, [*several, *alone], settings=chosen, moments=moments)
    assert [report.refined for report in outcome.reports] == [2 * steps, steps]
    assert ran == [3, *[3] * steps, *[2] * steps]


def test_what_stands_before_the_subject_serves_for_some_steps(
    moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs when all are asked and, say, at every third step; as much is won back as if it always ran."""
    ran: list[int] = []
    store = Chunk.store

    def counted(chunk: Chunk, lm: LanguageModel) -> None:
        ran.append(len(chunk.ids))
        store(chunk, lm)

    monkeypatch.setattr(Chunk, "store", counted)
    chosen = replace(settings, moment_weight=1.0, learning_rate=0.025, refine_steps=6, turns=1)
    left, before = {}, 1  # in the search
    for steps, runs in ((3, 1 + 2), (1, 1 + 6)):
        monkeypatch.setattr(turns_module, "_SERVES", steps)
        lm = tiny.language_model("llama")
        ran.clear()
        memit.edit(lm, requests_of(2), settings=chosen, moments=moments)
        assert len(ran) == before + runs
        left[steps] = float(losses_of(lm, chosen, 2).mean())
    lm = tiny.language_model("llama")
    memit.edit(lm, requests_of(2), settings=replace(chosen, refine_steps=0), moments=moments)
    won = float(losses_of(lm, chosen, 2).mean()) - left[1]
    assert won > 0
    assert abs(left[3] - left[1]) < 0.1 * won


def test_who_comes_back_after_a_look_is_asked_in_every_turn(
    lm: LanguageModel, settings: MemitSettings
) -> None:
    """A look that ends early leaves no batches of those who went on while others rested."""
    units = memit.units_of(lm, requests_of(2), settings, ())
    chosen = replace(settings, refine_steps=9, turns=3, refine_stop_loss=0.0)
    drift = Drift(None, chosen)
    asked = Turns(lm, Lanes([lm]), units, chosen, drift=drift, batch_tokens=256)
    nothing = {layer: torch.zeros(lm.layers.d, lm.layers.d_k) for layer in LAYERS}
    one, both = torch.tensor([True, False]), torch.tensor([True, True])
    for step, (active, whole) in enumerate([(one, False)] * 3 + [(both, True)] + [(both, False)] * 3):
        for _ in asked.evaluate(step, nothing, active, whole=whole):
            pass
    assert torch.isfinite(asked.loss).all()
    assert (asked._losses > 0).all()


def test_a_look_asks_the_rest_only_of_those_who_may_rest(lm: LanguageModel, settings: MemitSettings) -> None:
    """No loss is negative: a subject whose first contexts alone keep the mean above the stop drops out.

    It is not told as learnt, and other text is asked once, however many turns the look takes.
    """
    units = memit.units_of(lm, requests_of(2), settings, ())
    nothing = {layer: torch.zeros(lm.layers.d, lm.layers.d_k) for layer in LAYERS}
    both, told = torch.tensor([True, True]), []

    def gradients(_texts: object, _lm: object, changes: dict[int, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        told.append(1)
        return tuple(torch.zeros_like(change) for change in changes.values())

    drift = SimpleNamespace(at=lambda _step: ["a text"], gradients=gradients)

    def look(stop: float) -> tuple[int, Turns]:
        chosen = replace(settings, refine_steps=9, turns=3, refine_stop_loss=stop)
        asked = Turns(lm, Lanes([lm]), units, chosen, drift=drift, batch_tokens=256)  # type: ignore[arg-type]
        return sum(1 for _ in asked.evaluate(0, nothing, both, whole=True)), asked

    _, first = look(0.0)
    low, high = sorted(first._losses[0].tolist())
    turns, asked = look(0.9 * low)
    assert turns > 1, "a third of its first loss is below the stop"
    turns, asked = look((low + high) / 6)
    assert turns > 1
    assert torch.isinf(asked._losses[1]).tolist() == (first._losses[0] == high).tolist()
    assert len(told) == 3, "once a look"


def test_those_who_rest_are_asked_once_more(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' steps may have moved them: a descent ends with a look at all that leaves nobody to go on."""
    chosen = replace(settings, moment_weight=1.0, learning_rate=0.025, turns=3)
    memit.edit(lm, requests_of(2), settings=chosen, moments=moments)
    stop = float(losses_of(lm, chosen, 2).max()) - 0.005
    chosen = replace(chosen, refine_steps=60, refine_stop_loss=stop)
    looks: list[bool] = []
    evaluate = Turns.evaluate

    def asked(turns: Turns, *args: object, whole: bool) -> object:
        looks.append(whole)
        return evaluate(turns, *args, whole=whole)  # type: ignore[arg-type]

    monkeypatch.setattr(Turns, "evaluate", asked)
    outcome = memit.edit(tiny.language_model("llama"), requests_of(2), settings=chosen, moments=moments)
    assert max(report.refined for report in outcome.reports) < 60, "both rest before their steps are over"
    assert looks[0]
    assert looks[-1]
    assert looks.count(True) > 1


def test_turns_win_back_what_the_write_left(moments: Moments, settings: MemitSettings) -> None:
    """A third of the contexts a step serve all of them."""
    chosen = replace(settings, moment_weight=1.0, learning_rate=0.025, turns=3)
    left = []
    for steps in (0, 12):
        lm = tiny.language_model("llama")
        memit.edit(lm, requests_of(4), settings=replace(chosen, refine_steps=steps), moments=moments)
        left.append(float(losses_of(lm, chosen, 4).mean()))
    assert left[1] < left[0] - 0.01


def test_the_batch_does_not_matter(moments: Moments, settings: MemitSettings) -> None:
    """One row a forward gives what all rows give."""
    found = []
    for batch_tokens in (8, 512):
        lm = tiny.language_model("llama")
        chosen = replace(settings, steps=WEAK, refine_steps=4, batch_tokens=batch_tokens)
        found.append(values_of(memit.edit(lm, requests_of(3), settings=chosen, moments=moments).states))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_failure_leaves_the_weights_as_they_were(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is not finite stops the edit with nothing written."""
    before = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in LAYERS}

    def broken(*_args: object) -> object:
        raise NonFiniteError("no", where="refine")

    monkeypatch.setattr(turns_module, "_run", broken)
    with pytest.raises(NonFiniteError):
        memit.edit(lm, requests_of(2), settings=replace(settings, refine_steps=3), moments=moments)
    assert all(torch.equal(lm.layers.matrix(lm.model, layer), kept) for layer, kept in before.items())


def test_memory_is_halved_until_it_fits(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory halves refinement's batch too, and what it finds is the same."""
    chosen = replace(settings, steps=WEAK, refine_steps=3, batch_tokens=256)
    roomy = memit.edit(lm, requests_of(2), settings=chosen, moments=moments)
    asked: list[int] = []
    real = refine._descend

    def tight(*args: object, batch_tokens: int, **kwargs: object) -> object:
        asked.append(batch_tokens)
        if batch_tokens > 100:
            raise torch.OutOfMemoryError
        return real(*args, batch_tokens=batch_tokens, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(refine, "_descend", tight)
    cramped = memit.edit(tiny.language_model("llama"), requests_of(2), settings=chosen, moments=moments)
    assert asked == [256, 128, 64]
    for one, other in zip(values_of(roomy.states), values_of(cramped.states), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
