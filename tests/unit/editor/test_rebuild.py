"""A rebuild from the base: what is re-used, what is found anew, and that it comes out the same."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import delta, memit
from editor import state as states
from editor.delta import Delta
from editor.digests import tensor_digest
from editor.errors import EmptyTargetError
from editor.rebuild import in_order, rebuild, unchanged
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.rebuild import Rebuilt
    from editor.state import SubjectState


@pytest.fixture
def nights(lm: LanguageModel, moments: Moments, settings: MemitSettings) -> list[SubjectState]:
    """Three nights of two facts each; the second fact of the first night leaves on the last one."""
    live: list[SubjectState] = []
    for start in (0, 2):
        night = memit.edit(lm, requests_of(2, start=start), settings=settings, moments=moments, live=live)
        live.extend(night.states)
    gone = [one for one in live if one.subject_id == "s1"]
    live = [one for one in live if one.subject_id != "s1"]
    night = memit.edit(
        lm, requests_of(2, start=4), settings=settings, moments=moments, live=live, retired=gone
    )
    return [*live, *night.states]


def asked(live: list[SubjectState]) -> list[object]:
    """The requests behind the live states."""
    wanted = {fact for state in live for fact in state.fact_ids}
    return [one for one in requests_of(6) if one.fact_id in wanted]


def bytes_of(made: Rebuilt) -> tuple[bytes, bytes]:
    """All that a checkpoint keeps."""
    return made.delta.to_bytes(), states.to_bytes(made.states)


def test_stored_states_give_the_weights_of_the_nights(
    lm: LanguageModel, nights: list[SubjectState], moments: Moments, settings: MemitSettings
) -> None:
    """Nothing is optimised, and one solve from the base equals three nights of coming and leaving."""
    fresh, base = tiny.language_model("llama"), tiny.language_model("llama")
    made = rebuild(fresh, asked(nights), nights, settings=settings, moments=moments)
    assert made.reused == ("s0", "s2", "s3", "s4", "s5")
    assert made.reports == ()
    for layer in LAYERS:
        before, theirs, ours = (one.layers.matrix(one.model, layer) for one in (base, lm, fresh))
        assert (ours - theirs).norm() < 1e-3 * (theirs - before).norm()


def test_the_delta_stands_on_the_base_to_the_bit(
    nights: list[SubjectState], moments: Moments, settings: MemitSettings
) -> None:
    """Base plus the stored delta is the rebuilt model, also where a subject was edited anew."""
    fresh, other = tiny.language_model("llama"), tiny.language_model("llama")
    made = rebuild(fresh, asked(nights), nights[1:], settings=settings, moments=moments)
    assert [report.subject_id for report in made.reports] == ["s0"]
    delta.apply(other, Delta.from_bytes(made.delta.to_bytes()))
    for layer in LAYERS:
        ours, theirs = (tensor_digest(one.layers.matrix(one.model, layer)) for one in (fresh, other))
        assert ours == theirs


def test_twice_is_the_same_to_the_bit_in_any_order_and_again_from_its_own_states(
    nights: list[SubjectState], moments: Moments, settings: MemitSettings
) -> None:
    """The same live facts give the same files; one state is lost, so that something is found anew."""
    kept, requests = nights[1:], asked(nights)
    first, second, third = (
        rebuild(tiny.language_model("llama"), order, stored, settings=settings, moments=moments)
        for order, stored in ((requests, kept), (requests, kept), (requests[::-1], kept[::-1]))
    )
    assert bytes_of(first) == bytes_of(second) == bytes_of(third)
    again = rebuild(tiny.language_model("llama"), requests, first.states, settings=settings, moments=moments)
    assert again.reports == ()
    assert bytes_of(again) == bytes_of(first)


def test_what_depends_on_something_else_now_is_found_anew(
    nights: list[SubjectState], moments: Moments, settings: MemitSettings
) -> None:
    """Another target or a lost state edits one subject anew; another setting, all of them."""
    requests = [replace(one, target="Berlin") if one.fact_id == "f2" else one for one in asked(nights)]
    kept = [one for one in nights if one.subject_id != "s4"]
    made = rebuild(tiny.language_model("llama"), requests, kept, settings=settings, moments=moments)
    assert made.reused == ("s0", "s3", "s5")
    assert {report.subject_id for report in made.reports} == {"s2", "s4"}
    other = replace(settings, kl_factor=0.5)
    made = rebuild(tiny.language_model("llama"), asked(nights), nights, settings=other, moments=moments)
    assert made.reused == ()


def test_a_larger_weight_takes_the_stored_states_and_refines_what_slips(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """λ belongs to the write: no state is found anew; what the lighter write leaves unsaid is refined."""
    stored = memit.edit(lm, requests_of(4), settings=settings, moments=moments).states
    # A night refines one older subject at most; a rebuild all that it finds.
    heavier = replace(settings, moment_weight=20 * settings.moment_weight, refine_steps=8, refine_older=1)
    for refine in (False, True):
        fresh = tiny.language_model("llama")
        made = rebuild(fresh, requests_of(4), stored, settings=heavier, moments=moments, refine=refine)
        assert made.reused == ("s0", "s1", "s2", "s3")
        assert made.reports == ()
        assert [state.depends for state in made.states] == [state.depends for state in stored]
        # A random model says no fact in full, so all are refined: the values that they carry move.
        assert made.refined == (made.reused if refine else ())
        layer = settings.layers[-1]
        same = [
            torch.equal(now.values[layer], then.values[layer])
            for now, then in zip(made.states, stored, strict=True)
        ]
        assert same == [not refine] * 4


def test_a_state_that_holds_a_fact_no_longer_asked_for_is_not_taken(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Also as stored: one state carries all facts of its subject, and would write the one that left again."""
    both = [replace(one, subject_id="s", subject="Oslo") for one in requests_of(2)]
    stored = memit.edit(lm, both, settings=settings, moments=moments).states
    base = tiny.language_model("llama")
    assert unchanged(base, both, stored, settings=settings, as_stored=True) == list(stored)
    assert unchanged(base, both[:1], stored, settings=settings, as_stored=True) == []


def test_states_of_other_blocks_are_found_anew(
    nights: list[SubjectState], moments: Moments, settings: MemitSettings
) -> None:
    """Their keys and values are those of other matrices, also where a night would take them as stored."""
    fewer = replace(settings, layers=LAYERS[:1])
    made = rebuild(
        tiny.language_model("llama"),
        asked(nights),
        nights,
        settings=fewer,
        moments=moments,
        refine=True,
        as_stored=True,
    )
    assert made.reused == ()
    assert all(tuple(state.keys) == fewer.layers for state in made.states)


def test_a_failure_leaves_the_base_as_it_was(
    nights: list[SubjectState], moments: Moments, settings: MemitSettings
) -> None:
    """A subject that cannot be edited: nothing was written."""
    fresh, base = tiny.language_model("llama"), tiny.language_model("llama")
    requests = [*asked(nights), replace(requests_of(1)[0], fact_id="x", subject_id="x", target=" ")]
    with pytest.raises(EmptyTargetError):
        rebuild(fresh, requests, nights, settings=settings, moments=moments)

    def interrupt(stage: str, _done: int, _total: int) -> None:
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild(fresh, asked(nights), nights[1:], settings=settings, moments=moments, progress=interrupt)
    for layer in LAYERS:
        assert torch.equal(*(one.layers.matrix(one.model, layer) for one in (fresh, base)))


def test_a_subjects_facts_keep_the_order_of_their_state(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Facts of one subject, stored in another order than the ledger lists them, are still re-used."""
    one, two = requests_of(2)
    two = replace(two, subject_id="s0", subject=one.subject, prompts=("{} plays for",))
    night = memit.edit(lm, [two, one], settings=settings, moments=moments)
    assert [r.fact_id for r in in_order([one, two], night.states)] == [two.fact_id, one.fact_id]
    made = rebuild(tiny.language_model("llama"), [one, two], night.states, settings=settings, moments=moments)
    assert made.reused == ("s0",)
