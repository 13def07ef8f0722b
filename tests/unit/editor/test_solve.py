"""The closed form: normal equations, an oracle, history and removal, the paper's special cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from editor import solve
from editor.errors import NonFiniteError, SingularMomentsError
from editor.moments import Moments
from editor.write import History

if TYPE_CHECKING:
    from collections.abc import Callable

    from editor.model import LanguageModel
    from editor.presets import MemitSettings

D, D_K = 7, 12


def problem(count: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make C, W, K and V in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples = draw(D_K, 50)
    return samples @ samples.T / 50, draw(D, D_K), draw(D_K, count), draw(D, count)


def one_batch(
    C: torch.Tensor, W: torch.Tensor, K: torch.Tensor, V: torch.Tensor, weight: float
) -> torch.Tensor:
    """Solve all at once by the paper's formula with a plain inverse: the oracle."""
    return W + (V - W @ K) @ K.T @ torch.linalg.inv(weight * C + K @ K.T)


def night(
    C: torch.Tensor,
    W: torch.Tensor,
    coming: tuple[torch.Tensor, torch.Tensor],
    live: torch.Tensor,
    *,
    leaving: tuple[torch.Tensor, torch.Tensor] | None = None,
    weight: float = 2.0,
) -> torch.Tensor:
    """One night with the product code."""
    K, V = coming
    gone = leaving or (torch.zeros(D_K, 0), torch.zeros(D, 0))
    left, right = solve.low_rank_update(
        solve.Standing(solve.normal_matrix(C, weight, live)),
        solve.Exchange(
            coming=K,
            coming_residuals=V - W @ K,
            leaving=gone[0],
            leaving_residuals=gone[1].double() - W @ gone[0].double(),
            held=torch.zeros(D_K, 0),
        ),
    )
    return W + left @ right


@pytest.mark.parametrize("count", [1, 5, 30])
def test_equals_the_papers_formula(count: int) -> None:
    """With no history the update is R Kᵀ (λC + K Kᵀ)⁻¹."""
    C, W, K, V = problem(count)
    torch.testing.assert_close(
        night(C, W, (K, V), torch.zeros(D_K, 0)), one_batch(C, W, K, V, 2.0), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("coming", [1, 5, D_K - 1, D_K, 30])
def test_standing_keys_serve_as_live_or_as_held(coming: int) -> None:
    """The small system, the large one, and the plain inverse agree, whichever way a key stands."""
    C, W, K, V = problem(coming + 6)
    new, old, gone = slice(0, coming), slice(coming, coming + 4), slice(coming + 4, coming + 6)
    R, lost = V[:, new] - W @ K[:, new], V[:, gone] - W @ K[:, gone]
    wanted = (R @ K[:, new].T - lost @ K[:, gone].T) @ torch.linalg.inv(
        solve.normal_matrix(C, 2.0, torch.cat([K[:, new], K[:, old]], dim=1))
    )
    nothing = torch.zeros(D_K, 0)
    for live, held in ((K[:, old], nothing), (nothing, K[:, old])):
        standing = solve.Standing(solve.normal_matrix(C, 2.0, live))
        asked = solve.Exchange(K[:, new], R, K[:, gone], lost, held)
        left, right = solve.low_rank_update(standing, asked)
        torch.testing.assert_close(left @ right, wanted, rtol=1e-10, atol=1e-10)
        whole = solve.dense_update(standing, asked)
        torch.testing.assert_close(whole, wanted, rtol=1e-10, atol=1e-10)


def test_normal_equations_and_optimality() -> None:
    """(W' - W) A = (V - W K) Kᵀ, and no small step away from W' lowers the objective."""
    C, W, K, V = problem(5)
    edited = night(C, W, (K, V), torch.zeros(D_K, 0))
    A = solve.normal_matrix(C, 2.0, K)
    torch.testing.assert_close((edited - W) @ A, (V - W @ K) @ K.T, rtol=1e-10, atol=1e-10)

    def objective(X: torch.Tensor) -> torch.Tensor:
        change = X - W
        return 2.0 * torch.trace(change @ C @ change.T) + (X @ K - V).square().sum()

    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        step = torch.randn(D, D_K, generator=generator, dtype=torch.float64) * 1e-3
        assert objective(edited + step) > objective(edited)


def test_nights_equal_one_batch() -> None:
    """Four nights with history give the matrix of one batch, to 1e-10."""
    C, W, K, V = problem(20)
    current = W
    for start in range(0, 20, 5):
        part = slice(start, start + 5)
        current = night(C, current, (K[:, part], V[:, part]), K[:, :start])
    torch.testing.assert_close(current, one_batch(C, W, K, V, 2.0), rtol=1e-10, atol=1e-10)


@given(
    nights=st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1)), min_size=1, max_size=6),
    weight=st.floats(0.1, 100),
    seed=st.integers(0, 2**16),
)
def test_any_nights_equal_one_batch_of_what_is_left(
    nights: list[tuple[int, float]], weight: float, seed: int
) -> None:
    """Whatever comes and leaves, and in which nights, the matrix is that of what stays, to 1e-10."""
    C, W, K, V = problem(sum(count for count, _ in nights), seed=seed)
    chance = torch.Generator().manual_seed(seed)
    current, live, first = W, [], 0
    for count, share in nights:
        leaving = [one for one in live if float(torch.rand((), generator=chance)) < share]
        live = [one for one in live if one not in leaving]
        coming = list(range(first, first + count))
        current = night(
            C,
            current,
            (K[:, coming], V[:, coming]),
            K[:, live],
            leaving=(K[:, leaving], V[:, leaving]),
            weight=weight,
        )
        live, first = [*live, *coming], first + count
    wanted = one_batch(C, W, K[:, live], V[:, live], weight)
    assert (current - wanted).norm() <= 1e-10 * (1 + wanted.norm())


def test_forgetting_history_does_not() -> None:
    """The same nights without history end elsewhere: the test above has teeth."""
    C, W, K, V = problem(20)
    current = W
    for start in range(0, 20, 5):
        part = slice(start, start + 5)
        current = night(C, current, (K[:, part], V[:, part]), torch.zeros(D_K, 0))
    assert (current - one_batch(C, W, K, V, 2.0)).abs().max() > 0.1


def test_leaving_equals_never_having_been_there() -> None:
    """Write ten, take three out: the matrix of the other seven."""
    C, W, K, V = problem(10)
    both = night(C, W, (K, V), torch.zeros(D_K, 0))
    nothing = (torch.zeros(D_K, 0, dtype=torch.float64), torch.zeros(D, 0, dtype=torch.float64))
    seven = night(C, both, nothing, K[:, 3:], leaving=(K[:, :3], V[:, :3]))
    torch.testing.assert_close(seven, one_batch(C, W, K[:, 3:], V[:, 3:], 2.0), rtol=1e-10, atol=1e-10)


def test_replacing_equals_the_batch_with_the_new_value() -> None:
    """A replaced value leaves as its new value comes, in one solve."""
    C, W, K, V = problem(6)
    new = V.clone()
    new[:, 0] += 1.0
    first = night(C, W, (K, V), torch.zeros(D_K, 0))
    replaced = night(C, first, (K[:, :1], new[:, :1]), K[:, 1:], leaving=(K[:, :1], V[:, :1]))
    torch.testing.assert_close(replaced, one_batch(C, W, K, new, 2.0), rtol=1e-10, atol=1e-10)


def test_everything_leaves() -> None:
    """Taking out the last edit gives back the unedited matrix."""
    C, W, K, V = problem(4)
    edited = night(C, W, (K, V), torch.zeros(D_K, 0))
    nothing = (torch.zeros(D_K, 0, dtype=torch.float64), torch.zeros(D, 0, dtype=torch.float64))
    torch.testing.assert_close(
        night(C, edited, nothing, torch.zeros(D_K, 0), leaving=(K, V)), W, rtol=1e-10, atol=1e-10
    )


def test_one_edit_is_romes_direction() -> None:
    """One edit in one layer changes W along C⁻¹k, as ROME does; as λ falls it becomes ROME's equality."""
    C, W, K, V = problem(1)
    direction = torch.linalg.solve(C, K)[:, 0]
    rome = (V - W @ K) @ direction[None] / (direction @ K)
    memit = night(C, W, (K, V), torch.zeros(D_K, 0), weight=1e-9) - W
    torch.testing.assert_close(memit, rome, rtol=1e-6, atol=1e-8)
    soft = night(C, W, (K, V), torch.zeros(D_K, 0), weight=2.0) - W
    cosine = torch.nn.functional.cosine_similarity(soft.flatten(), rome.flatten(), dim=0)
    assert cosine > 1 - 1e-10


def test_order_does_not_matter() -> None:
    """Columns may come in any order."""
    C, W, K, V = problem(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    a = night(C, W, (K, V), torch.zeros(D_K, 0))
    b = night(C, W, (K[:, order], V[:, order]), torch.zeros(D_K, 0))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_singular_moments_are_named() -> None:
    """Moments from fewer tokens than a key is wide are refused with the way out."""
    _, W, K, V = problem(2)
    thin = K[:, :1] @ K[:, :1].T
    with pytest.raises(SingularMomentsError, match="too few tokens") as caught:
        night(thin, W, (K, V), torch.zeros(D_K, 0))
    assert caught.value.data == {"minor": 2}


def test_a_night_names_the_layer_and_weight_of_singular_moments(
    lm: LanguageModel, moments: Moments, settings: MemitSettings
) -> None:
    """They are in the error and in its message."""
    empty = Moments(moments.key, {layer: torch.zeros_like(C) for layer, C in moments.matrices.items()})
    history = History(lm, settings, empty, ())
    with pytest.raises(SingularMomentsError, match=r"\(minor 1, layer 2, moment weight 0\.05\)") as caught:
        history.at(2)
    assert caught.value.data == {"minor": 1, "layer": 2, "moment_weight": 0.05}


def test_non_finite_keys_are_named() -> None:
    """A NaN never reaches a weight."""
    C, W, K, V = problem(2)
    K[0, 0] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        night(C, W, (K, V), torch.zeros(D_K, 0))
    assert caught.value.data == {"where": "moments"}


@pytest.mark.parametrize("update", [solve.low_rank_update, solve.dense_update])
@pytest.mark.parametrize(("spoilt", "where"), [("keys", "moments"), ("residuals", "solve")])
def test_what_is_not_finite_names_its_layer(update: Callable[..., object], spoilt: str, where: str) -> None:
    """Keys and values that are not finite: the error says of which layer."""
    C, W, K, V = problem(2)
    R = V - W @ K
    {"keys": K, "residuals": R}[spoilt][0, 0] = torch.nan
    standing = solve.Standing(solve.normal_matrix(C, 2.0, K[:, :0]), layer=3, moment_weight=2.0)
    asked = solve.Exchange(K, R, K[:, :0], R[:, :0], K[:, :0])
    with pytest.raises(NonFiniteError, match=r"finite \(layer 3, moment weight 2\.0\): nothing") as caught:
        update(standing, asked)
    assert caught.value.data == {"where": where, "layer": 3, "moment_weight": 2.0}
