"""All live facts again, from the base model, in one solve.

The dear part of an edit is finding its target state. What a state depends on (model, prompts, targets, how
they are found) is kept with it as a digest: where that is unchanged, its stored keys and values are written
as they are. The subjects that are left are edited beside them. Then everything is written once more, in one
solve from the base, so that the checkpoint is one change and does not tell in which order it was found.

By the algebra of `editor.solve` the weights are those of the nights it replaces, to rounding. With a larger
λ they stay nearer to the base, and some facts slip; where `refine` is asked for, those are refined, as a
night refines older facts (`editor.refine`). It gives perplexity back: values that nights refined further
than they need to be are written lighter, and only the few that no longer hold are raised again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from editor import delta as deltas
from editor import memit
from editor.state import depends_on
from editor.write import reweighed, write_states

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.delta import Delta
    from editor.memit import UnitReport
    from editor.model import LanguageModel
    from editor.moments import Moments
    from editor.presets import MemitSettings
    from editor.progress import Progress
    from editor.requests import EditRequest
    from editor.state import SubjectState


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made.

    Attributes:
        delta: the change, on the base model.
        states: one a subject, by subject id.
        reused: subjects whose stored state was taken.
        refined: those of them whose state was then refined.
        reports: one a subject that was edited anew.
    """

    delta: Delta
    states: tuple[SubjectState, ...]
    reused: tuple[str, ...]
    refined: tuple[str, ...]
    reports: tuple[UnitReport, ...]


def rebuild(
    base: LanguageModel,
    requests: Sequence[EditRequest],
    stored: Sequence[SubjectState],
    *,
    settings: MemitSettings,
    moments: Moments,
    refine: bool = False,
    as_stored: bool = False,
    prefixes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Rebuilt:
    """Write all live facts into the unedited model.

    Args:
        base: the unedited model; its weights are edited on return and untouched on any exception.
        requests: all live facts; their order does not matter.
        stored: what is kept of their subjects; a state that does not fit any more is passed over.
        settings: how to edit.
        moments: second moments of the model's keys.
        refine: refine the stored states of which, written alone, the weights do not say a fact.
        as_stored: take the stored state of the same facts, whatever it was made from.
        prefixes: random contexts for ``contexts="prefixes"``.
        progress: called with (stage, done, total).

    Returns:
        The change, the states to keep, and which of them are the stored ones.

    Raises:
        RequestError: a request cannot be carried out as written.
        MomentsError: the moments belong to another model or are singular.
        NonFiniteError: a loss or a change is not finite.
        OutOfMemoryError: memory ran out at the smallest batch.
    """
    wanted = in_order(requests, stored)
    kept = unchanged(base, wanted, stored, settings=settings, as_stored=as_stored, prefixes=prefixes)
    reused = {state.subject_id for state in kept}
    changed = [one for one in wanted if one.subject_id not in reused]
    edited: tuple[SubjectState, ...] = ()
    reports: tuple[UnitReport, ...] = ()
    originals = deltas.copies(base, settings.layers)
    try:
        if refine and any(state.moment_weight not in {0.0, settings.moment_weight} for state in kept):
            write_states(base, kept, settings=settings, moments=moments)
            # As they were asked for: a larger λ hardly moves what counts many times.
            shares = [state.moment_weight / settings.moment_weight or 1.0 for state in kept]
            kept = reweighed(base, kept, 1.0, shares=shares)
            deltas.put_back(base, originals)
        if changed or refine:
            write_states(base, kept, settings=settings, moments=moments)
            outcome = memit.edit(
                base,
                changed,
                settings=replace(settings, ask_older=len(kept), refine_older=len(kept)),
                moments=moments,
                live=kept,
                watched=[one for one in wanted if one.subject_id in reused] if refine else (),
                prefixes=prefixes,
                progress=progress,
            )
            edited, reports = outcome.states, outcome.reports
            kept = _counted(base, kept, settings)
    finally:
        deltas.put_back(base, originals)
    found = {state.subject_id: state for state in (*kept, *edited)}
    states = tuple(found[subject] for subject in sorted(found))
    delta = write_states(base, states, settings=settings, moments=moments)
    refined = reused & {state.subject_id for state in edited}
    return Rebuilt(delta, states, tuple(sorted(reused)), tuple(sorted(refined)), reports)


def _counted(
    base: LanguageModel, states: Sequence[SubjectState], settings: MemitSettings
) -> list[SubjectState]:
    """Return states counted as nights count them."""
    once = [state for state in states if state.weight != settings.hold]
    counted = reweighed(base, once, settings.hold, set_at=settings.moment_weight)
    found = {state.subject_id: state for state in (*states, *counted)}
    return list(found.values())


def unchanged(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    stored: Sequence[SubjectState],
    *,
    settings: MemitSettings,
    as_stored: bool = False,
    prefixes: Sequence[str] = (),
) -> list[SubjectState]:
    """Return the stored states that would be made from the same today, by subject id.

    Args:
        lm: the unedited model.
        requests: all live facts, in the order of `in_order`.
        stored: states.
        settings: how to edit.
        as_stored: as in `rebuild`.
        prefixes: as in `rebuild`.
    """
    by_subject = {state.subject_id: state for state in stored}
    units = memit.units_of(lm, requests, settings, prefixes)
    found = ((unit, by_subject.get(unit.subject_id)) for unit in units)
    return [
        state
        for unit, state in found
        if state is not None
        and state.fact_ids == unit.fact_ids
        and tuple(sorted(state.keys)) == settings.layers
        and (as_stored or state.depends == depends_on(lm, unit, settings))
    ]


def in_order(requests: Sequence[EditRequest], stored: Sequence[SubjectState]) -> list[EditRequest]:
    """Sort facts by subject, and a subject's facts as its stored state has them: its digest knows the order.

    Args:
        requests: facts.
        stored: states.
    """
    places = {fact: place for state in stored for place, fact in enumerate(state.fact_ids)}
    return sorted(
        requests, key=lambda one: (one.subject_id, places.get(one.fact_id, len(places)), one.fact_id)
    )
