"""Many functions at once, one a row: each row goes its own way, and L-BFGS needs few evaluations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editor.descent import Descent, RowAdam, RowLBFGS


def quadratics(rows: int, width: int, *, condition: float, seed: int = 0):
    """Loss and gradient of (x - c)ᵀ D (x - c) / 2, one diagonal D and one centre a row."""
    made = torch.Generator().manual_seed(seed)
    centres = torch.randn(rows, width, generator=made)
    curvatures = condition ** torch.rand(rows, width, generator=made)

    def evaluate(x):
        away = x - centres
        return 0.5 * (curvatures * away.square()).sum(dim=1), curvatures * away

    return evaluate, centres


def descend(descent: Descent, evaluate, *, steps: int, goal: float = 0.0):
    active = torch.ones(len(descent.value), dtype=torch.bool)
    for _ in range(steps + 1):
        loss, gradient = evaluate(descent.point)
        finished = active & (loss < goal)
        descent.step(loss, gradient, active, finished)
        active = active & ~finished
    return descent.value


def test_lbfgs_finds_the_minimum_of_every_row():
    evaluate, centres = quadratics(5, 40, condition=100.0)
    scale = 3 * centres.norm(dim=1)
    found = descend(RowLBFGS(10 * scale, 40, scale=scale), evaluate, steps=60)
    assert torch.allclose(found, centres, atol=1e-2)


def test_lbfgs_needs_fewer_evaluations_than_adam():
    evaluate, centres = quadratics(8, 50, condition=30.0)
    scale = 2 * centres.norm(dim=1)
    lbfgs = evaluate(descend(RowLBFGS(10 * scale, 50, scale=scale), evaluate, steps=20))[0]
    for rate in (0.05, 0.1, 0.2, 0.4):
        adam = evaluate(descend(RowAdam(10 * scale, 50, rate=rate), evaluate, steps=20))[0]
        assert (lbfgs < 0.1 * adam).all(), rate


def test_lbfgs_never_accepts_a_worse_point_and_follows_a_curved_valley():
    def valley(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = (1 - x[:, 0]).square() + 100 * (x[:, 1] - x[:, 0].square()).square()
            return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]

    descent = RowLBFGS(torch.full((2,), 10.0), 2, scale=torch.tensor([2.0, 5.0]))
    active = torch.ones(2, dtype=torch.bool)
    before = torch.full((2,), torch.inf)
    for _ in range(120):
        descent.step(*valley(descent.point), active, ~active)
        now = valley(descent.value)[0]
        assert (now <= before).all()
        before = now
    assert torch.allclose(descent.value, torch.ones(2, 2), atol=1e-2)


@given(st.integers(0, 1000), st.sampled_from(["adam", "lbfgs"]))
def test_a_row_does_not_depend_on_the_others(seed, method):
    evaluate, centres = quadratics(4, 6, condition=20.0, seed=seed)
    scale = centres.norm(dim=1)

    def made(rows):
        if method == "adam":
            return RowAdam(10 * scale[rows], 6, rate=0.1)
        return RowLBFGS(10 * scale[rows], 6, scale=scale[rows])

    together = descend(made(slice(0, 4)), evaluate, steps=12, goal=0.5)

    def only_first(x):
        loss, gradient = evaluate(torch.cat([x, torch.zeros(3, 6)]))
        return loss[:1], gradient[:1]

    alone = descend(made(slice(0, 1)), only_first, steps=12, goal=0.5)
    assert torch.allclose(together[:1], alone, atol=1e-5)


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_rows_stay_within_their_limit_and_finished_rows_stay_put(method):
    evaluate, centres = quadratics(3, 5, condition=5.0)
    limit = 0.3 * centres.norm(dim=1)
    descent = RowAdam(limit, 5, rate=0.2) if method == "adam" else RowLBFGS(limit, 5, scale=limit)
    active, first = torch.ones(3, dtype=torch.bool), torch.tensor([True, False, False])
    descent.step(*evaluate(descent.point), active, ~active)
    loss, gradient = evaluate(descent.point)
    kept = descent.point[0].clone()
    descent.step(loss, gradient, active, first)
    for _ in range(10):
        loss, gradient = evaluate(descent.point)
        assert (descent.point.norm(dim=1) <= limit * 1.00001).all()
        descent.step(loss, gradient, ~first, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(descent.value[0], kept)
    assert descent.steps.tolist() == [1, 11, 11]


def test_adam_is_adam():
    evaluate, _ = quadratics(1, 8, condition=10.0)
    variable = torch.zeros(1, 8, requires_grad=True)
    oracle = torch.optim.Adam([variable], lr=0.1)
    for _ in range(15):
        variable.grad = evaluate(variable.detach())[1]
        oracle.step()
    found = descend(RowAdam(torch.tensor([1e9]), 8, rate=0.1), evaluate, steps=15)
    assert torch.allclose(found, variable.detach(), atol=1e-6)


def test_lbfgs_survives_a_flat_and_a_finished_row():
    def flat(x):
        return torch.zeros(len(x)), torch.zeros_like(x)

    found = descend(RowLBFGS(torch.ones(2), 4, scale=torch.ones(2)), flat, steps=5)
    assert torch.equal(found, torch.zeros(2, 4))
