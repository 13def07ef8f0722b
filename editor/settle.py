"""From states as they were placed to states as they are kept: refine, exchange, write.

Before a night writes anything, older facts are asked (`slipped`), of many subjects a part, drawn anew every
night (`tonights_part`): those that the weights no longer say are refined beside tonight's, on the
weights with tonight's placed, in one descent (`editor.refine`), so that neither is won at the other's
expense. What slips tonight is asked some night after. At the end each state is exchanged for one at the keys
that it has on the written weights, counted `hold` times from then on (`editor.write.reweighed`).

Every write is one of all of the night, on the weights of the night before, so that the night is one change.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editor import delta as deltas
from editor import recall
from editor.allocator import give_back_freed_memory
from editor.batching import tokens_at_once
from editor.digests import digest_of
from editor.drift import Drift
from editor.keys import Columns, KeyReader
from editor.precision import lowered
from editor.refine import Refined, refine
from editor.state import depends_on
from editor.write import Writer, reweighed, write_beside

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.delta import Delta
    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.progress import Progress
    from editor.requests import EditRequest, Row, Unit
    from editor.state import SubjectState
    from editor.write import History


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a night came to.

    Attributes:
        delta: its change, as added to the model.
        states: one a unit, in their order.
        steps: in how many steps each was refined.
    """

    delta: Delta
    states: tuple[SubjectState, ...]
    steps: tuple[int, ...]


def tonights_part(
    watched: Sequence[EditRequest],
    requests: Sequence[EditRequest],
    retired: Sequence[SubjectState],
    settings: MemitSettings,
) -> list[EditRequest]:
    """Return the facts of as many subjects as a night asks, so that its cost does not grow with the nights.

    They are drawn by what comes and leaves tonight: the same night asks the same subjects, and nobody keeps
    count.

    Args:
        watched: all live facts of some live subjects.
        requests: what comes.
        retired: what leaves.
        settings: `ask_older`, how many subjects.
    """
    subjects = {fact.subject_id for fact in watched}
    if len(subjects) > settings.ask_older:
        coming = sorted((fact.fact_id, fact.target) for fact in requests)
        night = digest_of([coming, sorted(state.subject_id for state in retired)])
        drawn = sorted(subjects, key=lambda subject: digest_of([night, subject]))
        subjects = set(drawn[: settings.ask_older])
    return [fact for fact in watched if fact.subject_id in subjects]


def slipped(
    lm: LanguageModel, older: Sequence[tuple[Unit, SubjectState]], settings: MemitSettings
) -> list[tuple[Unit, SubjectState]]:
    """Return those of which greedy decoding gets a fact's first prompt wrong, the unlikeliest first.

    Of several objects after one prompt greedy decoding can say but one: any of them will do.

    Args:
        lm: the model as the nights before left it.
        older: live subjects with their states.
        settings: `refine_older`, how many to return at most, and the precision.
    """
    if not older or not settings.refine_steps or not settings.refine_older:
        return []
    firsts = [(number, row) for number, (unit, _) in enumerate(older) for row in _first_rows(unit)]
    with lowered(lm, settings.precision):
        rated = recall.rate(lm, [(row.ids, row.first, row.labels) for _, row in firsts])
    prompts: dict[tuple[int, tuple[int, ...]], list[tuple[bool, float]]] = defaultdict(list)
    for (number, row), rating in zip(firsts, rated, strict=True):
        said = rating.exact and (row.end is None or rating.ended)
        prompts[number, row.asked].append((said, rating.probability))
    worst: dict[int, float] = {}
    for (number, _), objects in prompts.items():
        if not any(said for said, _ in objects):
            worst[number] = min(max(p for _, p in objects), worst.get(number, 1.0))
    log.info("%d of %d older subjects slipped", len(worst), len(older))
    chosen = sorted(worst, key=worst.__getitem__)[: settings.refine_older]
    return [older[number] for number in chosen]


def settle(
    lm: LanguageModel,
    history: History,
    units: Sequence[Unit],
    placed: Sequence[SubjectState],
    *,
    retired: Sequence[SubjectState],
    before: Mapping[int, Float[Tensor, "d d_k"]],
    progress: Progress | None = None,
) -> Settled:
    """Refine what was placed, and write it as it is kept.

    Args:
        lm: the model with the placed states written.
        history: what stood when they were.
        units: tokenised subjects: tonight's, then older ones that slipped.
        placed: the state of each.
        retired: states that leave; of older ones that slipped, those that `history` does not count.
        before: the edited weights of the night before.
        progress: called with (stage, done, total).

    Returns:
        The change and the states to keep; the model has them written.

    Raises:
        NonFiniteError: a loss or a change is not finite.
        OutOfMemoryError: memory ran out at the smallest batch.
    """

    def write(states: Sequence[SubjectState]) -> Delta:
        deltas.put_back(lm, before)
        return write_beside(history, states, retired=retired)

    drift = Drift(history.moments.texts, history.settings)
    refined = _refined(lm, Writer(history, live=placed), units, placed, drift=drift, progress=progress)
    delta = write(refined.states)
    if history.settings.hold == 1.0:
        return Settled(delta, refined.states, refined.steps)
    kept = _as_kept(lm, units, refined.states, history.settings)
    return Settled(write(kept), tuple(kept), refined.steps)


def _refined(
    lm: LanguageModel,
    writer: Writer,
    units: Sequence[Unit],
    states: Sequence[SubjectState],
    *,
    drift: Drift,
    progress: Progress | None,
) -> Refined:
    settings = writer.settings
    if not settings.refine_steps or not units:
        return Refined(tuple(states), (0,) * len(states))

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("refine", done, total)

    spans = {layer: writer.span(layer) for layer in settings.layers}
    give_back_freed_memory()  # of solves and of keys that were read, in other sizes
    return refine(lm, units, states, spans, settings, drift=drift, progress=report)


def _as_kept(
    lm: LanguageModel, units: Sequence[Unit], states: Sequence[SubjectState], settings: MemitSettings
) -> list[SubjectState]:
    """Return the states as they are kept: at the keys of the written weights, counted `hold` times.

    Keys were measured before the layers below had their last change. A state that was made from other
    contexts than its unit has today keeps its own.
    """
    if not units:
        return []
    columns = Columns.of(units, lm.device, mean=settings.keys == "mean")
    reader = KeyReader(lm, columns.texts, settings.layers, batch_tokens=8 * tokens_at_once(lm, settings))
    same = [
        state.depends == depends_on(lm, unit, settings) for unit, state in zip(units, states, strict=True)
    ]
    keys: dict[int, list[Tensor]] = {}
    for layer in settings.layers:
        read = columns.by_unit(columns.mean(reader.read(layer)[0]).cpu())
        keys[layer] = [
            now if unchanged else state.keys[layer] / state.weight**0.5
            for now, state, unchanged in zip(read, states, same, strict=True)
        ]
    return reweighed(lm, states, settings.hold, set_at=settings.moment_weight, keys=keys)


def _first_rows(unit: Unit) -> list[Row]:
    """Return the first row of each fact."""
    firsts: dict[int, Row] = {}
    for row in unit.rows:
        if row.labels:
            firsts.setdefault(row.fact, row)
    return list(firsts.values())
