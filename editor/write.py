"""Writing keys and values into the weights: one solve a layer, beside everything that must stay.

A night has one `History`, which every solve of that night shares: λC, the keys of live edits, and the
guards, which are other subjects' keys held at what the unedited model makes of them. A writer adds what else
is in one solve: edits that come, those that leave, and the guards on their subjects. It writes one layer at
a time while target states are placed (`Writer.write`), and all of them where keys and values are known
(`write_states`): by the algebra of `editor.solve` that gives the same weights without running the model.

A state may count more than once in the solve, and be exchanged for one that pulls the weights alike
(`reweighed`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from editor import delta as deltas
from editor import solve
from editor.allocator import give_back_freed_memory
from editor.delta import Delta, Dense, LowRank
from editor.errors import StateMismatchError
from editor.state import keys_of, stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.state import SubjectState

    KeysAndValues = tuple[Float[Tensor, "d_k n"], Float[Tensor, "d n"]]

_AT_ONCE = 256
"""Of how many live states keys are gathered at a time: all keys of years may not fit."""


def write_states(
    lm: LanguageModel,
    states: Sequence[SubjectState],
    *,
    settings: MemitSettings,
    moments: Moments,
) -> Delta:
    """Write stored keys and values, in one solve a layer and without running the model.

    Args:
        lm: the model; its weights are edited on return and untouched on any exception or interrupt.
        states: what comes.
        settings: layers and weights of the solve.
        moments: second moments of keys of the unedited model.

    Returns:
        The change, as added to the model.

    Raises:
        MomentsError: the moments belong to another model or are singular.
        StateError: a stored state does not fit.
        NonFiniteError: a change is not finite.
    """
    check_fit(states, settings, lm)
    moments.require(lm, settings.layers)
    return write_beside(History(lm, settings, moments, (), changing=_labels(states)), states)


def write_beside(
    history: History,
    states: Sequence[SubjectState],
    *,
    retired: Sequence[SubjectState] = (),
) -> Delta:
    """Write stored keys and values beside a night's history, and take others out; see `write_states`."""
    lm, layers = history.lm, history.lm.layers
    writer = Writer(history, retired=retired, coming=[state.label for state in states])
    changes: dict[str, LowRank | Dense] = {}
    with restored_on_failure(lm, history.settings.layers):
        for layer in history.settings.layers:
            keys, values = stack(states, layer, d=layers.d, d_k=layers.d_k, device=lm.device)
            changes[layers.weight_name(layer)] = writer.write(layer, keys, values)
    return Delta(changes)


class History:
    """What all solves of a night share, added up and factored once a layer: λC, live edits, and guards.

    Args:
        lm: the model whose weights are written.
        settings: layers and weights of the solve.
        moments: second moments of keys of the unedited model, and guards.
        live: states that the weights hold and that neither come nor leave tonight.
        changing: texts of the subjects that come or leave: guards on them are the writers'.

    Attributes:
        labels: casefolded texts of the live subjects.
        guards: all guards.
    """

    def __init__(
        self,
        lm: LanguageModel,
        settings: MemitSettings,
        moments: Moments,
        live: Sequence[SubjectState],
        *,
        changing: Iterable[str] = (),
    ) -> None:
        self.lm, self.settings, self.moments = lm, settings, moments
        self.labels, self._changing = _labels(live), frozenset(text.casefold() for text in changing)
        self.guards = _Guards(lm, settings, moments)
        self._live = live
        self._standing: dict[int, solve.Standing] = {}

    @property
    def unsettled(self) -> list[int]:
        """The guards that stand aside all night, or may change: those on subjects that are or were edited."""
        return self.guards.on(self.labels | self._changing)

    def at(self, layer: int) -> solve.Standing:
        """Return the part of one layer's solve that stands all night."""
        if layer not in self._standing:
            guards, _ = self.guards.at(layer, self.guards.but(self.unsettled))
            C = self.moments.layer(layer, self.lm.device)
            weight = self.settings.moment_weight
            M = solve.normal_matrix(C, weight, guards)
            for first in range(0, len(self._live), _AT_ONCE):
                keys = self.keys(self._live[first : first + _AT_ONCE], layer)
                M.addmm_(keys, keys.T)
            self._standing[layer] = solve.Standing(M, layer=layer, moment_weight=weight)
        return self._standing[layer]

    def keys(self, states: Sequence[SubjectState], layer: int) -> Float[Tensor, "d_k n"]:
        """Return keys of states at one layer, a column each, in float64."""
        return keys_of(states, layer, d_k=self.lm.layers.d_k, device=self.lm.device)

    def stack(self, states: Sequence[SubjectState], layer: int) -> KeysAndValues:
        """Return keys and values of states at one layer, a column each, in float64."""
        layers = self.lm.layers
        return stack(states, layer, d=layers.d, d_k=layers.d_k, device=self.lm.device)


class Writer:
    """One solve a layer, beside a night's history.

    Args:
        history: what stands all night.
        live: further states that the weights hold and keep.
        retired: states that the weights hold and lose.
        coming: texts of the subjects that are written.
    """

    def __init__(
        self,
        history: History,
        *,
        live: Sequence[SubjectState] = (),
        retired: Sequence[SubjectState] = (),
        coming: Sequence[str] = (),
    ) -> None:
        self._history, self._live, self._retired = history, live, retired
        kept = history.labels | _labels(live)
        before = kept | _labels(retired)
        after = kept | {text.casefold() for text in coming}
        subjects = history.guards.subjects
        aside_before = {number for number in history.unsettled if subjects[number] in before}
        aside_after = {number for number in history.unsettled if subjects[number] in after}
        # A guard whose subject is retracted comes back; one whose subject is edited for the first time
        # steps aside.
        self._back = sorted(aside_before - aside_after)
        self._aside = sorted(aside_after - aside_before)
        self._staying = sorted(set(history.unsettled) - aside_before - aside_after)

    @property
    def settings(self) -> MemitSettings:
        """Layers and weights of the solve."""
        return self._history.settings

    def span(self, layer: int) -> Float[Tensor, "n d_k"]:
        """Return P = Kᵀ A⁻¹ for the keys of `live`: when their values change by U, W does by U P."""
        history = self._history
        own = history.keys(self._live, layer)
        staying, _ = history.guards.at(layer, self._staying)
        solved, _ = history.at(layer).solve(own, own[:, :0], held=staying)
        return solved.T.float()

    def write(
        self, layer: int, keys: Float[Tensor, "d_k n"], values: Float[Tensor, "d n"]
    ) -> LowRank | Dense:
        """Solve one layer for W k = v beside all that stays, and add the change to its weight.

        Args:
            layer: which.
            keys: K₊, one a column.
            values: V₊.

        Returns:
            The change, as added, in its smaller form.
        """
        history, lm = self._history, self._history.lm
        weight = lm.layers.matrix(lm.model, layer)
        W = weight.double()
        live = history.keys(self._live, layer)
        leaving, leaving_values = history.stack(self._retired, layer)
        staying, _ = history.guards.at(layer, self._staying)
        back, aside = history.guards.at(layer, self._back), history.guards.at(layer, self._aside)
        # What the weights hold already asks for no change; a guard that comes back is one more edit, one
        # that steps aside is one that leaves.
        held = torch.cat([live, staying], dim=1)
        K = torch.cat([keys.double(), back[0]], dim=1)
        V = torch.cat([values.double(), back[1]], dim=1)
        leaving = torch.cat([leaving, aside[0]], dim=1)
        leaving_values = torch.cat([leaving_values, aside[1]], dim=1)
        few = deltas.factors_pay(K.shape[1] + leaving.shape[1], *W.shape)
        asked = solve.Exchange(K, V - W @ K, leaving, leaving_values - W @ leaving, held)
        change = (
            LowRank.rounded(*solve.low_rank_update(history.at(layer), asked))
            if few
            else Dense(solve.dense_update(history.at(layer), asked).float())
        )
        deltas.add(weight, change.dense())
        give_back_freed_memory()  # of the solve
        return change


def reweighed(
    lm: LanguageModel,
    states: Sequence[SubjectState],
    weight: float,
    *,
    set_at: float = 0.0,
    keys: Mapping[int, Sequence[Float[Tensor, "m d_k"]]] | None = None,
    shares: Sequence[float] | None = None,
) -> list[SubjectState]:
    """Return states that pull the weights as these do, counted otherwise or from other keys.

    By the normal equations, weights are where λ C holds against the pulls Σ e kᵀ, with e = w (v - W k) what
    the solve leaves of a value that counts w times. With e as it is, v' = W k' + e / w', and where the keys
    stay as they are, so do the weights.

    Args:
        lm: the model with the states written.
        states: any.
        weight: w'.
        set_at: λ of the solve that wrote them, for states that are to count more than once.
        keys: k' by layer, of each state; None for those of the states.
        shares: of each state's pull, how much is kept; None for all.
    """
    if not states:
        return []
    counts = torch.tensor([len(next(iter(state.keys.values()))) for state in states])

    def by_key(numbers: Sequence[float]) -> Float[Tensor, "n 1"]:
        return torch.tensor(numbers, dtype=torch.float64).repeat_interleave(counts)[:, None].to(lm.device)

    old, new = by_key([state.weight**0.5 for state in states]), weight**0.5
    share = by_key([1.0] * len(states) if shares is None else shares)
    new_keys: dict[int, tuple[Tensor, ...]] = {}
    new_values: dict[int, tuple[Tensor, ...]] = {}
    for layer in states[0].keys:
        W = lm.layers.matrix(lm.model, layer).double()
        K, V = stack(states, layer, d=lm.layers.d, d_k=lm.layers.d_k, device=lm.device)
        pull = share * old * (V.T - K.T @ W.T)
        k = K.T / old if keys is None else torch.cat([*keys[layer]]).double().to(lm.device)
        new_keys[layer] = torch.split((new * k).float().cpu(), counts.tolist())
        new_values[layer] = torch.split((new * k @ W.T + pull / new).float().cpu(), counts.tolist())
    return [
        replace(
            state,
            keys={layer: own[number] for layer, own in new_keys.items()},
            values={layer: own[number] for layer, own in new_values.items()},
            weight=weight,
            moment_weight=set_at,
        )
        for number, state in enumerate(states)
    ]


@contextmanager
def restored_on_failure(
    lm: LanguageModel, layers: Sequence[int]
) -> Iterator[Mapping[int, Float[Tensor, "d d_k"]]]:
    """Put the written weights back bit for bit if the body does not end well.

    Args:
        lm: the model.
        layers: layers that the body may write.

    Yields:
        Their weights as they were.
    """
    saved = deltas.copies(lm, layers)
    try:
        yield saved
    except BaseException:
        deltas.put_back(lm, saved)
        raise


def check_fit(states: Sequence[SubjectState], settings: MemitSettings, lm: LanguageModel) -> None:
    """Refuse layers that the model does not have, and states that do not fit them.

    Raises:
        MethodError: the model has no such layers.
        StateMismatchError: a layer is missing, has another shape, or is not edited.
    """
    settings.require(lm)
    for state in states:
        for layer in sorted({*settings.layers, *state.keys}):
            keys, values = state.keys.get(layer), state.values.get(layer)
            if (
                layer not in settings.layers
                or keys is None
                or values is None
                or keys.shape != (len(values), lm.layers.d_k)
                or values.shape[1] != lm.layers.d
            ):
                raise StateMismatchError(
                    f"The stored state of subject {state.subject_id!r} has layers {sorted(state.keys)} and "
                    f"does not fit layer {layer} of {list(settings.layers)}: rebuild from the base model.",
                    subject_id=state.subject_id,
                    layer=layer,
                )


def _labels(states: Iterable[SubjectState]) -> frozenset[str]:
    return frozenset(state.label.casefold() for state in states)


class _Guards:
    """The guards of a model, weighted as the solve counts them.

    Args:
        lm: the model.
        settings: λ.
        moments: which carry them.

    Attributes:
        subjects: casefolded text of each guard's subject.
    """

    def __init__(self, lm: LanguageModel, settings: MemitSettings, moments: Moments) -> None:
        self._guards, self._lm = moments.guards, lm
        self.subjects = [text.casefold() for text in moments.guards.subjects] if moments.guards else []
        share = settings.moment_weight * moments.key.guard_share
        self._root = (share / max(1, len(self.subjects))) ** 0.5  # of its weight, where an edit has 1

    def on(self, subjects: frozenset[str]) -> list[int]:
        """Return the guards on some subjects, given as casefolded texts."""
        return [number for number, subject in enumerate(self.subjects) if subject in subjects]

    def but(self, some: Sequence[int]) -> list[int]:
        """Return all guards but some."""
        return sorted(set(range(len(self.subjects))) - set(some))

    def at(self, layer: int, some: Sequence[int]) -> KeysAndValues:
        """Return keys and values of some guards at one layer, a column each, in float64."""
        if self._guards is None:
            layers = self._lm.layers
            return stack((), layer, d=layers.d, d_k=layers.d_k, device=self._lm.device)
        keys, values = self._guards.keys[layer][some], self._guards.values[layer][some]
        device = self._lm.device
        return (self._root * keys.double()).T.to(device), (self._root * values.double()).T.to(device)
