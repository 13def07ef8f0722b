"""The main path on a tiny model: history, removal, order, the paper's procedure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import delta, memit, solve, state
from editor.delta import Delta, Dense, LowRank
from editor.digests import tensor_digest
from editor.model import LanguageModel
from editor.moments import Moments
from editor.presets import PRESETS
from editor.write import write_states
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from editor.presets import MemitSettings


def test_the_write_puts_the_target_states_in_place(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """After the write next to nothing of the wanted shift is missing, and the targets are likelier."""
    outcome = memit.edit(lm, requests_of(4), settings=settings, moments=moments)
    assert max(report.residual for report in outcome.reports) < 0.02
    assert [report.subject_id for report in outcome.reports] == ["s0", "s1", "s2", "s3"]
    assert all(state_.keys.keys() == set(LAYERS) for state_ in outcome.states)


def test_a_weak_write_is_warned_of_unless_refinement_has_steps_left(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """A λ too large for the keys would be silent otherwise; steps left over say that all is said."""
    heavy = replace(settings, moment_weight=2000.0)
    before = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in LAYERS}
    outcome = memit.edit(lm, requests_of(4), settings=heavy, moments=moments)
    assert min(report.residual for report in outcome.reports) > 0.5
    assert "moment weight is too large" in caplog.text
    caplog.clear()
    for layer, weight in before.items():
        lm.layers.matrix(lm.model, layer).copy_(weight)
    easy = replace(heavy, refine_steps=5, refine_stop_loss=20.0)
    outcome = memit.edit(lm, requests_of(4), settings=easy, moments=moments)
    assert max(report.refined for report in outcome.reports) < 5
    assert "moment weight" not in caplog.text


def test_known_states_are_written_without_running_the_model(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Keys and values alone give the weights that a refined edit gave, bit for bit."""
    fresh = tiny.language_model("llama")
    outcome = memit.edit(
        lm, requests_of(4), settings=replace(settings, refine_steps=3, steps=5), moments=moments
    )
    written = write_states(fresh, outcome.states, settings=settings, moments=moments)
    assert written.digest == outcome.delta.digest
    for layer in LAYERS:
        assert torch.equal(lm.layers.matrix(lm.model, layer), fresh.layers.matrix(fresh.model, layer))


@pytest.mark.parametrize(("count", "form"), [(2, LowRank), (12, Dense)])
def test_the_delta_reproduces_the_edited_weights_to_the_bit(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, count: int, form: type
) -> None:
    """Base plus the stored delta equals the edited model, digest for digest, in its smaller form."""
    fresh = tiny.language_model("llama")
    outcome = memit.edit(lm, requests_of(count), settings=settings, moments=moments)
    assert all(isinstance(change, form) for change in outcome.delta.changes.values())
    delta.apply(fresh, Delta.from_bytes(outcome.delta.to_bytes()))
    for layer in LAYERS:
        edited, rebuilt = (tensor_digest(m.layers.matrix(m.model, layer)) for m in (lm, fresh))
        assert edited == rebuilt


def test_normal_equations_hold_for_the_whole_history(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """After a night that adds, replaces and retracts: (W - W₀) A = Σ_live (v - W₀ k) kᵀ at every layer."""
    base = {layer: lm.layers.matrix(lm.model, layer).double().clone() for layer in LAYERS}
    first = memit.edit(lm, requests_of(4), settings=settings, moments=moments)
    replaced = [replace(requests_of(1)[0], target="Stockholm")]
    live = [s for s in first.states if s.subject_id not in {"s0", "s1"}]
    retired = [s for s in first.states if s.subject_id in {"s0", "s1"}]
    second = memit.edit(
        lm,
        [*replaced, *requests_of(1, start=4)],
        settings=settings,
        moments=moments,
        live=live,
        retired=retired,
    )
    for layer in LAYERS:
        W, W0 = lm.layers.matrix(lm.model, layer).double(), base[layer]
        K, V = state.stack([*live, *second.states], layer, d=lm.layers.d, d_k=lm.layers.d_k)
        A = solve.normal_matrix(moments.layer(layer), settings.moment_weight, K)
        wanted = (V - W0 @ K) @ K.T
        assert ((W - W0) @ A - wanted).norm() / wanted.norm() < 1e-4


def test_retracting_everything_gives_the_base_back(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """With all states retired the weights are the unedited ones, to float32."""
    base = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in LAYERS}
    outcome = memit.edit(lm, requests_of(3), settings=settings, moments=moments)
    moved = {layer: (lm.layers.matrix(lm.model, layer) - base[layer]).norm() for layer in LAYERS}
    empty = memit.edit(lm, [], settings=settings, moments=moments, retired=outcome.states)
    assert empty.states == ()
    assert empty.reports == ()
    for layer in LAYERS:
        assert (lm.layers.matrix(lm.model, layer) - base[layer]).norm() < 1e-3 * moved[layer]


def test_guards_step_aside_and_come_back(lm: LanguageModel, settings: MemitSettings) -> None:
    """A guarded subject that is edited and retracted leaves the weights as they were; others stay held."""
    pairs = [("The capital of {} is", name) for name in ("Germany", "Norway", "Köln", "Paris")]
    held = Moments.compute(lm, None, LAYERS, tokens=600, guards=pairs, guard_share=50.0)
    base = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in LAYERS}
    outcome = memit.edit(lm, requests_of(2), settings=settings, moments=held)
    assert max(report.residual for report in outcome.reports) < 0.1
    guards = held.guards
    assert guards is not None
    for layer in LAYERS:
        moved = (guards.keys[layer] @ (lm.layers.matrix(lm.model, layer) - base[layer]).T).norm(dim=1)
        assert moved[1:].max() < 0.1 * moved[0]
    memit.edit(lm, [], settings=settings, moments=held, retired=outcome.states)
    for layer in LAYERS:
        torch.testing.assert_close(lm.layers.matrix(lm.model, layer), base[layer], rtol=0, atol=5e-3)


def test_the_tokenizers_padding_side_does_not_matter(moments: Moments, settings: MemitSettings) -> None:
    """Rows are padded here, not by the tokenizer."""
    found = []
    for side in ("left", "right"):
        lm = tiny.language_model("llama")
        lm.tokenizer.padding_side = side
        found.append(memit.edit(lm, requests_of(3), settings=settings, moments=moments).delta.to_bytes())
    assert found[0] == found[1]


def test_order_of_requests_does_not_matter(moments: Moments, settings: MemitSettings) -> None:
    """The same facts in another order give the same weights to float32."""
    forward, backward = tiny.language_model("llama"), tiny.language_model("llama")
    memit.edit(forward, requests_of(4), settings=settings, moments=moments)
    memit.edit(backward, requests_of(4)[::-1], settings=settings, moments=moments)
    for layer in LAYERS:
        torch.testing.assert_close(
            forward.layers.matrix(forward.model, layer),
            backward.layers.matrix(backward.model, layer),
            rtol=1e-3,
            atol=1e-4,
        )


def test_the_same_call_gives_the_same_bits(moments: Moments, settings: MemitSettings) -> None:
    """Two runs from the same base give one digest."""
    digests = set()
    for _ in range(2):
        lm = tiny.language_model("llama")
        digests.add(memit.edit(lm, requests_of(3), settings=settings, moments=moments).delta.digest)
    assert len(digests) == 1


def test_states_round_trip(lm: LanguageModel, moments: Moments, settings: MemitSettings) -> None:
    """Stored states come back as they were, and equal lists give equal bytes."""
    outcome = memit.edit(lm, requests_of(2), settings=settings, moments=moments)
    blob = state.to_bytes(outcome.states)
    again = state.from_bytes(blob)
    assert state.to_bytes(again) == blob
    for a, b in zip(outcome.states, again, strict=True):
        assert (a.subject_id, a.fact_ids, a.depends) == (b.subject_id, b.fact_ids, b.depends)
        assert all(torch.equal(a.keys[layer], b.keys[layer]) for layer in LAYERS)
        assert all(torch.equal(a.values[layer], b.values[layer]) for layer in LAYERS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_results_do_not_depend_on_the_device(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """A GPU writes what a CPU writes, but for rounding."""
    memit.edit(lm, requests_of(3), settings=settings, moments=moments)
    there = tiny.language_model("llama")
    there = LanguageModel.wrap(there.model.to("cuda"), there.tokenizer, name=there.name)
    memit.edit(there, requests_of(3), settings=settings, moments=moments)
    for layer in LAYERS:
        written = there.layers.matrix(there.model, layer).cpu()
        torch.testing.assert_close(lm.layers.matrix(lm.model, layer), written, rtol=1e-2, atol=1e-3)


def test_depends_tells_what_a_state_was_made_from(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """Another target or other settings change the digest; the same ones keep it."""
    one = memit.edit(lm, requests_of(1), settings=settings, moments=moments).states[0].depends
    facts = [replace(requests_of(1)[0], target="Paris")]
    fresh = tiny.language_model("llama")
    other = memit.edit(fresh, facts, settings=settings, moments=moments).states[0].depends
    fresh = tiny.language_model("llama")
    again = memit.edit(fresh, requests_of(1), settings=settings, moments=moments).states[0].depends
    assert one == again != other


def test_a_limit_and_a_seed_leave_stored_states_as_they_are(settings: MemitSettings) -> None:
    other = replace(settings, max_target_tokens=40, seed=7)
    assert other.of_targets() == settings.of_targets()


def test_a_fact_that_is_said_before_is_not_taken_for_unwritten(
    lm: LanguageModel, moments: Moments, settings: MemitSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing was wanted of it, so nothing of that is left, whatever other writes move."""
    outcome = memit.edit(lm, requests_of(3), settings=replace(settings, stop_loss=1e9), moments=moments)
    assert [report.residual for report in outcome.reports] == [0.0] * 3
    assert "moment weight" not in caplog.text


def test_the_papers_procedure_has_a_weight_of_its_own(settings: MemitSettings) -> None:
    """λ that counts on refinement leaves too much unsaid where nothing is refined."""
    assert replace(settings, unrefined_weight=7.0).as_reference().moment_weight == 7.0
    assert settings.as_reference().moment_weight == settings.moment_weight
    paper = PRESETS["smollm2-135m"].as_reference()
    assert (paper.moment_weight, paper.word_dropout, paper.refine_steps) == (1000.0, 0.0, 0)


def test_progress_is_told(lm: LanguageModel, moments: Moments, settings: MemitSettings) -> None:
    """Both stages report, and end at their totals."""
    heard: list[tuple[str, int, int]] = []
    memit.edit(
        lm, requests_of(2), settings=settings, moments=moments, progress=lambda *event: heard.append(event)
    )
    assert heard[-1] == ("write", 2, 2)
    assert {event[0] for event in heard} == {"targets", "write"}
