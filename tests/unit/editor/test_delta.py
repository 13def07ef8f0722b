"""Deltas: exact on any summation order, small, refused when they do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save

from editor import delta
from editor.delta import Delta, Dense, LowRank
from editor.errors import CorruptStateError, NonFiniteError, StateMismatchError

if TYPE_CHECKING:
    from editor.model import LanguageModel


def factors(rank: int, *, d: int = 32, d_k: int = 80, seed: int = 0) -> LowRank:
    """Make rounded random factors of unlike scales."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(d, rank, generator=generator, dtype=torch.float64) * torch.logspace(-3, 3, rank)
    return LowRank.rounded(left, torch.randn(rank, d_k, generator=generator, dtype=torch.float64) * 1e-4)


@pytest.mark.parametrize("rank", [1, 3, 64, 300])
def test_product_is_exact_in_any_order(rank: int) -> None:
    """Summing the rank-one terms in another order gives the same bits."""
    change = factors(rank)
    order = torch.randperm(rank, generator=torch.Generator().manual_seed(1))
    total = torch.zeros(32, 80, dtype=torch.float64)
    for i in order.tolist():
        total += torch.outer(change.left[:, i].double(), change.right[i].double())
    assert torch.equal(total.float(), change.dense())


def test_terms_of_one_sign_sum_to_the_same_bits() -> None:
    """Where nothing cancels the sum is longest: the grid leaves room for as many terms as there are."""
    rank, generator = 300, torch.Generator().manual_seed(0)
    left = torch.rand(32, rank, generator=generator, dtype=torch.float64) + 0.5
    right = torch.rand(rank, 80, generator=generator, dtype=torch.float64) + 0.5
    change = LowRank.rounded(left, right)
    total = torch.zeros(32, 80, dtype=torch.float64)
    for i in torch.randperm(rank, generator=generator).tolist():
        total += torch.outer(change.left[:, i].double(), change.right[i].double())
    assert torch.equal(total, change.left.double() @ change.right.double())


@pytest.mark.parametrize("rank", [1, 16, 300])
def test_rounding_is_of_float32s_size(rank: int) -> None:
    """The grid costs no more than a few float32 units of the matrix's scale."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(32, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, 80, generator=generator, dtype=torch.float64)
    exact = left @ right
    assert (LowRank.rounded(left, right).dense() - exact).norm() / exact.norm() < 3e-6


@pytest.mark.parametrize("rank", [1, 22, 23, 40])
def test_factors_pay_while_they_are_smaller(rank: int) -> None:
    """The break-even of a matrix of 32 by 80 lies between the ranks 22 and 23."""
    change = factors(rank)
    smaller = change.left.numel() + change.right.numel() < change.dense().numel()
    assert delta.factors_pay(rank, 32, 80) == smaller == (rank < 23)


def test_bytes_round_trip_and_are_stable(lm: LanguageModel) -> None:
    """Equal deltas give equal bytes and digests; reading gives back what was written."""
    names = [lm.layers.weight_name(layer) for layer in (1, 2)]
    made = Delta({names[0]: factors(3), names[1]: Dense(factors(40).dense())})
    again = Delta.from_bytes(made.to_bytes())
    assert (
        made.to_bytes()
        == again.to_bytes()
        == Delta({names[1]: Dense(factors(40).dense()), names[0]: factors(3)}).to_bytes()
    )
    assert made.digest == again.digest
    for name in names:
        assert torch.equal(made.changes[name].dense(), again.changes[name].dense())


def test_apply_adds_to_the_weight(lm: LanguageModel) -> None:
    """Applying is one float32 addition."""
    before = lm.layers.matrix(lm.model, 1).clone()
    change = factors(3)
    delta.apply(lm, Delta({lm.layers.weight_name(1): change}))
    assert torch.equal(lm.layers.matrix(lm.model, 1), before + change.dense())


def test_an_interrupt_while_a_delta_is_added_leaves_nothing_of_it(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One matrix was written, the next one was not."""
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    add, calls = delta.add, iter([True, False])

    def interrupted(weight: torch.Tensor, change: torch.Tensor) -> None:
        if not next(calls):
            raise KeyboardInterrupt
        add(weight, change)

    monkeypatch.setattr(delta, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        delta.apply(lm, Delta({lm.layers.weight_name(layer): factors(3) for layer in (1, 2)}))
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())


def test_apply_refuses_what_does_not_fit_and_touches_nothing(lm: LanguageModel) -> None:
    """Another model's delta is refused before any weight changes."""
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    fits = lm.layers.weight_name(1)
    with pytest.raises(StateMismatchError):
        delta.apply(lm, Delta({fits: factors(3), "transformer.h.0.mlp.c_proj.weight": factors(3)}))
    with pytest.raises(StateMismatchError):
        delta.apply(lm, Delta({fits: factors(3), lm.layers.weight_name(2): factors(3, d_k=81)}))
    broken = LowRank(torch.full((32, 1), torch.inf), torch.ones(1, 80))
    with pytest.raises(NonFiniteError):
        delta.apply(lm, Delta({fits: factors(3), lm.layers.weight_name(2): broken}))
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())


@pytest.mark.parametrize("blob", [b"", b"nonsense", b"\xff" * 64])
def test_damaged_bytes_are_named(blob: bytes) -> None:
    """A damaged file is told apart before anything is loaded."""
    with pytest.raises(CorruptStateError):
        Delta.from_bytes(blob)
    with pytest.raises(CorruptStateError):
        delta.read_metadata(blob)


@pytest.mark.parametrize("names", [["000000:k1", "000000:v1"], ["w:right"], ["w"]])
def test_tensors_of_something_else_are_not_an_empty_change(names: list[str]) -> None:
    """States lie beside a delta in its folder: taken for one, they would leave the model as it is."""
    with pytest.raises(CorruptStateError, match="The delta file is damaged"):
        Delta.from_bytes(save({name: torch.zeros(2, 3) for name in names}))


def test_non_finite_factors_are_refused() -> None:
    """Rounding refuses NaN."""
    with pytest.raises(NonFiniteError):
        LowRank.rounded(torch.full((2, 1), torch.nan), torch.ones(1, 2))
