"""The closed form of MEMIT with history, exact and low-rank. Pure: tensors in, tensors out.

With keys K (d_k, n) and values V (d, n) of all live edits, W₀ the unedited matrix and C = E[k kᵀ], the edited
matrix minimises  λ tr((W - W₀) C (W - W₀)ᵀ) + Σ_live ‖W k - v‖²  (Meng et al. 2022, eq. 14, with λC for C₀):

    (W - W₀) A = Σ_live (v - W₀ k) kᵀ,      A = λC + Σ_live k kᵀ.

Subtracting the same equation of the night before gives tonight's change, from which W₀ has dropped out:

    Δ = (R₊ K₊ᵀ - R₋ K₋ᵀ) A⁻¹,   R₊ = V₊ - W K₊ of the edits that come,   R₋ = V₋ - W K₋ of those that leave.

So n nights equal one batch, and leaving equals never having been there, exactly for keys that are kept as
they were measured. With no history and nothing leaving it is the paper's Δ = R Kᵀ (λC + K Kᵀ)⁻¹.

What stands all night, M = λC + Σ k kᵀ, is factored once a layer (`Standing`); the edits of each pass come in
by the Woodbury identity while they are fewer than a key is wide. Of few keys the change is two factors, of
many a matrix (`dense_update`).

| symbol | shape | meaning |
|---|---|---|
| C | (d_k, d_k) | uncentred second moment of keys |
| K | (d_k, n) | keys, one a column |
| R | (d, n) | residuals |
| left, right | (d, n), (n, d_k) | Δ = left @ right |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editor.errors import NonFiniteError, SingularMomentsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor


class Standing:
    """M = λC + Σ k kᵀ of the edits that stay, factored once for all solves of a night.

    While fewer keys come than a key is wide, (M + K Kᵀ)⁻¹ follows from M⁻¹ by a system of n equations
    (Woodbury); otherwise M + K Kᵀ is factored itself.

    Args:
        M: see `normal_matrix`.
        known: what an error is to tell of this solve, such as its layer and λ.

    Raises:
        SingularMomentsError: M is not positive definite.
        NonFiniteError: an entry is not finite.
    """

    def __init__(self, M: Float[Tensor, "d_k d_k"], **known: object) -> None:
        self.known = known
        self._lower = factor(M, **known)

    def beside(self, *keys: Float[Tensor, "d_k n"]) -> Float[Tensor, "d_k d_k"]:
        """Return the lower Cholesky factor of M + Σ J Jᵀ over some sets of keys."""
        A = self._lower @ self._lower.T
        for J in keys:
            A.addmm_(J, J.T)
        return factor(A, **self.known)

    def solve(
        self,
        K: Float[Tensor, "d_k n"],
        others: Float[Tensor, "d_k m"],
        *,
        held: Float[Tensor, "d_k h"],
    ) -> tuple[Float[Tensor, "d_k n"], Float[Tensor, "d_k m"]]:
        """Return A⁻¹ K and A⁻¹ others for A = M + K Kᵀ + held heldᵀ, in float64."""
        lower, n = self._lower, K.shape[1]
        J = torch.cat([K, held], dim=1)
        if J.shape[1] >= len(lower):
            solved = torch.cholesky_solve(torch.cat([K, others], dim=1), self.beside(J))
            return solved[:, :n], solved[:, n:]
        MJ = torch.cholesky_solve(J, lower)
        one = torch.eye(J.shape[1], dtype=J.dtype, device=J.device)
        small = factor(one + J.T @ MJ, **self.known)
        # A⁻¹J = M⁻¹J (I + JᵀM⁻¹J)⁻¹, and A⁻¹B = M⁻¹B - A⁻¹J JᵀM⁻¹B.
        AJ = torch.cholesky_solve(MJ.T, small).T
        MB = torch.cholesky_solve(others, lower)
        return AJ[:, :n], MB - AJ @ (J.T @ MB)


@dataclass(frozen=True, slots=True)
class Exchange:
    """What one solve changes beside what stands all night.

    Attributes:
        coming: K₊, (d_k, n).
        coming_residuals: R₊, (d, n).
        leaving: K₋, (d_k, m).
        leaving_residuals: R₋, (d, m).
        held: further keys that stand in this solve, and whose values the weights hold, (d_k, h).
    """

    coming: Float[Tensor, "d_k n"]
    coming_residuals: Float[Tensor, "d n"]
    leaving: Float[Tensor, "d_k m"]
    leaving_residuals: Float[Tensor, "d m"]
    held: Float[Tensor, "d_k h"]


def low_rank_update(
    standing: Standing, asked: Exchange
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r d_k"]]:
    """Solve for tonight's weight change.

    Args:
        standing: λC and keys that stand all night.
        asked: what comes and leaves.

    Returns:
        The two factors of Δ, in float64.

    Raises:
        SingularMomentsError: λC + Σ k kᵀ is not positive definite.
        NonFiniteError: the solution is not finite.
    """
    AK, AL = standing.solve(asked.coming.double(), asked.leaving.double(), held=asked.held.double())
    left = torch.cat([asked.coming_residuals.double(), -asked.leaving_residuals.double()], dim=1)
    right = torch.cat([AK, AL], dim=1).T
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise _not_finite("The weight change is", "solve", standing.known)
    return left, right


def dense_update(standing: Standing, asked: Exchange) -> Float[Tensor, "d d_k"]:
    """Return what `low_rank_update` returns, multiplied out: for more keys than factors are worth.

    No matrix of the keys' number is solved for, which is what a batch of thousands would need memory for.
    """
    K, L = asked.coming.double(), asked.leaving.double()
    A = standing.beside(K, asked.held.double())
    right_hand = asked.coming_residuals.double() @ K.T - asked.leaving_residuals.double() @ L.T
    change = torch.cholesky_solve(right_hand.T, A).T
    if not torch.isfinite(change).all():
        raise _not_finite("The weight change is", "solve", standing.known)
    return change


def normal_matrix(
    C: Float[Tensor, "d_k d_k"], moment_weight: float, keys: Float[Tensor, "d_k n"]
) -> Float[Tensor, "d_k d_k"]:
    """Return A = λC + K Kᵀ in float64."""
    A = C.double() * moment_weight
    A += keys.double() @ keys.double().T
    return A


def factor(A: Float[Tensor, "d_k d_k"], **known: object) -> Float[Tensor, "d_k d_k"]:
    """Return the lower Cholesky factor of the normal matrix.

    Args:
        A: the matrix.
        known: what an error is to tell of it.

    Raises:
        NonFiniteError: an entry is not finite.
        SingularMomentsError: not positive definite.
    """
    if not torch.isfinite(A).all():
        raise _not_finite("The second moments or keys are", "moments", known)
    lower: Tensor
    lower, info = torch.linalg.cholesky_ex(A)
    if int(info) != 0:
        known = {"minor": int(info), **known}
        raise SingularMomentsError(
            f"λC + Σ k kᵀ is not positive definite{_told(known)}: the second moments come from too few "
            "tokens, or λ is not positive; compute them from at least twice as many tokens as a key is wide.",
            **known,
        )
    return lower


def _not_finite(what: str, where: str, known: Mapping[str, object]) -> NonFiniteError:
    return NonFiniteError(f"{what} not finite{_told(known)}: nothing was written.", where=where, **known)


def _told(known: Mapping[str, object]) -> str:
    inside = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in known.items())
    return f" ({inside})" if inside else ""
