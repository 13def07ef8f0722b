"""Many functions at once, one a row: each row goes its own way, by Adam."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from editor.descent import RowAdam


def quadratics(rows: int, width: int, *, condition: float, seed: int = 0):
    """Loss and gradient of (x - c)ᵀ D (x - c) / 2, one diagonal D and one centre a row."""
    made = torch.Generator().manual_seed(seed)
    centres = torch.randn(rows, width, generator=made)
    curvatures = condition ** torch.rand(rows, width, generator=made)

    def evaluate(x):
        away = x - centres
        return 0.5 * (curvatures * away.square()).sum(dim=1), curvatures * away

    return evaluate, centres


def descend(descent: RowAdam, evaluate, *, steps: int, goal: float = 0.0):
    active = torch.ones(len(descent.value), dtype=torch.bool)
    for _ in range(steps + 1):
        loss, gradient = evaluate(descent.point)
        finished = active & (loss < goal)
        descent.step(gradient, active, finished)
        active = active & ~finished
    return descent.value


@given(st.integers(0, 1000))
def test_a_row_does_not_depend_on_the_others(seed):
    evaluate, centres = quadratics(4, 6, condition=20.0, seed=seed)
    limit = 10 * centres.norm(dim=1)
    together = descend(RowAdam(limit, 6, rate=0.1), evaluate, steps=12, goal=0.5)

    def only_first(x):
        loss, gradient = evaluate(torch.cat([x, torch.zeros(3, 6)]))
        return loss[:1], gradient[:1]

    alone = descend(RowAdam(limit[:1], 6, rate=0.1), only_first, steps=12, goal=0.5)
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_rows_stay_within_their_limit_and_finished_rows_stay_put():
    evaluate, centres = quadratics(3, 5, condition=5.0)
    limit = 0.3 * centres.norm(dim=1)
    descent = RowAdam(limit, 5, rate=0.2)
    active, first = torch.ones(3, dtype=torch.bool), torch.tensor([True, False, False])
    descent.step(evaluate(descent.point)[1], active, ~active)
    gradient = evaluate(descent.point)[1]
    kept = descent.point[0].clone()
    descent.step(gradient, active, first)
    for _ in range(10):
        gradient = evaluate(descent.point)[1]
        assert (descent.point.norm(dim=1) <= limit * 1.00001).all()
        descent.step(gradient, ~first, torch.zeros(3, dtype=torch.bool))
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
