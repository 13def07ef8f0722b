"""MEMIT: mass-editing memory in a transformer (Meng et al., ICLR 2023, arXiv 2210.07229), with history.

The main path (`edit`): tokenise; find target states; layer by layer measure keys, spread what is left of the
residual over the layers that remain, solve, write (`_place`); refine the values that were written, beside
those of older facts that have slipped, and then those that refinement moved (`editor.refine`). In the end the
weights are put back and all that changed is written in one solve a layer. Weights are put back bit for bit
when anything fails on the way.

Differs from the paper:
- All live edits stay in the solve (`editor.solve`), and guards beside them (`editor.write`); from the night
  after, at the keys that they had on the written weights and counted more often (`_settled`).
- Contexts are the relation's templates rather than random prefixes; every context keeps its own key. Where
  a fact has one template only, random prefixes stand before it, with words of it left out
  (`editor.requests.thinned`): other wordings of 100 facts are then said in 64 to 67 % for 51
  (benchmarks/RESULTS.md, "Methods").
- What is written is refined on the written weights (`editor.refine`). A target state is optimised while all
  other weights are the old ones, and the write then moves states that it took for fixed: on 74 real facts the
  states put in place say every name, the written weights 73% (docs/log.md).

`MemitSettings.as_reference` brings the paper back.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from editor import delta as deltas
from editor import recall, targets
from editor.chunks import fewer
from editor.errors import SubjectConflictError
from editor.keys import KeyReader
from editor.precision import lowered
from editor.refine import Refined, refine
from editor.requests import Unit, plan
from editor.state import SubjectState, digest_of
from editor.write import History, Writer, check_fit, restored_on_failure, reweighed, write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.delta import Delta
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.requests import EditRequest, Row

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
        residual: what the write left of ‖δ‖, as a share; before it was refined.
        refined: steps in which its values were refined.
    """

    subject_id: str
    fact_ids: tuple[str, ...]
    steps: int
    loss: float
    shift: float
    residual: float
    refined: int = 0


@dataclass(frozen=True, slots=True)
class EditOutcome:
    """What an edit did.

    Attributes:
        delta: the weight change, as added to the model.
        states: to be kept as live, in place of older ones of the same subjects: one a subject that was
            edited, in their order, then one a watched subject that had slipped.
        reports: one a subject that was edited.
    """

    delta: Delta
    states: tuple[SubjectState, ...]
    reports: tuple[UnitReport, ...]


def edit(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    *,
    settings: MemitSettings,
    moments: Moments,
    live: Sequence[SubjectState] = (),
    retired: Sequence[SubjectState] = (),
    watched: Sequence[EditRequest] = (),
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
        watched: all live facts of some live subjects: where the weights no longer say one after tonight's
            write, its subject is refined with tonight's (`MemitSettings.refine_older`).
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
    check_fit((*live, *retired), settings, lm)
    moments.require(lm, settings.layers)
    units = units_of(lm, requests, settings, prefixes)
    older = units_of(lm, watched, settings, prefixes)
    states_of = _matched(older, live)
    history = History(lm, settings, moments, live if settings.history else ())
    with restored_on_failure(lm, settings.layers):
        before = deltas.copies(lm, settings.layers)
        coming = [unit.requests[0].subject for unit in units]
        writer = Writer(history, retired=retired, coming=coming)
        placed = _place(lm, writer, units, settings, progress=progress)
        turn, own = list(units), [one.state for one in placed]
        written: list[SubjectState] = []
        leaving, steps = list(retired), list[int]()
        for number in range(settings.refine_rounds):
            slipped = _slipped(lm, older, settings)
            if number and not slipped:
                break
            log.info("%d of %d older subjects slipped", len(slipped), len(older))
            found = [unit.subject_id for unit in slipped]
            older = [unit for unit in older if unit.subject_id not in found]
            history = history.without(found)
            leaving += [states_of[subject] for subject in found]
            turn, own = [*turn, *slipped], own + [reweighed(lm, states_of[subject], 1.0) for subject in found]
            refined = _refined(lm, Writer(history, live=[*written, *own]), turn, own, progress=progress)
            steps += refined.steps
            own = list(refined.states)
            if settings.hold != 1.0:
                deltas.put_back(lm, before)
                write_beside(history, [*written, *own], retired=leaving)
                own = _settled(lm, turn, own, settings)
            written += own
            deltas.put_back(lm, before)
            delta = write_beside(history, written, retired=leaving)
            turn, own = [], []
    reports = tuple(replace(one.report, refined=taken) for one, taken in zip(placed, steps, strict=False))
    _warn_of_weak_writes(reports)
    return EditOutcome(delta, tuple(written), reports)


def _refined(
    lm: LanguageModel,
    writer: Writer,
    units: Sequence[Unit],
    states: Sequence[SubjectState],
    *,
    progress: Progress | None,
) -> Refined:
    settings = writer.settings
    if not settings.refine_steps or not units:
        return Refined(tuple(states), (0,) * len(states), (0.0,) * len(states))

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("refine", done, total)

    spans = {layer: writer.span(layer, states) for layer in settings.layers}
    return refine(lm, units, states, spans, settings, progress=report)


def _matched(units: Sequence[Unit], live: Sequence[SubjectState]) -> dict[str, SubjectState]:
    """Return the live state of each unit by subject.

    Raises:
        SubjectConflictError: a subject is not live with these facts.
    """
    by_subject = {state.subject_id: state for state in live}
    for unit in units:
        state = by_subject.get(unit.subject_id)
        if state is None or set(state.fact_ids) != set(unit.fact_ids):
            raise SubjectConflictError(
                f"Subject {unit.subject_id!r} is watched with {sorted(unit.fact_ids)}, which are not its "
                "live facts: pass all of them, and its state as live.",
                subject_id=unit.subject_id,
            )
    return by_subject


def _settled(
    lm: LanguageModel, units: Sequence[Unit], states: Sequence[SubjectState], settings: MemitSettings
) -> list[SubjectState]:
    """Return the states as they are kept: at the keys of the written weights, counted `hold` times.

    Keys were measured before the layers below had their last change.
    """
    if not units:
        return []
    columns = _Columns.of(units, lm.device, mean=settings.keys == "mean")
    reader = KeyReader(
        lm, columns.texts, settings.layers, batch_tokens=8 * settings.tokens_at_once(lm.device)
    )
    keys = {layer: columns.mean(reader.read(layer)[0]).cpu() for layer in settings.layers}
    own = [(columns.owner == number).nonzero().squeeze(1).cpu() for number in range(len(units))]
    return [
        replace(
            reweighed(lm, state, settings.hold, keys={layer: rows[chosen] for layer, rows in keys.items()}),
            moment_weight=settings.moment_weight,
        )
        for state, chosen in zip(states, own, strict=True)
    ]


def _slipped(lm: LanguageModel, units: Sequence[Unit], settings: MemitSettings) -> list[Unit]:
    """Return the units that greedy decoding gets wrong on a fact's first prompt, the unlikeliest first.

    They have been said before, and come back with a context a turn.
    """
    if not settings.refine_steps or not settings.refine_older:
        return []
    firsts = [(number, row) for number, unit in enumerate(units) for row in _first_rows(unit)]
    with lowered(lm, settings, start=0):
        rated = recall.rate(lm, [(row.ids, row.first, row.labels) for _, row in firsts])
    worst: dict[int, float] = {}
    for (number, row), rating in zip(firsts, rated, strict=True):
        if not rating.exact or (row.end is not None and not rating.ended):
            worst[number] = min(rating.probability, worst.get(number, 1.0))
    chosen = sorted(worst, key=worst.__getitem__)[: settings.refine_older]
    return [fewer(units[number], settings.turns) for number in chosen]


def _first_rows(unit: Unit) -> list[Row]:
    """Return the first row of each fact."""
    firsts: dict[int, Row] = {}
    for row in unit.rows:
        if row.labels:
            firsts.setdefault(row.fact, row)
    return list(firsts.values())


@dataclass(frozen=True, slots=True)
class _Placed:
    state: SubjectState
    report: UnitReport


def _place(
    lm: LanguageModel,
    writer: Writer,
    units: Sequence[Unit],
    settings: MemitSettings,
    *,
    progress: Progress | None,
) -> list[_Placed]:
    """Find target states on the weights as they are and write them (algorithm 1 of the paper).

    Raises:
        NonFiniteError: a loss or a change is not finite.
    """
    if not units:
        return []

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("targets", done, total)

    columns = _Columns.of(units, lm.device, mean=settings.keys == "mean")
    reader = KeyReader(
        lm, columns.texts, settings.layers, batch_tokens=8 * settings.tokens_at_once(lm.device)
    )
    keys, states = reader.read(settings.layers[0])
    anchors = states[columns.first].float()
    optimised = targets.optimise(lm, units, anchors, settings, progress=report)
    before = columns.own(states)
    z = before + optimised.shifts[columns.owner]  # eq. 16: z = h + δ
    kept_keys: dict[int, Tensor] = {}
    kept_values: dict[int, Tensor] = {}
    for number, layer in enumerate(settings.layers):
        if number:
            keys, states = reader.read(layer)
        K = columns.mean(keys)
        residual = (z - columns.own(states)) / (len(settings.layers) - number)  # eq. 20: spread
        values = (K.double() @ lm.layers.matrix(lm.model, layer).double().T).float()
        with torch.no_grad():
            values = values + lm.layers.before_norm(lm.model, layer, values, residual)
        writer.write(layer, K.T, values.T)
        kept_keys[layer], kept_values[layer] = K.cpu(), values.cpu()
        if progress is not None:
            progress("write", number + 1, len(settings.layers))
    _, states = reader.read(settings.layers[-1])
    left = (z - columns.own(states)).norm(dim=1) / (z - before).norm(dim=1).clamp(min=1e-12)
    placed = []
    for number, unit in enumerate(units):
        rows = (columns.owner == number).nonzero().squeeze(1)
        chosen = rows.cpu()
        norm, shift = float(anchors[number].norm()), float(optimised.shifts[number].norm())
        state = SubjectState(
            unit.subject_id,
            unit.fact_ids,
            {layer: kept[chosen] for layer, kept in kept_keys.items()},
            {layer: kept[chosen] for layer, kept in kept_values.items()},
            depends_on(lm, unit, settings),
            unit.requests[0].subject,
        )
        told = UnitReport(
            unit.subject_id,
            unit.fact_ids,
            int(optimised.steps[number]),
            float(optimised.losses[number]),
            _ratio(shift, norm),
            float(left[rows].mean()),
        )
        placed.append(_Placed(state, told))
    return placed


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which key columns belong to which unit.

    Attributes:
        texts: token ids of all columns, unit after unit.
        text_owner: unit of each text.
        first: index of each unit's first text.
        owner: unit of each column: of each text, or with averaged keys one a unit.
    """

    texts: list[tuple[int, ...]]
    text_owner: Tensor
    first: Tensor
    owner: Tensor

    @classmethod
    def of(cls, units: Sequence[Unit], device: torch.device, *, mean: bool) -> _Columns:
        owner = [number for number, unit in enumerate(units) for _ in unit.columns]
        own = torch.tensor(owner, dtype=torch.long, device=device)
        return cls(
            [column for unit in units for column in unit.columns],
            own,
            torch.tensor([owner.index(number) for number in range(len(units))], device=device),
            torch.arange(len(units), device=device) if mean else own,
        )

    def own(self, rows: Float[Tensor, "texts d"]) -> Float[Tensor, "columns d"]:
        """Return a state a column: a unit's averaged column has that of its first text."""
        return rows.float() if self.owner is self.text_owner else rows[self.first].float()

    def mean(self, rows: Float[Tensor, "texts d_k"]) -> Float[Tensor, "columns d_k"]:
        """Return a key a column; averaged as the reference does: half the bare one, half the others' mean."""
        if self.owner is self.text_owner:
            return rows.float()
        own, sizes = rows[self.first].float(), torch.bincount(self.text_owner)
        total = torch.zeros_like(own).index_add(0, self.text_owner, rows.float())
        others = (total - own) / (sizes - 1).clamp(min=1)[:, None]
        return torch.where(sizes[:, None] > 1, 0.5 * own + 0.5 * others, own)


def units_of(
    lm: LanguageModel, requests: Sequence[EditRequest], settings: MemitSettings, prefixes: Sequence[str]
) -> list[Unit]:
    """Tokenise requests as the settings ask for it.

    Raises:
        RequestError: a request cannot be carried out as written.
    """
    return plan(
        lm,
        requests,
        prefixes=prefixes,
        word_dropout=settings.word_dropout,
        kl_template=_PAPER_KL_TEMPLATE if settings.contexts == "prefixes" else None,
        max_target_tokens=settings.max_target_tokens,
        endings=settings.end_weight > 0,
    )


def depends_on(lm: LanguageModel, unit: Unit, settings: MemitSettings) -> str:
    """Return the digest of all that a unit's target state is made from, but for the edits live then."""
    rows = [[list(row.ids), row.lookup, list(row.labels)] for row in unit.rows]
    return digest_of({"model": lm.digest, "rows": rows, "settings": settings.of_targets()})


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


def _warn_of_weak_writes(reports: Iterable[UnitReport]) -> None:
    left = sorted(report.residual for report in reports)
    share = left[len(left) // 2] if left else 0.0
    if share > _WEAK_WRITE:
        log.warning(
            "the write left %.0f%% of the wanted shift: the moment weight is too large for these keys; "
            "calibrate",
            100 * share,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 0.0
