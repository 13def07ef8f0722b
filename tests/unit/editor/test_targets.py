"""Target states: a batch gives what one at a time gives; gradients are right; everything is put back."""

from __future__ import annotations

import math
from dataclasses import Field, fields, replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editor import targets
from editor.digests import digest_of
from editor.drafts import in_turns
from editor.errors import MethodError, OutOfMemoryError
from editor.keys import KeyReader
from editor.lanes import Lanes
from editor.presets import MemitSettings
from editor.requests import Row, Unit, plan
from tests.unit.editor import tiny
from tests.unit.editor.conftest import chunks_of, requests_of, rows_run, whole_model_loss

if TYPE_CHECKING:
    from editor.model import LanguageModel


def solve_for(lm: LanguageModel, units: list[Unit], settings: MemitSettings) -> targets.Targets:
    """Optimise units from their own states."""
    reader = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers)
    _, states = reader.read(settings.layers[0])
    return targets.optimise(lm, units, states, settings)


@pytest.mark.parametrize(("kl_template", "endings"), [(None, True), ("{} is a", False)])
@pytest.mark.parametrize("batch_tokens", [24, 4096])
def test_batched_equals_one_at_a_time(
    lm: LanguageModel,
    settings: MemitSettings,
    batch_tokens: int,
    kl_template: str | None,
    endings: bool,
) -> None:
    """Whatever else is in the batch and however it is cut, a subject's state is its own: cosine > 0.999."""
    settings = replace(settings, steps=12, batch_tokens=batch_tokens)
    units = plan(lm, requests_of(5), kl_template=kl_template, endings=endings)
    together = solve_for(lm, units, settings)
    for number, unit in enumerate(units):
        alone = solve_for(lm, [unit], replace(settings, batch_tokens=4096))
        cosine = torch.nn.functional.cosine_similarity(together.shifts[number], alone.shifts[0], dim=0)
        assert cosine > 0.999
        assert abs(float(together.losses[number] - alone.losses[0])) < 1e-3


def test_who_finishes_early_leaves_the_others_as_they_are(lm: LanguageModel, settings: MemitSettings) -> None:
    """Learnt subjects leave the batch in the middle; each of the rest finds what it finds alone."""
    settings, units = replace(settings, steps=12), plan(lm, requests_of(6))
    stop = float(solve_for(lm, units, replace(settings, stop_loss=0.0)).losses.median()) + 0.02
    settings = replace(settings, stop_loss=stop)
    together = solve_for(lm, units, settings)
    assert len(set(together.steps.tolist())) > 2, "some finish at once, some in the middle, some never"
    for number, unit in enumerate(units):
        alone = solve_for(lm, [unit], settings)
        assert alone.steps[0] == together.steps[number]
        torch.testing.assert_close(together.shifts[number], alone.shifts[0], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("end_weight", "kl_factor", "kl_template"),
    [(0.0, 0.0, None), (0.5, 0.0, None), (0.0, 3.0, "{} is a"), (0.5, 3.0, None)],
)
def test_gradient_equals_a_whole_model_pass(
    lm: LanguageModel, settings: MemitSettings, end_weight: float, kl_factor: float, kl_template: str | None
) -> None:
    """The loss and gradient of the cut-down run equal those of the whole model with a hook, all positions.

    The divergence is that of what the model says now from what it said, KL(now ‖ before), as published.
    """
    units = plan(lm, requests_of(1), endings=end_weight > 0, kl_template=kl_template)
    settings = replace(settings, kl_factor=kl_factor, end_weight=end_weight, stop_said=1)
    chunks = chunks_of(lm, units, settings.layers[-1] + 1)
    for chunk in chunks:
        targets._complete(settings, lm, chunk)
    shift = torch.randn(1, lm.layers.d, generator=torch.Generator().manual_seed(0))
    nll, beside, missed, gradient = targets._evaluate(Lanes([lm]), chunks, shift, settings)

    delta = shift[0].clone().requires_grad_()
    losses, wrong, divergence = [], 0, torch.zeros(())
    for row in units[0].rows:
        plain = lm.model(input_ids=torch.tensor([row.ids])).logits[0, row.lookup].detach()

        def add(_module: object, _args: object, output: torch.Tensor, at: int = row.lookup) -> torch.Tensor:
            mask = torch.zeros(output.shape[1], 1)
            mask[at] = 1.0
            return output + mask * delta

        handle = lm.layers.block(lm.model, settings.layers[-1]).register_forward_hook(add)
        logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0]
        if row.labels:
            losses.append(whole_model_loss(lm, row, end_weight))
            said = logits[row.first : row.first + len(row.labels)].argmax(dim=1)
            wrong += int((said != torch.tensor(row.labels)).sum())
        if row.guard:
            now = torch.distributions.Categorical(logits=logits[row.lookup])
            before = torch.distributions.Categorical(logits=plain)
            divergence = divergence + torch.distributions.kl_divergence(now, before)
        handle.remove()
    assert sum(row.guard for row in units[0].rows) == 1
    oracle = torch.stack(losses).mean() + kl_factor * divergence
    oracle.backward()
    assert int(missed[0]) == wrong
    torch.testing.assert_close(nll[0] + beside[0], oracle.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[0], delta.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kl_template", [None, "{} is a"])
@pytest.mark.parametrize("turns", [3, 5])
def test_the_mean_over_turns_is_the_loss_of_all_contexts(
    lm: LanguageModel, settings: MemitSettings, kl_template: str | None, turns: int
) -> None:
    """A context counts as often as it has its turn; the divergence, read once, has 1/turns of its weight."""
    settings = replace(settings, kl_factor=3.0)
    (unit,) = plan(lm, requests_of(1), kl_template=kl_template, endings=True)
    shift = torch.randn(1, lm.layers.d, generator=torch.Generator().manual_seed(0))

    def evaluated(rows: tuple[Row, ...], how: MemitSettings) -> list[torch.Tensor]:
        chunks = chunks_of(lm, [replace(unit, rows=rows)], how.layers[-1] + 1)
        for chunk in chunks:
            targets._complete(how, lm, chunk)
        nll, beside, _, gradient = targets._evaluate(Lanes([lm]), chunks, shift, how)
        return [nll, beside, gradient]

    parts = [part.rows for [part] in in_turns([unit], turns)]
    assert [sum(row.guard for row in part) for part in parts] == [1] + [0] * (turns - 1)
    asked = [evaluated(part, settings) for part in parts]
    rows = tuple(row for part in parts for row in part)
    whole = evaluated(rows, replace(settings, kl_factor=settings.kl_factor / turns))
    for found, expected in zip(zip(*asked, strict=True), whole, strict=True):
        torch.testing.assert_close(torch.stack(found).mean(dim=0), expected, rtol=1e-4, atol=1e-6)


def test_shift_stays_within_the_clamp(lm: LanguageModel, settings: MemitSettings) -> None:
    """No state moves further than clamp · ‖h‖."""
    settings = replace(settings, clamp=0.3, stop_loss=0.0)
    units = plan(lm, requests_of(3))
    reader = KeyReader(lm, [unit.columns[0] for unit in units], settings.layers)
    _, states = reader.read(settings.layers[0])
    found = targets.optimise(lm, units, states, settings)
    assert (found.shifts.norm(dim=1) <= 0.3 * states.norm(dim=1) * (1 + 1e-5)).all()
    assert (found.steps == settings.steps).all()


@pytest.mark.parametrize("times", [1, 2])
def test_subjects_may_stop_once_all_is_likeliest(
    lm: LanguageModel, settings: MemitSettings, times: int
) -> None:
    """What the model says anyway stops at the first (second) evaluation; what it does not say goes on."""
    short = [replace(fact, prompts=fact.prompts[:1], target=fact.target[:1]) for fact in requests_of(2)]
    said, unsaid = plan(lm, short)
    row = said.rows[0]
    likeliest = lm.model(input_ids=torch.tensor([row.ids])).logits[0, row.first].argmax()
    said = replace(said, rows=(replace(row, ids=row.ids[: row.first + 1], labels=(int(likeliest),)),))
    settings = replace(settings, steps=3, stop_loss=0.0, learning_rate=1e-3)
    found = solve_for(lm, [said, unsaid], replace(settings, stop_said=times))
    assert found.steps.tolist() == [times - 1, settings.steps]
    assert solve_for(lm, [said], settings).steps.tolist() == [settings.steps]


@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=4), turns=st.integers(1, 5))
def test_turns_share_the_contexts_out(counts: list[int], turns: int) -> None:
    """Every context has its turn, none two while there are enough, and each fact is asked in every turn."""
    rows = [
        Row((fact, number), 0, 0, (1,), fact, 0)
        for fact, count in enumerate(counts)
        for number in range(count)
    ]
    unit = Unit("s", (), tuple(rows), ())
    parts = [part.rows for [part] in in_turns([unit], turns)]
    assert len(parts) == turns
    assert {row.ids for part in parts for row in part} == {row.ids for row in rows}
    for fact, count in enumerate(counts):
        asked = [[row for row in part if row.fact == fact] for part in parts]
        assert all(asked)
        if count >= turns:
            assert sum(map(len, asked)) == count
            assert max(map(len, asked)) - min(map(len, asked)) <= 1


def test_a_step_runs_one_turn_of_the_contexts(
    lm: LanguageModel, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three turns run a third of the rows a step, and nobody stops before all contexts were asked."""
    ran = rows_run(monkeypatch, targets, "_evaluate")
    units = plan(lm, requests_of(2))
    found = solve_for(lm, units, replace(settings, steps=6, turns=3, stop_loss=0.0))
    assert ran == [2] * 7
    assert torch.isfinite(found.losses).all()
    found = solve_for(lm, units, replace(settings, steps=6, turns=3, stop_loss=1e9))
    assert found.steps.tolist() == [2, 2]


def test_turns_reach_what_all_contexts_at_once_reach(lm: LanguageModel, settings: MemitSettings) -> None:
    """A third of the rows a step, and nearly as low a loss over all of them."""
    units = plan(lm, requests_of(3))
    settings = replace(settings, steps=30, stop_loss=0.0)
    at_once, in_turn = (solve_for(lm, units, replace(settings, turns=turns)) for turns in (1, 3))
    untouched = solve_for(lm, units, replace(settings, steps=0)).losses
    assert ((untouched - in_turn.losses) > 0.8 * (untouched - at_once.losses)).all()


def test_what_does_not_go_with_turns_is_refused(settings: MemitSettings) -> None:
    """Every context must have its turn, and what is 0 must not leave everything as it was."""
    with pytest.raises(MethodError, match="1 steps end before 3 turns"):
        replace(settings, steps=1, turns=3)
    for name in ("hold", "moment_weight", "learning_rate", "clamp"):
        with pytest.raises(MethodError, match=f"{name} is 0.0: set it above 0"):
            replace(settings, **{name: 0.0})


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"contexts": "random"}, "'random': choose templates or prefixes"),
        ({"keys": "all"}, "choose each or mean"),
        ({"precision": "half"}, "choose auto or float32 or bfloat16"),
        ({"turns": 0}, "set it to 1 or more"),
        ({"refine_steps": -1}, "set it to 0 or more"),
        ({"word_dropout": 1.5}, "it is a share, set it to 1 or less"),
    ],
)
def test_settings_written_by_hand_are_not_misread(
    settings: MemitSettings, written: dict[str, object], said: str
) -> None:
    with pytest.raises(MethodError, match=said):
        MemitSettings.from_json({**settings.to_json(), **written})


@pytest.mark.parametrize(
    "field",
    [field for field in fields(MemitSettings) if field.type in {"int", "float"}],
    ids=lambda f: f.name,
)
def test_every_number_is_bounded(settings: MemitSettings, field: Field[object]) -> None:
    """JSON as Python reads it knows NaN and Infinity, which compare with nothing or with everything."""
    values = [-1] if field.type == "int" else [-1.0, math.nan, math.inf, -math.inf]
    for value in values:
        with pytest.raises(MethodError, match=f"{field.name} is {value}: "):
            settings.changed({field.name: value})


def test_a_whole_number_is_the_same_setting(settings: MemitSettings) -> None:
    """States are kept by a digest of the settings: 4 for 4.0 must not have all of them found anew."""
    digests = {digest_of(settings.changed({"clamp": value}).of_targets()) for value in (4, 4.0)}
    assert len(digests) == 1


def test_finished_subjects_take_no_more_steps(lm: LanguageModel, settings: MemitSettings) -> None:
    """A subject below the stop at once is left where it is."""
    found = solve_for(lm, plan(lm, requests_of(2)), replace(settings, stop_loss=1e9))
    assert (found.steps == 0).all()
    assert (found.shifts == 0).all()


def test_several_objects_after_one_prompt_are_learnt_by_what_they_are_above_their_floor(
    lm: LanguageModel, settings: MemitSettings
) -> None:
    """Each can have half of the probability: a search for both would never end below a stop of less."""
    plain = replace(settings, end_weight=0.0, kl_factor=0.0)
    (unit,) = plan(lm, [replace(one, subject_id="s0", subject="Oslo") for one in requests_of(2)])
    loss = float(solve_for(lm, [unit], replace(plain, steps=0)).losses)
    for above, steps in ((0.9, 0), (1.1, 1)):
        asked = replace(plain, steps=1, stop_loss=loss - above * unit.floor)
        assert int(solve_for(lm, [unit], asked).steps) == steps


def test_bfloat16_gives_nearly_the_same_and_is_undone(lm: LanguageModel, settings: MemitSettings) -> None:
    """Weights come back as the same float32 tensors; the shift points the same way.

    With the first step in bfloat16 too, the angle is more than five times as wide and the bound is missed.
    """
    units = plan(lm, requests_of(3))
    settings = replace(settings, steps=2)
    before = {name: (p.data_ptr(), p.dtype) for name, p in lm.model.named_parameters()}
    exact = solve_for(lm, units, settings)
    rough = solve_for(lm, units, replace(settings, precision="bfloat16"))
    assert {name: (p.data_ptr(), p.dtype) for name, p in lm.model.named_parameters()} == before
    assert torch.nn.functional.cosine_similarity(exact.shifts, rough.shifts, dim=1).min() > 1 - 2e-5


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_memory_is_halved_until_it_fits(
    lm: LanguageModel, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """Out of memory halves the batch; with a single sequence left it is a named, retryable error."""
    asked: list[int] = []
    real = targets._optimise_wave

    def run_out() -> None:
        if device == "gpu":
            raise torch.OutOfMemoryError
        torch.empty(2**58, dtype=torch.uint8)  # torch's own words for it

    def tight(*args: object, batch_tokens: int, **kwargs: object) -> targets.Targets:
        asked.append(batch_tokens)
        if batch_tokens > 100:
            run_out()
        return real(*args, batch_tokens=batch_tokens, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(targets, "_optimise_wave", tight)
    settings = replace(settings, batch_tokens=256, steps=1)
    solve_for(lm, plan(lm, requests_of(2)), settings)
    assert asked == [256, 128, 64]

    def never(*_args: object, **_kwargs: object) -> None:
        run_out()

    monkeypatch.setattr(targets, "_optimise_wave", never)
    with pytest.raises(OutOfMemoryError):
        solve_for(lm, plan(lm, requests_of(2)), settings)


def test_fewer_subjects_are_sought_together_where_memory_runs_out(
    lm: LanguageModel, settings: MemitSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of all subjects of a wave may be what does not fit, whatever the batch."""
    units = plan(lm, requests_of(5))
    whole = solve_for(lm, units, settings)
    real, sought = targets._optimise_wave, []

    def tight(lm: LanguageModel, wave: list[Unit], *args: object, **kwargs: object) -> targets.Targets:
        if len(wave) > 2:
            raise MemoryError
        sought.append(len(wave))
        return real(lm, wave, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(targets, "_optimise_wave", tight)
    parts = solve_for(lm, units, settings)
    assert sought == [2, 2, 1]
    torch.testing.assert_close(parts.shifts, whole.shifts, rtol=1e-3, atol=1e-5)


def test_attention_and_blocks_are_put_back(lm: LanguageModel, settings: MemitSettings) -> None:
    """The model is as it was: its attention, its forwards, no gradient anywhere."""
    attention = lm.attention
    solve_for(lm, plan(lm, requests_of(2)), replace(settings, steps=1))
    assert lm.attention == attention
    assert all("forward" not in lm.layers.block(lm.model, layer).__dict__ for layer in range(4))
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


def test_other_families_agree_too(settings: MemitSettings) -> None:
    """Families with learned positions and with blocks that return tuples: batch equals alone."""
    for name in ("gpt2", "gptj", "opt"):
        lm = tiny.language_model(name)
        units = plan(lm, requests_of(3))
        short = replace(settings, steps=4)
        together = solve_for(lm, units, short)
        alone = solve_for(lm, units[1:2], short)
        cosine = torch.nn.functional.cosine_similarity(together.shifts[1], alone.shifts[0], dim=0)
        assert cosine > 0.999
