"""The step of a rebuild that writes: all live facts into the base model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from editor import delta as deltas
from editor import rebuild
from flows import checking, editing, heads, models, neighbours
from flows.recipe import Recipe, edited_layers
from flows.writing import Edited, keep

if TYPE_CHECKING:
    from editor.progress import Progress
    from flows.workspace import Workspace
    from storage.records.runs import Lease


@dataclass(frozen=True, slots=True)
class Remade:
    """All live facts on the base model, in memory and on disk, and nothing decided.

    Attributes:
        edited: as a night leaves it.
        reused: subjects whose stored state was taken.
        refined: those of them whose state was then refined.
        optimised: subjects that were edited anew.
        write_s: seconds of the editor, without loading and asking.
    """

    edited: Edited
    reused: int
    refined: int
    optimised: int
    write_s: float


def remake(
    ws: Workspace,
    lease: Lease,
    run: int,
    *,
    anew: bool = False,
    refine: bool = False,
    progress: Progress | None = None,
) -> Remade:
    """Write all live facts into the base model and keep the change in a content-addressed folder.

    The folder names no parent: the same live facts give the same digest, whatever nights led to them.

    Args:
        ws: the home.
        lease: the right to write.
        run: in the ledger.
        anew: find every target state anew, also where the stored one would do.
        refine: refine what the new weights no longer say; done in any case where something live was written
            with other settings.
        progress: called with (stage, done, total).
    """
    lm = models.load_base(ws.settings)
    ws.ledger.ensure_model(lease.model.name, ws.settings.model, lm.digest)
    lineage = ws.ledger.lineage(lease.model)
    recipe = Recipe.read(ws, lm, lineage, progress)
    intent = ws.ledger.begin_checkpoint(
        lease, run, [], algorithm="memit", settings=recipe.to_json(), from_base=True
    )
    held = ws.ledger.live_facts(lease.model)
    facts = [editing.from_held(row) for row in held]
    kept = {} if anew else editing.read_states(ws.files, ws.ledger.subject_states(lease.model))
    asked = neighbours.asked(
        ws.relations, {row.property for row in held}, {row.subject_label for row in held}
    )
    exam, base = checking.set_exam(lm, facts, (), asked, heldout=ws.settings.heldout)
    originals = deltas.copies(lm, edited_layers(lineage, recipe.memit))
    models.put_on(lm, ws.files, lineage)
    before = checking.ask_before(lm, exam)
    deltas.put_back(lm, originals)  # bit for bit: nothing is subtracted
    started = time.monotonic()
    others = any(row.settings != recipe.to_json() for row in heads.since_base(lineage))
    made = rebuild.rebuild(
        lm,
        facts,
        tuple(kept.values()),
        settings=recipe.memit,
        moments=recipe.moments,
        refine=refine or others,
        prefixes=recipe.prefixes,
        progress=progress,
    )
    write_s = time.monotonic() - started
    digest = keep(ws, lm, made, recipe, parent=None, from_base=True)
    norm, subjects = deltas.growth(lm, originals), frozenset(state.subject_id for state in made.states)
    edited = Edited(lm, intent, digest, exam, base, before, norm, subjects, from_base=True)
    return Remade(edited, len(made.reused), len(made.refined), len(made.reports), write_s)
