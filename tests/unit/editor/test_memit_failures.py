"""Edits that cannot be done or are broken off: what is wrong is named, and no weight has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from editor import delta, memit, solve
from editor.errors import (
    EditorError,
    EmptyTargetError,
    MethodError,
    MomentsMismatchError,
    NonFiniteError,
    SingularMomentsError,
    StateMismatchError,
    SubjectConflictError,
    SubjectNotInPromptError,
    TargetTooLongError,
)
from editor.moments import Moments
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.presets import MemitSettings


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """Copy all weights."""
    return {name: parameter.clone() for name, parameter in lm.model.named_parameters()}


def same(lm: LanguageModel, before: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are bit-identical to before."""
    return all(torch.equal(parameter, before[name]) for name, parameter in lm.model.named_parameters())


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError, NonFiniteError("no")])
def test_weights_are_bit_identical_after_any_failure(
    lm: LanguageModel,
    moments: Moments,
    settings: MemitSettings,
    failure: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An interrupt between two layers leaves no trace."""
    before = weights(lm)
    real, calls = solve.low_rank_update, 0

    def fail_second(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise failure
        return real(*args, **kwargs)

    monkeypatch.setattr(solve, "low_rank_update", fail_second)
    expected = failure if isinstance(failure, type) else type(failure)
    with pytest.raises(expected):
        memit.edit(lm, requests_of(2), settings=settings, moments=moments)
    assert calls == 2
    assert same(lm, before)


def test_an_interrupt_at_any_solve_leaves_no_trace(
    moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what was written is refined, and exchanged for what is kept."""
    how = replace(settings, moment_weight=1.0, steps=3, hold=16.0, refine_steps=2, refine_stop_loss=0.0)
    live = memit.edit(tiny.language_model("llama"), requests_of(2), settings=how, moments=moments).states
    factor, solves, last = solve.factor, 0, 10_000

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal solves
        solves += 1
        if solves > last:
            raise KeyboardInterrupt
        return factor(*given, **named)

    def night(lm: LanguageModel) -> None:
        nonlocal solves
        solves = 0
        tonight = requests_of(2, start=2)
        memit.edit(lm, tonight, settings=how, moments=moments, live=live[:1], retired=live[1:])

    monkeypatch.setattr(solve, "factor", counted)
    night(tiny.language_model("llama"))
    lm = tiny.language_model("llama")
    before = weights(lm)
    for last in range(solves):  # noqa: B007 - read by the counter
        with pytest.raises(KeyboardInterrupt):
            night(lm)
        assert same(lm, before)


@pytest.mark.parametrize(
    ("spoilt", "error"),
    [
        ({"target": " "}, EmptyTargetError),
        ({"target": 40 * "word "}, TargetTooLongError),
        ({"prompts": ("There is no place in this.",)}, SubjectNotInPromptError),
    ],
)
def test_a_bad_request_among_good_ones_writes_nothing(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, spoilt: Any, error: type[EditorError]
) -> None:
    """It is named; the others wait."""
    good, bad = requests_of(2)
    before = weights(lm)
    with pytest.raises(error):
        memit.edit(lm, [good, replace(bad, **spoilt)], settings=settings, moments=moments)
    assert same(lm, before)


def _singular(moments: Moments) -> Moments:
    return Moments(moments.key, {layer: torch.zeros_like(m) for layer, m in moments.matrices.items()})


def _other_model(moments: Moments) -> Moments:
    return Moments(replace(moments.key, model="other"), moments.matrices)


def _missing_layer(moments: Moments) -> Moments:
    return Moments(moments.key, {1: moments.matrices[1]})


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_singular, SingularMomentsError),
        (_other_model, MomentsMismatchError),
        (_missing_layer, MomentsMismatchError),
    ],
)
def test_unfit_moments_are_refused(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, spoil: Any, error: type[EditorError]
) -> None:
    """Singular, stale or incomplete moments are named, and nothing is written."""
    before = weights(lm)
    with pytest.raises(error):
        memit.edit(lm, requests_of(1), settings=settings, moments=spoil(moments))
    assert same(lm, before)


def test_a_model_with_nan_is_refused(lm: LanguageModel, moments: Moments, settings: MemitSettings) -> None:
    """A loss that is not finite names its subjects."""
    lm.layers.block(lm.model, 3).mlp.up_proj.weight[0, 0] = torch.nan
    before = delta.copies(lm, LAYERS)
    with pytest.raises(NonFiniteError) as caught:
        memit.edit(lm, requests_of(2), settings=settings, moments=moments)
    assert caught.value.subjects == ["s0", "s1"]
    assert all(torch.equal(lm.layers.matrix(lm.model, layer), weight) for layer, weight in before.items())


@pytest.mark.parametrize("stage", ["targets", "refine"])
def test_weights_are_bit_identical_after_a_failure_in_bfloat16(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, stage: str
) -> None:
    """An interrupt while blocks run in bfloat16 leaves every parameter as it was, in its own precision."""
    before = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    lowered: list[bool] = []

    def interrupt(now: str, *_: int) -> None:
        lowered.append(any(weight.dtype == torch.bfloat16 for weight in lm.model.parameters()))
        if now == stage and lowered[-1]:
            raise KeyboardInterrupt

    how = replace(settings, precision="bfloat16", refine_steps=4, refine_stop_loss=0.0)
    with pytest.raises(KeyboardInterrupt):
        memit.edit(lm, requests_of(2), settings=how, moments=moments, progress=interrupt)
    assert lowered[-1]
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.named_parameters())


def test_a_subject_cannot_be_live_and_edited(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """The old state of an edited subject must be retired."""
    outcome = memit.edit(lm, requests_of(2), settings=settings, moments=moments)
    before = weights(lm)
    with pytest.raises(SubjectConflictError) as caught:
        memit.edit(lm, requests_of(1), settings=settings, moments=moments, live=outcome.states)
    assert caught.value.subject_id == "s0"
    assert same(lm, before)


def test_nothing_is_taken_out_without_history(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """What later nights left of a state's value tells nothing of its part in the weights."""
    forgetful = replace(settings, history=False)
    first = memit.edit(lm, requests_of(2), settings=forgetful, moments=moments).states
    second = memit.edit(lm, requests_of(2, start=2), settings=forgetful, moments=moments, live=first).states
    before = weights(lm)
    for live in (second, ()):
        with pytest.raises(MethodError, match="'s0' cannot be taken out without history: rebuild"):
            memit.edit(lm, [], settings=forgetful, moments=moments, live=live, retired=first)
    assert same(lm, before)


@pytest.mark.parametrize(("then", "now"), [((1,), (1, 2)), ((1, 2), (1,))])
def test_states_of_other_layers_are_refused(
    lm: LanguageModel,
    moments: Moments,
    settings: MemitSettings,
    then: tuple[int, ...],
    now: tuple[int, ...],
) -> None:
    """History made with other layers does not fit, be they fewer or more."""
    outcome = memit.edit(lm, requests_of(1), settings=replace(settings, layers=then), moments=moments)
    before, settings = weights(lm), replace(settings, layers=now)
    with pytest.raises(StateMismatchError):
        memit.edit(lm, requests_of(1, start=1), settings=settings, moments=moments, live=outcome.states)
    assert same(lm, before)


def test_a_state_cannot_stay_and_leave(lm: LanguageModel, moments: Moments, settings: MemitSettings) -> None:
    """Counted among the live ones and taken out, it would leave a change that nothing stands for."""
    kept = memit.edit(lm, requests_of(2), settings=settings, moments=moments).states
    before = weights(lm)
    for live, retired in ((kept, kept[:1]), ((), (*kept, kept[1]))):
        with pytest.raises(SubjectConflictError):
            memit.edit(lm, [], settings=settings, moments=moments, live=live, retired=retired)
    assert same(lm, before)
