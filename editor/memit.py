"""MEMIT: mass-editing memory in a transformer (Meng et al., ICLR 2023, arXiv 2210.07229), with history.

The main path: tokenise, find target states, then for each layer measure keys, spread what is left of the
residual over the layers that remain, solve, write. Weights are put back bit for bit when anything fails on
the way.

Differs from the paper: all live edits stay in the solve (`editor.solve`); contexts are the relation's
templates rather than random prefixes; every context keeps its own key. `MemitSettings.as_reference` brings
the paper back.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from editor import delta as deltas
from editor import solve, targets
from editor.delta import Delta, LowRank
from editor.errors import StateMismatchError, SubjectConflictError
from editor.keys import KeyReader
from editor.requests import Unit, plan
from editor.state import SubjectState, digest_of, stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.requests import EditRequest

    Progress = Callable[[str, int, int], None]

log = logging.getLogger(__name__)

_WEAK_WRITE = 0.5
_PAPER_KL_TEMPLATE = "{} is a"


@dataclass(frozen=True, slots=True)
class UnitReport:
    """How one subject's edit went.

    Attributes:
        subject_id: the caller's name for the subject.
        fact_ids: its facts.
        steps: optimiser steps of its target state.
        loss: mean negative log-likelihood of its targets with the target state in place (nats a token).
        shift: ‖δ‖ / ‖h‖.
        residual: what the write left of ‖δ‖, as a share.
    """

    subject_id: str
    fact_ids: tuple[str, ...]
    steps: int
    loss: float
    shift: float
    residual: float


@dataclass(frozen=True, slots=True)
class EditOutcome:
    """What an edit did.

    Attributes:
        delta: the weight change, as added to the model.
        states: one state a subject, to be kept as live.
        reports: one a subject, in the order of `states`.
    """

    delta: Delta
    states: tuple[SubjectState, ...]
    reports: tuple[UnitReport, ...]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which key columns belong to which unit.

    Attributes:
        texts: token ids of all columns, unit after unit.
        owner: unit of each column.
        first: index of each unit's first column.
    """

    texts: list[tuple[int, ...]]
    owner: Tensor
    first: Tensor


def edit(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    settings: MemitSettings,
    moments: Moments,
    live: Sequence[SubjectState] = (),
    retired: Sequence[SubjectState] = (),
    prefixes: Sequence[str] = (),
    progress: Progress | None = None,
) -> EditOutcome:
    """Write facts into the weights, and take retired ones out, in one solve a layer.

    Args:
        lm: the model; its weights are edited on return and untouched on any exception or interrupt.
        requests: all live facts of every subject that changes tonight; may be empty when only `retired`
            leave.
        settings: how to edit.
        moments: second moments of keys of the unedited model.
        live: states of all live subjects, without those that are edited or retired tonight.
        retired: states that leave: of subjects edited again tonight, and of retracted ones.
        prefixes: random contexts for ``contexts="prefixes"``; see `editor.moments.sample_prefixes`.
        progress: called with (stage, done, total).

    Returns:
        The change and the states to keep.

    Raises:
        RequestError: a request cannot be carried out as written.
        MomentsError: the moments belong to another model or are singular.
        StateError: a stored state does not fit.
        NonFiniteError: a loss or a change is not finite.
    """
    _check_subjects(requests, live)
    _check_layers((*live, *retired), settings, lm)
    moments.require(lm, settings.layers)
    units = plan(
        lm,
        requests,
        prefixes=prefixes,
        kl_template=_PAPER_KL_TEMPLATE if settings.contexts == "prefixes" else None,
        max_target_tokens=settings.max_target_tokens,
    )
    columns = _columns(units, lm.device)
    reader = KeyReader(
        lm, columns.texts, settings.layers, batch_tokens=8 * settings.tokens_at_once(lm.device)
    )
    duty = _GuardDuty.of(moments, settings, units, live if settings.history else (), retired)
    found = _Found.start(lm, reader, units, columns, settings=settings, progress=progress)
    history = live if settings.history else ()
    changes: dict[str, LowRank] = {}
    with restored_on_failure(lm, settings.layers):
        for number, layer in enumerate(settings.layers):
            keys, states = found.measure(number, layer)
            residuals = (found.wanted - states) / (len(settings.layers) - number)
            changes[lm.layers.weight_name(layer)] = _write(
                lm,
                layer,
                keys,
                residuals,
                found,
                settings=settings,
                moments=moments,
                live=history,
                retired=retired,
                duty=duty,
            )
            if progress is not None:
                progress("write", number + 1, len(settings.layers))
        left_over = found.left_over(settings.layers[-1])
    return EditOutcome(
        Delta.of(changes),
        tuple(found.state(number, lm, settings) for number in range(len(units))),
        _report(units, found, left_over),
    )


@contextmanager
def restored_on_failure(lm: LanguageModel, layers: Sequence[int]) -> Iterator[None]:
    """Put the written weights back bit for bit if the body does not end well.

    Args:
        lm: the model.
        layers: layers that the body may write.
    """
    saved = {layer: lm.layers.matrix(lm.model, layer).clone() for layer in layers}
    try:
        yield
    except BaseException:
        for layer, weight in saved.items():
            lm.layers.matrix(lm.model, layer).copy_(weight)
        raise


@dataclass(frozen=True, slots=True)
class _GuardDuty:
    """Which guards stand tonight: all but those on subjects that are edited.

    Attributes:
        staying: guards that stand before and after tonight.
        coming_back: guards whose subject is retracted tonight.
        stepping_aside: guards whose subject is edited for the first time tonight.
        weight: √ of a guard's weight in the solve, where an edit has 1.
    """

    staying: list[int]
    coming_back: list[int]
    stepping_aside: list[int]
    weight: float

    @classmethod
    def of(
        cls,
        moments: Moments,
        settings: MemitSettings,
        units: Sequence[Unit],
        live: Sequence[SubjectState],
        retired: Sequence[SubjectState],
    ) -> _GuardDuty:
        """Compare the subjects edited before tonight with those edited after."""
        guards = moments.guards
        if guards is None:
            return cls([], [], [], 0.0)
        kept = {state.label.casefold() for state in live}
        before = kept | {state.label.casefold() for state in retired}
        after = kept | {unit.requests[0].subject.casefold() for unit in units}
        duty = cls(
            [], [], [], (settings.moment_weight * moments.key.guard_share / len(guards.subjects)) ** 0.5
        )
        for index, subject in enumerate(guards.subjects):
            stood, stands = subject.casefold() not in before, subject.casefold() not in after
            if stood and stands:
                duty.staying.append(index)
            elif stands:
                duty.coming_back.append(index)
            elif stood:
                duty.stepping_aside.append(index)
        return duty

    def at(
        self, moments: Moments, layer: int, d: int, device: torch.device
    ) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return weighted keys (d_k, n) and values (d, n) of the three groups at one layer, in float64."""
        if moments.guards is None:
            d_k = moments.matrices[layer].shape[0]
            nothing = torch.zeros(d_k, 0, dtype=torch.float64, device=device)
            return ((nothing, torch.zeros(d, 0, dtype=torch.float64, device=device)),) * 3
        keys, values = moments.guards.keys[layer], moments.guards.values[layer]
        return tuple(
            (
                (self.weight * keys[group].double()).T.to(device),
                (self.weight * values[group].double()).T.to(device),
            )
            for group in (self.staying, self.coming_back, self.stepping_aside)
        )


class _Found:
    """Target states and what was measured on the way to them."""

    def __init__(
        self,
        reader: KeyReader | None,
        units: Sequence[Unit],
        columns: _Columns,
        *,
        mean_keys: bool,
        d: int,
        d_k: int,
    ) -> None:
        self.units = units
        self._reader, self._columns = reader, columns
        self._mean = mean_keys
        self._d, self._d_k = d, d_k
        self._first_keys = columns.owner.new_zeros((0, d_k), dtype=torch.float32)
        self.owner = columns.owner
        self.wanted: Float[Tensor, "n d"] = columns.owner.new_zeros((0, d), dtype=torch.float32)
        self.before = self.wanted
        self.targets: targets.Targets | None = None
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    @classmethod
    def start(
        cls,
        lm: LanguageModel,
        reader: KeyReader,
        units: Sequence[Unit],
        columns: _Columns,
        *,
        settings: MemitSettings,
        progress: Progress | None,
    ) -> _Found:
        """Measure the unedited states and optimise the target states."""
        found = cls(
            reader if units else None,
            units,
            columns,
            mean_keys=settings.keys == "mean",
            d=lm.layers.d,
            d_k=lm.layers.d_k,
        )
        if not units:
            return found
        found._first_keys, states = reader.read(settings.layers[0])

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress("targets", done, total)

        found.targets = targets.optimise(lm, units, states[columns.first], settings, progress=report)
        found.before = found._reduce(states.float(), first=True)
        found._first_keys = found._reduce(found._first_keys.float())
        if found._mean:
            found.owner = torch.arange(len(units), device=lm.device)
        found.wanted = found.before + found.targets.shifts[found.owner]
        return found

    def measure(self, number: int, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys at a layer and states at the last one, both as they are now, one row a column."""
        if self._reader is None:
            return self._first_keys, self.before
        if number == 0:
            return self._first_keys, self.before
        keys, states = self._reader.read(layer)
        return self._reduce(keys.float()), self._reduce(states.float(), first=True)

    def left_over(self, last: int) -> Tensor:
        """Return ‖z - h‖ / ‖z - h₀‖ of every row after the write."""
        if self._reader is None:
            return self.wanted.new_zeros(0)
        _, states = self._reader.read(last)
        now = self._reduce(states.float(), first=True)
        wanted_shift: Tensor = (self.wanted - self.before).norm(dim=1)
        left: Tensor = (self.wanted - now).norm(dim=1)
        return left / wanted_shift.clamp(min=1e-12)

    def _reduce(self, rows: Tensor, *, first: bool = False) -> Tensor:
        """Average a unit's columns as the reference does: half the bare one, half the mean of the others."""
        if not self._mean:
            return rows
        count = len(self.units)
        own = rows[self._columns.first]
        if first:
            return own
        sizes = torch.bincount(self._columns.owner, minlength=count)
        total = rows.new_zeros(count, rows.shape[1]).index_add(0, self._columns.owner, rows)
        others = (total - own) / (sizes - 1).clamp(min=1)[:, None]
        return torch.where(sizes[:, None] > 1, 0.5 * own + 0.5 * others, own)

    def state(self, number: int, lm: LanguageModel, settings: MemitSettings) -> SubjectState:
        """Return what is to be kept of one unit."""
        unit = self.units[number]
        rows = (self.owner == number).nonzero().squeeze(1)
        return SubjectState(
            unit.subject_id,
            unit.fact_ids,
            self.wanted[rows].cpu(),
            {layer: keys[rows].cpu() for layer, keys in self.keys.items()},
            {layer: values[rows].cpu() for layer, values in self.values.items()},
            depends_on(lm, unit, settings),
            unit.requests[0].subject,
        )


def depends_on(lm: LanguageModel, unit: Unit, settings: MemitSettings) -> str:
    """Return the digest of all that a unit's target state is made from, but for the edits live then."""
    rows = [[list(row.ids), row.lookup, list(row.labels)] for row in unit.rows]
    return digest_of({"model": lm.digest, "rows": rows, "settings": settings.to_json()})


def _write(
    lm: LanguageModel,
    layer: int,
    keys: Float[Tensor, "n d_k"],
    residuals: Float[Tensor, "n d"],
    found: _Found,
    *,
    settings: MemitSettings,
    moments: Moments,
    live: Sequence[SubjectState],
    retired: Sequence[SubjectState],
    duty: _GuardDuty,
) -> LowRank:
    """Solve one layer and add the change to its weight."""
    d, d_k, device = lm.layers.d, lm.layers.d_k, lm.device
    weight = lm.layers.matrix(lm.model, layer)
    values = (keys.double() @ weight.double().T).float()
    with torch.no_grad():
        residuals = lm.layers.before_norm(lm.model, layer, values, residuals)
    live_keys, _ = stack(live, layer, d=d, d_k=d_k, device=device)
    leaving, leaving_values = stack(retired, layer, d=d, d_k=d_k, device=device)
    staying, coming_back, stepping_aside = duty.at(moments, layer, d, device)
    leaving = torch.cat([leaving, stepping_aside[0]], dim=1)
    leaving_values = torch.cat([leaving_values, stepping_aside[1]], dim=1)
    back_residuals = coming_back[1] - weight.double() @ coming_back[0]
    left, right = solve.low_rank_update(
        moments.layer(layer, device),
        settings.moment_weight,
        live=torch.cat([live_keys, staying[0]], dim=1),
        coming=torch.cat([keys.T.double(), coming_back[0]], dim=1),
        coming_residuals=torch.cat([residuals.T.double(), back_residuals], dim=1),
        leaving=leaving,
        leaving_residuals=leaving_values - weight.double() @ leaving,
    )
    change = LowRank.rounded(left, right)
    found.keys[layer] = keys
    found.values[layer] = values + residuals
    deltas.add(weight, change.dense())
    return change


def _check_subjects(requests: Sequence[EditRequest], live: Sequence[SubjectState]) -> None:
    asked = {request.subject_id for request in requests}
    seen: set[str] = set()
    for state in live:
        if state.subject_id in asked or state.subject_id in seen:
            raise SubjectConflictError(
                f"Subject {state.subject_id!r} is live and edited (or live twice): pass its old state "
                "as retired.",
                subject_id=state.subject_id,
            )
        seen.add(state.subject_id)


def _check_layers(states: Sequence[SubjectState], settings: MemitSettings, lm: LanguageModel) -> None:
    for state in states:
        for layer in settings.layers:
            keys, values = state.keys.get(layer), state.values.get(layer)
            if (
                keys is None
                or values is None
                or keys.shape != (len(values), lm.layers.d_k)
                or values.shape[1] != lm.layers.d
            ):
                raise StateMismatchError(
                    f"The stored state of subject {state.subject_id!r} does not fit layer {layer} (it has "
                    f"{sorted(state.keys)}): rebuild from the base model.",
                    subject_id=state.subject_id,
                    layer=layer,
                )


def _columns(units: Sequence[Unit], device: torch.device) -> _Columns:
    owner = [number for number, unit in enumerate(units) for _ in unit.columns]
    first = [owner.index(number) for number in range(len(units))]
    return _Columns(
        [column for unit in units for column in unit.columns],
        torch.tensor(owner, dtype=torch.long, device=device),
        torch.tensor(first, dtype=torch.long, device=device),
    )


def _report(units: Sequence[Unit], found: _Found, left_over: Tensor) -> tuple[UnitReport, ...]:
    reports = []
    for number, unit in enumerate(units):
        if found.targets is None:
            break
        rows = found.owner == number
        norm = float(found.before[rows][0].norm())
        reports.append(
            UnitReport(
                unit.subject_id,
                unit.fact_ids,
                int(found.targets.steps[number]),
                float(found.targets.losses[number]),
                float(found.targets.shifts[number].norm()) / norm if norm else 0.0,
                float(left_over[rows].mean()),
            )
        )
    if reports:
        share = sorted(report.residual for report in reports)[len(reports) // 2]
        if share > _WEAK_WRITE:
            log.warning(
                "the write left %.0f%% of the wanted shift: the moment weight is too large for these "
                "keys; calibrate",
                100 * share,
            )
    return tuple(reports)
