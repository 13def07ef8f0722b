"""MEND against its paper's equations: the gradient's factors, the network, and its training."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from editor import losses, mend, methods
from editor.errors import NotTrainedError
from tests.unit.editor import tiny
from tests.unit.editor.conftest import requests_of, training

if TYPE_CHECKING:
    from pathlib import Path

    from editor.method import Resources
    from editor.model import LanguageModel


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
    network = mend.GradientNetwork(6, 4, 2)
    u, delta = torch.randn(5, 6) * 3 + 1, torch.randn(5, 4)
    with torch.no_grad():
        network.normalise_by(1, torch.cat([u, delta], dim=1))
        new_u, new_delta = network(u, delta, 1)
    torch.testing.assert_close(new_u, (u - u.mean(0)) / (u.std(0) + 1e-7))
    torch.testing.assert_close(new_delta, (delta - delta.mean(0)) / (delta.std(0) + 1e-7))


def test_mend_follows_equation_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equation 3: h = z + relu(s1 * (U1 V1 z + b) + o1), g = h + relu(s2 * U2 V2 h + o2), token by token."""
    monkeypatch.setattr(mend, "RANK", 3)
    torch.manual_seed(0)
    network = mend.GradientNetwork(6, 4, 2)
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


def test_mend_learns_the_edit_and_to_leave_the_rest(lm: LanguageModel) -> None:
    """c_e L_e + L_loc: what moves on other prompts is added, whichever way it moves (equations 4 and 5)."""
    batch = training(2)
    network = mend.GradientNetwork(lm.layers.d_k, lm.layers.d, 1)
    with torch.no_grad():
        network.alpha.fill_(1.0)
    whole, alone = (
        float(mend._training_loss(lm, network, part, (3,), random.Random(0)).detach())
        for part in (batch, [replace(case, neighbourhood=()) for case in batch])
    )
    assert whole > alone


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
