"""The main path on a tiny model: history, removal, order, failure, the paper's procedure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from editor import delta, memit, solve, state
from editor.delta import Delta, Dense, LowRank
from editor.digests import tensor_digest
from editor.errors import (
    EditorError,
    EmptyTargetError,
    MomentsMismatchError,
    NonFiniteError,
    SingularMomentsError,
    StateMismatchError,
    SubjectConflictError,
    SubjectNotInPromptError,
    TargetTooLongError,
)
from editor.model import LanguageModel
from editor.moments import Moments
from editor.presets import PRESETS
from editor.write import write_states
from tests.unit.editor import tiny
from tests.unit.editor.conftest import LAYERS, requests_of

if TYPE_CHECKING:
    from editor.presets import MemitSettings


def weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """Copy all weights."""
    return {name: parameter.clone() for name, parameter in lm.model.named_parameters()}


def same(lm: LanguageModel, before: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are bit-identical to before."""
    return all(torch.equal(parameter, before[name]) for name, parameter in lm.model.named_parameters())


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
