"""MEMIT: mass-editing memory in a transformer (Meng et al., ICLR 2023, arXiv 2210.07229), with history.

The main path (`edit`): tokenise; find target states and write them layer by layer, as the paper does
(`editor.spread`), in the solve of `editor.write`; refine the values that were written, beside those of older
facts that had slipped, and write everything as it is kept, as one change (`editor.settle`).
Weights are put back bit for bit when anything fails on the way.

Differs from the paper:
- All live edits stay in the solve (`editor.solve`), and guards beside them (`editor.write`); from the night
  after, at the keys that they had on the written weights and counted more often (`editor.settle`).
- Contexts are the relation's templates rather than random prefixes, as they stand and again with words left
  out (`editor.wordings.contexts`); every context keeps its own key. Where facts have one template only
  (`editor.methods`), random prefixes stand before it. In other phrasings 200 real names are then said in
  82 % for 67 (benchmarks/RESULTS.md, "Real names").
- What is written is refined on the written weights (`editor.refine`). A target state is optimised while all
  other weights are the old ones, and the write then moves states that it took for fixed: of 74 real
  facts one write leaves 73 % said (docs/log.md).

`MemitSettings.as_reference` brings the paper back.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from editor import targets
from editor.errors import MethodError, SubjectConflictError
from editor.presets import PAPER_KL_TEMPLATE
from editor.requests import plan
from editor.settle import settle, slipped, tonights_part
from editor.spread import spread
from editor.state import SubjectState, depends_on
from editor.write import History, Writer, check_fit, restored_on_failure, reweighed, write_beside

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.delta import Delta
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.progress import Progress
    from editor.requests import EditRequest, Unit


log = logging.getLogger(__name__)

_WEAK_WRITE = 0.5


@dataclass(frozen=True, slots=True)
class UnitReport:
    """How one subject's edit went.

    Attributes:
        subject_id: the caller's name for the subject.
        steps: optimiser steps of its target state.
        loss: mean negative log-likelihood of its targets with the target state in place (nats a token).
        shift: ‖δ‖ / ‖h‖.
        residual: what the write left of ‖δ‖, as a share; before it was refined.
        refined: steps in which its values were refined.
    """

    subject_id: str
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
    search: targets.Search = targets.optimise,
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
        retired: states that leave: of subjects edited again tonight, and of retracted ones. Without history
            none can.
        watched: all live facts of some live subjects. A part of them is asked, drawn anew every night
            (`MemitSettings.ask_older`): where the weights no longer say a fact, its subject is refined with
            tonight's (`MemitSettings.refine_older`).
        prefixes: random contexts for ``contexts="prefixes"``; see `editor.sampling.sample_prefixes`.
        search: finds target states; another one may remember what it found on the same weights.
        progress: called with (stage, done, total).

    Returns:
        The change and the states to keep.

    Raises:
        RequestError: a request cannot be carried out as written.
        MomentsError: the moments belong to another model or are singular.
        StateError: a stored state does not fit.
        MethodError: the model does not have the settings' layers, or a state leaves without history.
        NonFiniteError: a loss or a change is not finite.
        OutOfMemoryError: memory ran out at the smallest batch.
    """
    _check_subjects(requests, live, retired)
    if retired and not settings.history:
        # The residual of a state is its pull only where every later write had it in its solve.
        raise MethodError(
            f"Subject {retired[0].subject_id!r} cannot be taken out without history: rebuild from the base "
            "model without it, or set history to true before it is written.",
            method="memit",
        )
    check_fit((*live, *retired), settings, lm)
    moments.require(lm, settings.layers)
    units = units_of(lm, requests, settings, prefixes)
    older = units_of(lm, tonights_part(watched, requests, retired, settings), settings, prefixes)
    again = slipped(lm, _matched(older, live), settings)
    old = [state for _, state in again]
    leaving = [*retired, *old]
    coming = [unit.requests[0].subject for unit in units]
    history = History(
        lm,
        settings,
        moments,
        _without(live, old) if settings.history else (),
        changing=[*coming, *(state.label for state in leaving)],
    )
    with restored_on_failure(lm, settings.layers) as before:
        raised = reweighed(lm, old, 1.0)  # what counts often would not give way
        writer = Writer(history, live=raised, retired=retired, coming=coming)
        placed = _place(lm, writer, units, settings, search, progress=progress)
        if retired and not units:
            write_beside(history, raised, retired=leaving)
        settled = settle(
            lm,
            history,
            [*units, *(unit for unit, _ in again)],
            [*(state for state, _ in placed), *raised],
            retired=leaving,
            before=before,
            progress=progress,
        )
    reports = tuple(
        replace(report, refined=taken) for (_, report), taken in zip(placed, settled.steps, strict=False)
    )
    _warn_of_weak_writes(reports, settings)
    return EditOutcome(settled.delta, settled.states, reports)


def _without(states: Sequence[SubjectState], some: Sequence[SubjectState]) -> list[SubjectState]:
    left_out = {state.subject_id for state in some}
    return [state for state in states if state.subject_id not in left_out]


def _matched(units: Sequence[Unit], live: Sequence[SubjectState]) -> list[tuple[Unit, SubjectState]]:
    """Return each unit with its live state.

    Raises:
        SubjectConflictError: a subject is not live with these facts.
    """
    by_subject = {state.subject_id: state for state in live}
    found = []
    for unit in units:
        state = by_subject.get(unit.subject_id)
        if state is None or set(state.fact_ids) != set(unit.fact_ids):
            raise SubjectConflictError(
                f"Subject {unit.subject_id!r} is watched with {sorted(unit.fact_ids)}, which are not its "
                "live facts: pass all of them, and its state as live.",
                subject_id=unit.subject_id,
            )
        found.append((unit, state))
    return found


def _place(
    lm: LanguageModel,
    writer: Writer,
    units: Sequence[Unit],
    settings: MemitSettings,
    search: targets.Search,
    *,
    progress: Progress | None,
) -> list[tuple[SubjectState, UnitReport]]:
    """Find target states on the weights as they are, and write them (`editor.spread`)."""
    if not units:
        return []
    done = spread(
        lm,
        units,
        settings,
        lambda layer, K, V, _: writer.write(layer, K, V),
        search=search,
        progress=progress,
    )
    placed = []
    for number, unit in enumerate(units):
        norm, shift = float(done.anchors[number].norm()), float(done.found.shifts[number].norm())
        state = SubjectState(
            unit.subject_id,
            unit.fact_ids,
            {layer: kept[number] for layer, kept in done.keys.items()},
            {layer: kept[number] for layer, kept in done.values.items()},
            depends_on(lm, unit, settings),
            unit.requests[0].subject,
        )
        told = UnitReport(
            unit.subject_id,
            int(done.found.steps[number]),
            float(done.found.losses[number]),
            _ratio(shift, norm),
            float(done.left[number].mean()),
        )
        placed.append((state, told))
    return placed


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
        kl_template=PAPER_KL_TEMPLATE if settings.contexts == "prefixes" and settings.kl_factor else None,
        max_target_tokens=settings.max_target_tokens,
        endings=settings.end_weight > 0,
    )


def _check_subjects(
    requests: Sequence[EditRequest], live: Sequence[SubjectState], retired: Sequence[SubjectState]
) -> None:
    asked = {request.subject_id for request in requests}
    given = Counter(state.subject_id for state in (*live, *retired))
    wrong = [state.subject_id for state in live if state.subject_id in asked]
    wrong += [subject for subject, count in given.items() if count > 1]
    if wrong:
        raise SubjectConflictError(
            f"Subject {wrong[0]!r} is live and edited, or given twice: pass its old state once, as retired.",
            subject_id=wrong[0],
        )


def _warn_of_weak_writes(reports: Sequence[UnitReport], settings: MemitSettings) -> None:
    """Say so where most of a batch is neither written nor won back: a wrong λ is silent otherwise."""
    if not reports:
        return
    left = median(report.residual for report in reports)
    if left > _WEAK_WRITE and median(report.refined for report in reports) >= settings.refine_steps:
        log.warning(
            "the write left %.0f%% of the wanted shift: the moment weight is too large for these keys; "
            "calibrate",
            100 * left,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else 0.0
