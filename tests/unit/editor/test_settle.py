"""Older facts: who is asked, who joins the descent, at which keys and on which weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import memit, recall, refine, settle
from editor.errors import SubjectConflictError
from editor.write import write_states
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.state import SubjectState

WEAK = 4
"""Steps after which a target state is far from its target."""


def assert_holds(
    lm: LanguageModel, states: Sequence[SubjectState], settings: MemitSettings, moments: Moments
) -> None:
    """The written weights are those of the states, written on the base in one solve."""
    fresh = tiny.language_model("llama")
    write_states(fresh, states, settings=settings, moments=moments)
    for layer in LAYERS:
        torch.testing.assert_close(
            lm.layers.matrix(lm.model, layer), fresh.layers.matrix(fresh.model, layer), rtol=1e-4, atol=1e-5
        )


def test_older_facts_that_slipped_are_refined_with_tonights(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the watched subjects the worst take part, as many as allowed; the others keep their state.

    The states are what the weights hold: from the base they give the same in one solve.
    """
    first = memit.edit(lm, requests_of(3), settings=replace(settings, steps=WEAK), moments=moments)
    # A random model hardly says a name, so the probabilities stand in for its words.
    rated = [
        recall.Likelihood(p, exact=p > 0.4, tokens=1, matched=1, rank=1, ended=True) for p in (0.3, 0.9, 0.1)
    ]
    monkeypatch.setattr(recall, "rate", lambda _lm, rows: rated[: len(rows)])
    chosen = replace(settings, steps=WEAK, refine_steps=6, refine_older=1)
    second = memit.edit(
        lm,
        requests_of(1, start=3),
        settings=chosen,
        moments=moments,
        live=first.states,
        watched=requests_of(3),
    )
    assert [state.subject_id for state in second.states] == ["s3", "s2"]
    assert [report.subject_id for report in second.reports] == ["s3"]
    assert_holds(lm, [*first.states[:2], *second.states], settings, moments)


def test_who_slipped_is_who_says_another_word_or_runs_on_the_unlikeliest_fact_first(
    lm: LanguageModel, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that goes on after its end is not said; a subject of two facts is as low as the lower one."""
    facts = [
        replace(one, subject_id=f"s{i // 2}", subject=f"Oslo {i // 2}", prompts=one.prompts[i % 2 :])
        for i, one in enumerate(requests_of(6))
    ]
    units = memit.units_of(lm, facts, settings, ())
    older = [(unit, None) for unit in units]
    probabilities = iter([(0.3, True), (0.01, True), (0.9, True), (0.9, False), (0.2, True), (0.2, True)])
    rated = [
        recall.Likelihood(p, exact=number in {2, 3}, tokens=1, matched=1, rank=1, ended=ended)
        for number, (p, ended) in enumerate(probabilities)
    ]
    monkeypatch.setattr(recall, "rate", lambda _lm, _rows: rated)
    asked = replace(settings, refine_steps=1, refine_older=3)
    found = settle.slipped(lm, older, asked)  # type: ignore[arg-type]
    assert [unit.subject_id for unit, _ in found] == ["s0", "s2", "s1"]
    assert len(settle.slipped(lm, older, replace(asked, refine_older=1))) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("said", "found"), [((True, False), []), ((False, False), ["s0"])])
def test_of_several_objects_after_one_prompt_any_will_do(
    lm: LanguageModel,
    settings: MemitSettings,
    monkeypatch: pytest.MonkeyPatch,
    said: tuple[bool, bool],
    found: list[str],
) -> None:
    facts = [replace(one, subject_id="s0", subject="Oslo") for one in requests_of(2)]
    rated = [recall.Likelihood(0.4, exact=one, tokens=1, matched=1, rank=1, ended=True) for one in said]
    monkeypatch.setattr(recall, "rate", lambda _lm, _rows: rated)
    older = [(unit, None) for unit in memit.units_of(lm, facts, settings, ())]
    chosen = settle.slipped(lm, older, replace(settings, refine_steps=1))  # type: ignore[arg-type]
    assert [unit.subject_id for unit, _ in chosen] == found


def test_a_night_asks_as_many_older_subjects_as_allowed_and_other_nights_ask_the_others(
    settings: MemitSettings,
) -> None:
    """All facts of each; the same night asks the same; none is left out for good; few are all asked."""
    facts = [replace(one, subject_id=f"s{i // 2}") for i, one in enumerate(requests_of(40))]
    few = replace(settings, ask_older=5)

    def asked(night: int, how: MemitSettings = few) -> list[str]:
        part = settle.tonights_part(facts, requests_of(1, start=100 + night), (), how)
        return [fact.subject_id for fact in part]

    assert all(len(asked(night)) == 10 and len(set(asked(night))) == 5 for night in range(20))
    assert asked(0) == asked(0) != asked(1)
    again = [replace(one, target="Ada") for one in requests_of(1, start=100)]
    assert settle.tonights_part(facts, again, (), few) != settle.tonights_part(
        facts, requests_of(1, start=100), (), few
    )
    assert {subject for night in range(40) for subject in asked(night)} == {f"s{i}" for i in range(20)}
    assert settle.tonights_part(facts, (), (), replace(settings, ask_older=20)) == facts


def test_what_had_slipped_is_refined_with_tonights(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older facts are asked before anything is written; who slipped joins the descent; all is one write."""
    first = memit.edit(lm, requests_of(3), settings=replace(settings, steps=WEAK), moments=moments)
    said, lost = (
        recall.Likelihood(p, exact=p > 0.4, tokens=1, matched=1, rank=1, ended=True) for p in (0.9, 0.1)
    )
    looks = iter([[said, lost, said]])
    before = lm.layers.matrix(lm.model, LAYERS[0]).clone()
    asked: list[int] = []

    def rate(_lm: LanguageModel, rows: list[object]) -> list[recall.Likelihood]:
        asked.append(len(rows))
        assert torch.equal(lm.layers.matrix(lm.model, LAYERS[0]), before)
        return next(looks)

    monkeypatch.setattr(recall, "rate", rate)
    turns: list[list[str]] = []

    def refined(*args: object, **kwargs: object) -> refine.Refined:
        turns.append([unit.subject_id for unit in args[1]])  # type: ignore[attr-defined]
        return refine.refine(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(settle, "refine", refined)
    second = memit.edit(
        lm,
        requests_of(1, start=3),
        settings=replace(settings, steps=WEAK, refine_steps=6),
        moments=moments,
        live=first.states,
        watched=requests_of(3),
    )
    assert asked == [3]
    assert turns == [["s3", "s1"]]
    assert [state.subject_id for state in second.states] == ["s3", "s1"]
    assert_holds(lm, [first.states[0], first.states[2], *second.states], settings, moments)


def test_what_had_slipped_is_refined_on_weights_without_what_is_retracted(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a night that only retracts: the descent sees the weights that it is for."""
    first = memit.edit(lm, requests_of(3), settings=replace(settings, steps=WEAK), moments=moments)
    lost = recall.Likelihood(0.1, exact=False, tokens=1, matched=0, rank=2, ended=True)
    monkeypatch.setattr(recall, "rate", lambda _lm, rows: [lost] * len(rows))
    seen = [lm.layers.matrix(lm.model, LAYERS[0]).clone()]

    def refined(own: LanguageModel, *args: object, **kwargs: object) -> refine.Refined:
        seen.append(own.layers.matrix(own.model, LAYERS[0]).clone())
        return refine.refine(own, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(settle, "refine", refined)
    memit.edit(
        lm,
        [],
        settings=replace(settings, refine_steps=2),
        moments=moments,
        live=first.states[:2],
        retired=first.states[2:],
        watched=requests_of(2),
    )
    fresh = tiny.language_model("llama")
    write_states(fresh, first.states[:2], settings=settings, moments=moments)
    wanted = fresh.layers.matrix(fresh.model, LAYERS[0])
    with_it, without = ((one - wanted).norm() for one in seen)
    assert without < 1e-3 * with_it


@pytest.mark.parametrize("now", [{"word_dropout": 0.3}, {"keys": "mean"}, {"history": False}])
def test_what_was_written_with_other_contexts_is_refined_at_its_own_keys(
    lm: LanguageModel,
    moments: Moments,
    settings: MemitSettings,
    monkeypatch: pytest.MonkeyPatch,
    now: dict[str, object],
) -> None:
    """An older subject slips after the settings gave it another number of keys, or none in the history."""
    first = memit.edit(lm, requests_of(2), settings=replace(settings, steps=WEAK), moments=moments)
    lost = recall.Likelihood(0.1, exact=False, tokens=1, matched=0, rank=2, ended=True)
    monkeypatch.setattr(recall, "rate", lambda _lm, rows: [lost] * len(rows))
    chosen = replace(settings, steps=WEAK, refine_steps=2, hold=16.0, **now)  # type: ignore[arg-type]
    second = memit.edit(
        lm,
        requests_of(1, start=2),
        settings=chosen,
        moments=moments,
        live=first.states,
        watched=requests_of(2),
    )
    assert [state.subject_id for state in second.states] == ["s2", "s0", "s1"]
    for state in second.states[1:]:
        before = next(one for one in first.states if one.subject_id == state.subject_id)
        for layer in LAYERS:
            kept = state.keys[layer] / 4
            assert kept.shape == before.keys[layer].shape
            if "history" not in now:
                torch.testing.assert_close(kept, before.keys[layer], rtol=1e-4, atol=1e-6)


def test_watching_a_part_of_a_subject_is_refused(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """The subject is the unit: its other facts would be descended over."""
    first = memit.edit(lm, requests_of(2), settings=settings, moments=moments)
    before = lm.layers.matrix(lm.model, LAYERS[0]).clone()
    stranger = [replace(requests_of(1)[0], fact_id="another")]
    with pytest.raises(SubjectConflictError, match="'s0' is watched with"):
        memit.edit(
            lm,
            requests_of(1, start=2),
            settings=settings,
            moments=moments,
            live=first.states,
            watched=stranger,
        )
    assert torch.equal(lm.layers.matrix(lm.model, LAYERS[0]), before)
