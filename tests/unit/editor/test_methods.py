"""Every method against its paper's own equations, and the promises that all of them make."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import alphaedit, finetune, losses, memit, methods, rome, solve
from editor.errors import MissingLibraryError, NonFiniteError, UnknownMethodError
from editor.keys import Columns, KeyReader
from editor.methods import METHODS
from editor.requests import EditRequest
from editor.retrieval import Retrieval
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of

if TYPE_CHECKING:
    from editor.method import Resources
    from editor.model import LanguageModel

NAMES = [name for name in METHODS if name != "none"]
WRITERS = [name for name in NAMES if name != "retrieval"]


def weights_of(lm: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def loss_on(lm: LanguageModel, requests: list[EditRequest]) -> float:
    with torch.no_grad():
        return float(losses.nll(lm, losses.lines(lm, requests)).mean())


@pytest.mark.parametrize("name", WRITERS)
def test_a_method_teaches_and_is_undone_to_the_bit(
    name: str, lm: LanguageModel, resources: Resources
) -> None:
    """The facts become likelier, nothing else is written than promised, and undo brings every bit back."""
    before = weights_of(lm)
    facts = requests_of(3)
    at_first = loss_on(lm, facts)
    method = methods.make(name, lm, resources)
    method.apply(facts)
    after = weights_of(lm)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert changed <= set(method.changed())
    if name != "mend":  # four steps of training teach it nothing
        assert loss_on(lm, facts) < at_first
    assert not any(weight.requires_grad for weight in lm.model.parameters())
    method.undo()
    assert same(before, weights_of(lm))
    method.apply(facts)
    assert same(after, weights_of(lm)), "a second time, from the start, gives the same weights"


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_teaches_nothing(name: str, lm: LanguageModel, resources: Resources) -> None:
    before = weights_of(lm)
    methods.make(name, lm, resources).apply([])
    assert same(before, weights_of(lm))


@pytest.mark.parametrize("name", WRITERS)
def test_a_failed_batch_leaves_no_trace(
    name: str, lm: LanguageModel, resources: Resources, monkeypatch
) -> None:
    """Whatever happens at the end of a batch, the weights are as before it."""
    method = methods.make(name, lm, resources)
    method.apply(requests_of(2))
    before = weights_of(lm)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(method, "_require_finite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        method.apply(requests_of(2, start=2))
    assert same(before, weights_of(lm))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_goes_on_in_another_process(name: str, resources: Resources, tmp_path) -> None:
    """Weights and state are all that a second batch depends on; contexts are not drawn again."""
    resources.folder = tmp_path
    first, second = requests_of(2), requests_of(2, start=2)
    straight_lm, other_lm = tiny.language_model(), tiny.language_model()
    straight = methods.make(name, straight_lm, resources)
    straight.apply(first)
    kept, state = straight.changed(), straight.state()
    straight.apply(second)
    resources.settings = replace(resources.settings, seed=7)
    other = methods.make(name, other_lm, resources)
    other.resume(kept, state)
    other.apply(second)
    assert same(weights_of(straight_lm), weights_of(other_lm))
    assert straight.shown("The capital of France is") == other.shown("The capital of France is")
    other.undo()
    assert same(weights_of(other_lm), weights_of(tiny.language_model()))


def test_without_history_a_subject_is_written_on_top(lm: LanguageModel, resources: Resources) -> None:
    """As published, in the state that counts from then on too."""
    resources.settings = replace(resources.settings, history=False)
    method = methods.Memit(lm, resources)
    method.apply(requests_of(3))
    standing = method.changed()
    again = [replace(requests_of(1)[0], target="Stockholm")]
    method.apply(again)
    fresh = tiny.language_model("llama")
    on_top = methods.Memit(fresh, resources)
    on_top.resume(standing, methods.Memit(fresh, resources).state())
    on_top.apply(again)
    assert same(method.changed(), on_top.changed())
    assert [state.subject_id for state in method.live] == ["s0", "s1", "s2"]


@pytest.mark.parametrize(("name", "step"), [("alphaedit", "projected_update"), ("rome", "rank_one")])
def test_a_change_that_is_not_finite_is_not_written(
    name: str, step: str, lm: LanguageModel, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither into the weights nor into what later batches know."""
    before, method = weights_of(lm), methods.make(name, lm, resources)
    method.prepare()
    state = method.state()
    monkeypatch.setattr(sys.modules[f"editor.{name}"], step, lambda *_: torch.full((32, 80), torch.nan))
    with pytest.raises(NonFiniteError, match="nothing was written"):
        method.apply(requests_of(2))
    assert same(before, weights_of(lm))
    assert method.state() == state


def test_an_unknown_method_is_named(lm: LanguageModel, resources: Resources) -> None:
    """The message lists what there is."""
    with pytest.raises(UnknownMethodError, match="memit-reference"):
        methods.make("ROMA", lm, resources)


def test_nothing_is_taught_by_none(lm: LanguageModel, resources: Resources) -> None:
    """The unedited row."""
    before = weights_of(lm)
    method = methods.make("none", lm, resources)
    method.apply(requests_of(2))
    assert same(before, weights_of(lm))


# ROME


@pytest.mark.parametrize("name", ["memit", "memit-reference", "alphaedit", "rome"])
def test_prefixes_are_drawn_by_the_seed_of_the_settings(
    name: str, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed that a checkpoint's settings carry is the one that counts; the published draw as published."""
    drawn: list[tuple[int, int | None]] = []

    def sample(*_: object, seed: int, top_k: int | None) -> tuple[str, ...]:
        drawn.append((seed, top_k))
        return ("It was said that",)

    for module in (methods, alphaedit, rome):
        monkeypatch.setattr(module, "sample_prefixes", sample)
    resources = replace(resources, settings=replace(resources.settings, seed=3), seed=8)
    methods.make(name, tiny.language_model("llama"), resources).prepare()
    assert drawn == [(3, None if name == "memit" else 5)]


def test_rome_meets_its_constraint_and_disturbs_least() -> None:
    """W + Λ(C⁻¹k)ᵀ gives v* for k* exactly, and no other such change is smaller in the metric of C."""
    torch.manual_seed(0)
    d, d_k = 5, 8
    A = torch.randn(d_k, 40, dtype=torch.float64)
    C, W = A @ A.T / 40, torch.randn(d, d_k, dtype=torch.float64)
    key, value = torch.randn(d_k, dtype=torch.float64), torch.randn(d, dtype=torch.float64)
    change = rome.rank_one(solve.factor(C), key, value - W @ key)
    torch.testing.assert_close((W + change) @ key, value)
    direction = torch.linalg.inv(C) @ key
    torch.testing.assert_close(change, torch.outer((value - W @ key) / (direction @ key), direction))

    def disturbance(delta: torch.Tensor) -> float:
        return float((delta @ C @ delta.T).trace())

    for _ in range(20):
        other = torch.randn(d, d_k, dtype=torch.float64)
        other -= torch.outer(other @ key, key) / (key @ key)  # other @ key == 0
        assert disturbance(change + 0.1 * other) > disturbance(change)


def test_rome_writes_the_value_into_the_model(lm: LanguageModel, resources: Resources) -> None:
    """After the edit the written matrix gives W k* + δ for k*, and the change has rank one."""
    method = rome.Rome(lm, resources)
    layer = method.settings.layers[0]
    before = lm.layers.matrix(lm.model, layer).clone()
    seen: dict[str, torch.Tensor] = {}
    original = rome.rank_one

    def watch(lower: torch.Tensor, key: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        seen.update(key=key, residual=residual)
        return original(lower, key, residual)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rome, "rank_one", watch)
        method.apply(requests_of(1))
    after = lm.layers.matrix(lm.model, layer)
    moved = (after.double() - before.double()) @ seen["key"]
    torch.testing.assert_close(moved, seen["residual"], rtol=1e-3, atol=1e-4)
    values = torch.linalg.svdvals((after - before).double())
    assert values[1] < 1e-4 * values[0]


# AlphaEdit


def test_alphaedit_projects_onto_the_null_space() -> None:
    """P is an orthogonal projection that takes preserved keys to nothing."""
    torch.manual_seed(0)
    K0 = torch.randn(10, 6, dtype=torch.float64)
    P = alphaedit.null_space(K0 @ K0.T, threshold=1e-8)
    torch.testing.assert_close(P, P.T)
    torch.testing.assert_close(P @ P, P)
    torch.testing.assert_close(P @ K0, torch.zeros_like(K0), atol=1e-9, rtol=0)
    assert P.trace() == pytest.approx(4)


def test_alphaedit_solves_its_objective() -> None:
    """Δ is Δ P, leaves preserved keys alone, and minimises ‖ΔPK - R‖² + ‖ΔPK_p‖² + ‖ΔP‖²."""
    torch.manual_seed(0)
    d, d_k, n = 4, 10, 3
    K0 = torch.randn(d_k, 6, dtype=torch.float64)
    P = alphaedit.null_space(K0 @ K0.T, threshold=1e-8)
    K, R = torch.randn(d_k, n, dtype=torch.float64), torch.randn(d, n, dtype=torch.float64)
    Kp = torch.randn(d_k, 2, dtype=torch.float64)
    change = alphaedit.projected_update(P, K, R, Kp @ Kp.T)
    literal = (
        R @ K.T @ P @ torch.linalg.inv(Kp @ Kp.T @ P + K @ K.T @ P + torch.eye(d_k, dtype=torch.float64))
    )
    torch.testing.assert_close(change, literal)
    torch.testing.assert_close(change @ P, change)
    torch.testing.assert_close(change @ K0, torch.zeros(d, 6, dtype=torch.float64), atol=1e-9, rtol=0)

    def objective(delta: torch.Tensor) -> torch.Tensor:
        projected = delta @ P
        return (projected @ K - R).square().sum() + (projected @ Kp).square().sum() + projected.square().sum()

    probe = change.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(probe), probe)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


def test_alphaedit_keeps_the_keys_of_earlier_batches(lm: LanguageModel, resources: Resources) -> None:
    """K_p K_pᵀ grows by the batch's keys, is symmetric and of the rank of the subjects."""
    method = alphaedit.AlphaEdit(lm, resources)
    method.apply(requests_of(2))
    one = {layer: past.clone() for layer, past in method._past.items()}
    method.apply(requests_of(1, start=2))
    for layer, past in method._past.items():
        torch.testing.assert_close(past, past.T)
        assert torch.linalg.matrix_rank(one[layer]) == 2
        assert torch.linalg.matrix_rank(past) == 3
    units = memit.units_of(lm, requests_of(1, start=2), method.settings, method._prefixes or ())
    columns = Columns.of(units, lm.device, mean=True)
    reader = KeyReader(lm, columns.texts, method.settings.layers)
    for layer, past in method._past.items():
        K = columns.mean(reader.read(layer)[0]).T.double()  # as they are once all is written
        torch.testing.assert_close(past, one[layer] + K @ K.T, rtol=1e-5, atol=1e-6)
    method.undo()
    assert not any(bool(past.any()) for past in method._past.values())


# Fine-tuning


def test_ft_l_never_leaves_its_box(lm: LanguageModel, resources: Resources) -> None:
    """‖θ - θ₀‖_∞ ≤ ε, and the bound is met somewhere; θ₀ is the unedited matrix, also for a second batch."""
    method = finetune.FineTuneConstrained(lm, resources)
    (name,) = method.written()
    before = method.changed()[name]
    for start in (0, 2):
        method.apply(requests_of(2, start=start))
        moved = (method.changed()[name] - before).abs().max()
        assert moved == pytest.approx(finetune.EPSILON, rel=1e-3)


def test_ft_w_decays_as_fitted(lm: LanguageModel, resources: Resources) -> None:
    """The power law of the released file, and all weights of one block."""
    assert finetune.decay_for(1) == pytest.approx(1.1687, abs=1e-4)
    assert finetune.decay_for(10_000) == pytest.approx(10_000**-0.87028798 * 1.1687, rel=1e-3)
    names = finetune.FineTuneDecay(lm, resources).written()
    assert {name.split(".")[2] for name in names} == {"3"}
    assert len(names) == 9


def test_lines_rate_as_recall_does(lm: LanguageModel) -> None:
    """The loss is minus the log of recall's probability."""
    from editor import recall

    facts = requests_of(3)
    pairs = [
        (template.replace("{}", fact.subject), fact.target) for fact in facts for template in fact.prompts
    ]
    rated = torch.tensor([one.probability for one in recall.likelihoods(lm, pairs)])
    with torch.no_grad():
        found = losses.nll(lm, losses.lines(lm, facts))
    torch.testing.assert_close((-found).exp(), rated, rtol=1e-4, atol=1e-6)


# LoRA and retrieval


def test_lora_is_low_rank(lm: LanguageModel, resources: Resources) -> None:
    """Every change has at most the adapter's rank, and the model's modules are its own again."""
    modules = {name: type(module) for name, module in lm.model.named_modules()}
    method = methods.make("lora", lm, resources)
    before = method.changed()
    method.apply(requests_of(2))
    for name, weight in method.changed().items():
        values = torch.linalg.svdvals((weight - before[name]).double())
        assert (values > 1e-5 * values[0].clamp(min=1e-9)).sum() <= 8, name
    assert modules == {name: type(module) for name, module in lm.model.named_modules()}


def test_lora_asks_for_peft_by_name(lm: LanguageModel, resources: Resources, monkeypatch) -> None:
    """Without the library a sentence says how to get it."""
    real = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "peft", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingLibraryError, match="pip install"):
        methods.make("lora", lm, resources).apply(requests_of(1))


def test_retrieval_puts_facts_of_named_subjects_in_front(lm: LanguageModel, resources: Resources) -> None:
    """Word for word, the longest subject first; other prompts stay as they are."""
    method = Retrieval(lm, resources)

    def fact(subject: str, target: str) -> EditRequest:
        return EditRequest(
            fact_id=subject, subject_id=subject, subject=subject, prompts=("{} lies in",), target=target
        )

    assert method.shown("York lies in") == "York lies in"
    method.apply([fact("York", "France"), fact("New York", "Spain")])
    assert method.shown("New York lies in") == "New Fact: New York lies in Spain.\nPrompt: New York lies in"
    assert method.shown("Yorkshire lies in") == "Yorkshire lies in"
    method.apply([fact("York", "Italy")])
    assert method.shown("Is York old?") == "New Fact: York lies in Italy.\nPrompt: Is York old?"
    method.apply([replace(fact("York", "a city"), prompts=("{} is",))])
    method.apply([replace(fact("York", "old"), prompts=("{} is",))])
    method.apply([replace(fact("York", "in the north"), prompts=("{} lies",))])
    known = "York lies in Italy. York is old. York lies in the north."
    assert method.shown("York?") == f"New Fact: {known}\nPrompt: York?"
    method.undo()
    assert method.shown("York lies in") == "York lies in"
