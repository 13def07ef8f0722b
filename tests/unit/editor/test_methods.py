"""Every method against its paper's own equations, and the promises that all of them make."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import alphaedit, finetune, losses, mend, methods, rome, solve, spread
from editor.cases import Question, case_of
from editor.errors import MissingLibraryError, NotTrainedError, UnknownMethodError
from editor.method import Resources
from editor.methods import METHODS
from editor.requests import EditRequest
from editor.retrieval import Retrieval
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of

if TYPE_CHECKING:
    from pathlib import Path

    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings

NAMES = [name for name in METHODS if name != "none"]
WRITERS = [name for name in NAMES if name != "retrieval"]


def training(count: int = 20):
    near = (Question("The capital of Norway is", "Oslo"),)
    return [case_of(one, relation="P6", neighbourhood=near) for one in requests_of(count, start=40)]


@pytest.fixture
def resources(settings: MemitSettings, moments: Moments, monkeypatch) -> Resources:
    monkeypatch.setattr(mend.Mend, "steps", 4)
    return Resources(settings, lambda: moments, training())


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
    """Weights and state are all that a second batch depends on."""
    resources.folder = tmp_path
    first, second = requests_of(2), requests_of(2, start=2)
    straight_lm, other_lm = tiny.language_model(), tiny.language_model()
    straight = methods.make(name, straight_lm, resources)
    straight.apply(first)
    kept, state = straight.changed(), straight.state()
    straight.apply(second)
    other = methods.make(name, other_lm, resources)
    other.resume(kept, state)
    other.apply(second)
    assert same(weights_of(straight_lm), weights_of(other_lm))
    assert straight.shown("The capital of France is") == other.shown("The capital of France is")
    other.undo()
    assert same(weights_of(other_lm), weights_of(tiny.language_model()))


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
    method.undo()
    assert not any(bool(past.any()) for past in method._past.values())


def test_mean_keys_weigh_the_bare_prompt_half() -> None:
    """Half the first column, half the mean of the others; alone, itself."""
    keys = torch.tensor([[2.0], [4.0], [8.0], [5.0]])
    owner, first = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 3])
    assert spread.mean_keys(keys, owner, first).tolist() == [[4.0], [5.0]]


# Fine-tuning


def test_ft_l_never_leaves_its_box(lm: LanguageModel, resources: Resources) -> None:
    """‖θ - θ₀‖_∞ ≤ ε, and the bound is met somewhere."""
    method = finetune.FineTuneConstrained(lm, resources)
    (name,) = method.written()
    before = method.changed()[name]
    method.apply(requests_of(2))
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


# MEND


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_mend_decomposes_the_gradient(name: str) -> None:
    """Σ δ uᵀ is the gradient that autograd finds in the matrix."""
    lm = tiny.language_model(name)
    rows = losses.lines(lm, requests_of(3))
    layers = (2, 3)
    pairs = mend.factors_of_gradient(lm, rows, layers)
    for layer in layers:
        weight = lm.layers.writer(lm.model, layer).weight
        weight.requires_grad_(True)
        (gradient,) = torch.autograd.grad(losses.nll(lm, rows).sum(), weight)
        weight.requires_grad_(False)
        u, delta = pairs[layer]
        found = delta.T @ u
        torch.testing.assert_close(
            found, gradient.T if lm.layers.transposed else gradient, rtol=1e-3, atol=1e-5
        )


def test_mend_starts_as_the_identity_on_normalised_pairs() -> None:
    """With U zero, g(z) = z (equation 3)."""
    torch.manual_seed(0)
    network = mend.GradientNetwork(6, 4, 2, rank=3)
    u, delta = torch.randn(5, 6) * 3 + 1, torch.randn(5, 4)
    with torch.no_grad():
        network.normalise_by(1, torch.cat([u, delta], dim=1))
        new_u, new_delta = network(u, delta, 1)
    torch.testing.assert_close(new_u, (u - u.mean(0)) / (u.std(0) + 1e-7))
    torch.testing.assert_close(new_delta, (delta - delta.mean(0)) / (delta.std(0) + 1e-7))


def test_mend_follows_equation_three() -> None:
    """Equation 3: h = z + relu(s1 * (U1 V1 z + b) + o1), g = h + relu(s2 * U2 V2 h + o2), token by token."""
    torch.manual_seed(0)
    network = mend.GradientNetwork(6, 4, 2, rank=3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
        network.deviation.abs_()
        u, delta = torch.randn(5, 6), torch.randn(5, 4)
        found = torch.cat(network(u, delta, 1), dim=1)
        (U1, U2), (V1, V2) = network.U, network.V
        for token, expected in zip(torch.cat([u, delta], dim=1), found, strict=True):
            z = (token - network.mean[1]) / (network.deviation[1] + 1e-7)
            h = z + torch.relu(network.scale[0, 1] * (U1 @ (V1 @ z) + network.b) + network.offset[0, 1])
            g = h + torch.relu(network.scale[1, 1] * (U2 @ (V2 @ h)) + network.offset[1, 1])
            torch.testing.assert_close(expected, g)


def test_all_of_mend_learns(lm: LanguageModel) -> None:
    """From the identity on, every part of the network moves, not the step sizes alone."""
    start, _ = mend.train(lm, training(), (2, 3), steps=0, seed=1)
    learnt, _ = mend.train(lm, training(), (2, 3), steps=3, seed=1)
    then = dict(start.named_parameters())
    still = [n for n, p in learnt.named_parameters() if p.requires_grad and torch.equal(p, then[n])]
    assert not still


def test_mend_keeps_a_network_for_what_it_learnt_from(
    lm: LanguageModel, resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of other content and equal names ask for another network."""
    monkeypatch.setattr(mend.Mend, "steps", 1)
    resources.folder = tmp_path
    resources.training = training()
    methods.make("mend", lm, resources).prepare()
    methods.make("mend", lm, resources).prepare()
    assert len(list(tmp_path.iterdir())) == 1
    changed = replace(resources.training[0].request, target="Rome")
    resources.training = (replace(resources.training[0], request=changed), *resources.training[1:])
    methods.make("mend", lm, resources).prepare()
    assert len(list(tmp_path.iterdir())) == 2


def test_mend_writes_what_it_was_trained_to_preview(lm: LanguageModel) -> None:
    """The model as if edited and the model as edited say the same."""
    network = mend.GradientNetwork(lm.layers.d_k, lm.layers.d, 1)
    with torch.no_grad():
        network.alpha.fill_(1e-2)
    rows = losses.lines(lm, requests_of(2))
    changes = mend.edit_of(network, mend.factors_of_gradient(lm, rows, (3,)))
    with torch.no_grad():
        with mend.as_if(lm, changes):
            preview = losses.nll(lm, rows)
        left, right = changes[3]
        lm.layers.matrix(lm.model, 3).add_(left @ right)
        torch.testing.assert_close(losses.nll(lm, rows), preview, rtol=1e-4, atol=1e-5)


def test_mend_learns(lm: LanguageModel) -> None:
    """Its loss falls on the records that it learns from; the same seed gives the same network."""
    network, found = mend.train(lm, training(), (2, 3), steps=40, seed=1)
    again, other = mend.train(lm, training(), (2, 3), steps=40, seed=1)
    assert sum(found[-10:]) < sum(found[:10])
    assert found == other
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_mend_needs_records_to_learn_from(lm: LanguageModel, resources: Resources) -> None:
    """A named error, with how many there were."""
    resources.training = training(3)
    with pytest.raises(NotTrainedError, match="3 are left"):
        methods.make("mend", lm, resources).apply(requests_of(1))


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
    method.undo()
    assert method.shown("York lies in") == "York lies in"
