"""The steps of a night that write and judge: edit, check, settle.

A candidate is made in memory and on disk, measured, and promoted or turned down; the ledger fences each step.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from editor import delta as deltas
from editor import memit, rebuild
from editor import state as states
from editor.allocator import give_back_freed_memory
from flows import checking, editing, models, neighbours
from flows.editing import RETRACT, fact_id
from flows.gates import judge
from flows.recipe import Recipe, edited_layers, solved_alike
from storage.records.checkpoints import EditRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from editor.memit import EditOutcome
    from editor.model import LanguageModel
    from editor.progress import Progress
    from editor.rebuild import Rebuilt
    from editor.recall import RecallResult
    from flows.gates import Gate, Metrics
    from flows.workspace import Workspace
    from storage.records.checkpoints import CheckpointIntent
    from storage.records.facts import HeldRow
    from storage.records.runs import Lease


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Edited:
    """An edited model in memory, its change on disk, and nothing decided.

    Attributes:
        lm: the edited model.
        intent: what the ledger knows of it so far.
        digest: its content's digest.
        exam: what will be asked.
        base: what the unedited model answered.
        before: recall of tonight's facts before the edit.
        norm: how far the edited weights are from the base model's.
        subjects: whose states it settles: those it carries, and those whose facts it takes out.
        from_base: whether its change stands on the base model itself, whatever the parent is.
    """

    lm: LanguageModel
    intent: CheckpointIntent
    digest: str
    exam: checking.Exam
    base: checking.BaseAnswers
    before: tuple[RecallResult, ...]
    norm: float
    subjects: frozenset[str]
    from_base: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint that was made and measured, and not yet decided about.

    Attributes:
        id: its key in the ledger.
        digest: its content's digest.
        metrics: what the check measured.
        gates: the verdicts.
        exam: what was asked.
        before: recall of tonight's facts before the edit.
        marks: what the edited model scored.
        from_base: whether it stands on the base model itself.
    """

    id: int
    digest: str
    metrics: Metrics
    gates: tuple[Gate, ...]
    exam: checking.Exam
    before: tuple[RecallResult, ...]
    marks: checking.Marks
    from_base: bool = False

    @property
    def passed(self) -> bool:
        """Whether every gate lets it through."""
        return all(gate.passed for gate in self.gates)

    @property
    def failures(self) -> str:
        """The gates that did not, in one sentence."""
        return "; ".join(str(gate) for gate in self.gates if not gate.passed)


def edit(
    ws: Workspace, lease: Lease, run: int, request_ids: Sequence[int], progress: Progress | None = None
) -> Edited:
    """Write owed edits into the weights and keep the change in a content-addressed folder.

    Where what stands was written by another solve (another λ, other second moments or guards), the night is
    one change on the base model: everything live again by tonight's, from stored states, and tonight's edits.
    So it is where settings have no history and a subject that is held is asked for: what it added to the
    weights is not known any more.

    The intent stands in the ledger before the editor starts. Until `check` records the candidate, a crash
    leaves an abandoned intent and a folder that nobody knows; the next run's recovery removes both.
    """
    lm = models.load_base(ws.settings)
    ws.ledger.ensure_model(lease.model.name, ws.settings.model, lm.digest)
    lineage = ws.ledger.lineage(lease.model)
    recipe = Recipe.read(ws, lm, lineage, progress)
    held, wanted = ws.ledger.live_facts(lease.model), set(request_ids)
    asked = {row.subject for row in ws.ledger.owed(lease.model) if row.id in wanted}
    forgotten = not recipe.memit.history and not asked.isdisjoint(row.subject for row in held)
    anew = forgotten or not solved_alike(lineage, recipe)
    intent = ws.ledger.begin_checkpoint(
        lease, run, request_ids, algorithm="memit", settings=recipe.to_json(), from_base=anew
    )
    work = editing.assign(
        intent.requests, held, editing.read_states(ws.files, ws.ledger.subject_states(lease.model))
    )
    exam, base = _exam(ws, lm, intent, work, held)
    originals = deltas.copies(lm, edited_layers(lineage, recipe.memit))
    models.put_on(lm, ws.files, lineage)
    before = checking.ask_before(lm, exam)
    if anew:
        deltas.put_back(lm, originals)
    outcome = _write(lm, work, recipe, anew=anew, progress=progress)
    give_back_freed_memory()
    digest = keep(ws, lm, outcome, recipe, parent=intent.parent_digest, from_base=anew)
    norm = deltas.growth(lm, originals)
    carried = {state.subject_id for state in outcome.states} | {row.subject for row in intent.requests}
    return Edited(lm, intent, digest, exam, base, before, norm, frozenset(carried), anew)


def _write(
    lm: LanguageModel,
    work: editing.Assignment,
    recipe: Recipe,
    *,
    anew: bool,
    progress: Progress | None,
) -> EditOutcome | Rebuilt:
    """Write tonight's edits beside what is live, or both on the base model."""
    tonight = [*work.tonight, *work.companions]
    if anew:
        log.info(
            "what stands has no history or another solve (λ, second moments, guards): all is written anew"
        )
        return rebuild.rebuild(
            lm,
            [*tonight, *work.watched],
            work.live,
            settings=recipe.memit,
            moments=recipe.moments,
            refine=True,
            as_stored=True,
            prefixes=recipe.prefixes,
            progress=progress,
        )
    return memit.edit(
        lm,
        tonight,
        settings=recipe.memit,
        moments=recipe.moments,
        live=work.live,
        retired=work.retired,
        watched=work.watched,
        prefixes=recipe.prefixes,
        progress=progress,
    )


def keep(
    ws: Workspace,
    lm: LanguageModel,
    outcome: EditOutcome | Rebuilt,
    recipe: Recipe,
    *,
    parent: str | None,
    from_base: bool,
) -> str:
    """Keep a change, its states and the digests of the written weights in a folder; return its digest.

    What stands on the base itself names no parent, so that the same live facts give the same digest. A
    lineage holds a content once: a night that comes to an earlier checkpoint's names what it follows.
    """
    content = {
        models.DELTA_FILE: outcome.delta.to_bytes(),
        models.STATES_FILE: states.to_bytes(outcome.states),
    }
    manifest = {
        "base": lm.digest,
        "parent": None if from_base else parent,
        "algorithm": "memit",
        "settings": recipe.to_json(),
        "weights": deltas.digests(lm, outcome.delta.changes),
        **({"from_base": True} if from_base else {}),
    }
    digest = ws.files.put(content, manifest)
    known = ws.ledger.checkpoints(ws.model) if from_base and parent and ws.model else ()
    if any(row.digest == digest for row in known):
        return ws.files.put(content, {**manifest, "after": parent})
    return digest


def check(ws: Workspace, lease: Lease, edited: Edited, progress: Progress | None = None) -> Candidate:
    """Measure what was written, record it as a candidate, and put it before the gates."""
    marks = checking.sit_exam(edited.lm, edited.exam, edited.base, progress)
    metrics = checking.measure(edited.before, marks, edited.base, norm=edited.norm)
    if not edited.intent.requests:  # a rebuild asks all that is live, as a night asks what is new
        metrics = replace(metrics, retention=checking.still_said(edited.before, marks.tonight))
    content = ws.files.open(edited.digest)
    ws.ledger.record_candidate(
        lease,
        edited.intent.id,
        digest=edited.digest,
        path=edited.digest,
        size_bytes=content.size_bytes,
        files=content.manifest["files"],
        metrics=metrics.to_json(),
        edits=_edit_rows(edited.intent, edited.before, (*marks.tonight, *marks.retracted)),
        checks=checking.check_rows(edited.exam, marks),
        subjects=edited.subjects,
    )
    gates = tuple(judge(metrics, ws.settings.gates))
    return Candidate(
        edited.intent.id,
        edited.digest,
        metrics,
        gates,
        edited.exam,
        edited.before,
        marks,
        from_base=edited.from_base or edited.intent.parent is None,
    )


def settle(ws: Workspace, lease: Lease, candidate: Candidate) -> bool:
    """Promote a candidate that passed every gate; reject it otherwise, and keep what is owed."""
    if candidate.passed:
        ws.ledger.promote(lease, candidate.id, reason="every gate passed")
        return True
    ws.ledger.reject(lease, candidate.id, reason=candidate.failures, requeue=True)
    log.warning("checkpoint %s rejected: %s", candidate.digest[:12], candidate.failures)
    return False


def _exam(
    ws: Workspace,
    base: LanguageModel,
    intent: CheckpointIntent,
    work: editing.Assignment,
    held: Sequence[HeldRow],
) -> tuple[checking.Exam, checking.BaseAnswers]:
    asked = [fact_id(row.subject, row.property, row.slot) for row in intent.requests]
    older = checking.sample_older(held, asked, ws.settings.retention_sample, seed=intent.id)
    taken = {row.subject_label for row in held} | {fact.subject for fact in work.tonight}
    properties = {row.property for row in intent.requests} | {row.property for row in held}
    asked_too = neighbours.asked(ws.relations, properties, taken)
    return checking.set_exam(
        base, work.tonight, older, asked_too, work.retracted, heldout=ws.settings.heldout
    )


def _edit_rows(
    intent: CheckpointIntent, before: Sequence[RecallResult], after: Sequence[RecallResult]
) -> list[EditRow]:
    """How each owed edit came out; a retraction is written by leaving, and its object is the old one."""
    results = {then.fact_id: (then, now) for then, now in zip(before, after, strict=True)}
    rows = []
    for request in intent.requests:
        scope = (request.subject, request.property, request.slot)
        if fact_id(*scope) not in results:
            rows.append(EditRow(*scope))
            continue
        then, now = results[fact_id(*scope)]
        if request.op == RETRACT:
            rows.append(_retraction(scope, then, now))
            continue
        rows.append(
            EditRow(
                *scope,
                prompt=now.prompts[0].prompt,
                p_new_before=then.p_new,
                p_old_before=then.p_old,
                p_new_after=now.p_new,
                p_old_after=now.p_old,
                rank_old_before=then.prompts[0].rank_old,
                rank_old_after=now.prompts[0].rank_old,
                success=now.success,
                exact=now.exact,
                greedy=now.greedy,
            )
        )
    return rows


def _retraction(scope: tuple[str, str, str], then: RecallResult, now: RecallResult) -> EditRow:
    """What became of an object that was taken out; "new" is what the base model says in its place."""
    return EditRow(
        *scope,
        prompt=now.prompts[0].prompt,
        p_new_before=then.p_old,
        p_old_before=then.p_new,
        p_new_after=now.p_old,
        p_old_after=now.p_new,
        rank_old_before=then.prompts[0].rank_new,
        rank_old_after=now.prompts[0].rank_new,
        success=checking.gone(now),
        greedy=now.greedy,
    )
