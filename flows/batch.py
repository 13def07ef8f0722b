"""One batch of owed edits, from the queue to a decision: what `sync` and `backfill` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows import artifacts, tasks
from flows.editing import scope
from flows.isolate import Verdict, isolate
from flows.progress import report, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flows.workspace import Workspace
    from flows.writing import Candidate
    from storage.records.planned import EditRequestRow
    from storage.records.runs import Lease

SUCCEEDED, REJECTED, CANDIDATE = "succeeded", "rejected", "candidate"

PARTS = 1000
"""Artifacts of the parts of batch 1 are numbered 1001, 2001, ..."""

_UNEDITED = {"retention": 1.0, "neighbours": 1.0, "perplexity": 0.0}
"""Gates that measure the whole model, and what they read of an unedited one."""

_ONE_SHARE = 0.1
"""Most of such a gate's room that one subject may take: hundreds fit into it (docs/limits.md)."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A batch that was edited and measured.

    Attributes:
        candidate: its checkpoint.
        state: of the run, in the ledger's words: succeeded, rejected, or candidate if a person decides.
        owed: how many requests it carried.
        live: how many of them are live: none, all, or those that passed when the batch was taken apart.
        checkpoints: how many were promoted for them.
        blamed: items whose facts fail alone while others passed, and the gates; they are no longer owed.
        left: how many requests stay owed after a batch was taken apart.
        at_fault: whether it failed because of its one subject, which was tried alone; its requests fail then.
    """

    candidate: Candidate
    state: str
    owed: int
    live: int = 0
    checkpoints: int = 0
    blamed: tuple[tuple[str, str], ...] = ()
    left: int = 0
    at_fault: bool = False

    @property
    def promoted(self) -> bool:
        """Whether the checkpoint is live."""
        return self.state == SUCCEEDED


def edit_batch(
    ws: Workspace,
    lease: Lease,
    run: int,
    owed: Sequence[EditRequestRow],
    *,
    approval: bool = False,
    number: int = 1,
) -> Settled:
    """Edit, check, and promote or reject; or stop at a candidate that a person decides about.

    With `approval` nothing is promoted here: a candidate that passed every gate stays open. The caller
    finishes the run as "candidate" then, so that recovery keeps it. One that failed a gate is rejected.

    Without, a batch that failed is taken apart: what passes without the facts that cause it is promoted.
    """
    done = _one(ws, lease, run, owed, approval=approval, number=number)
    if done.state != REJECTED or approval or not ws.settings.isolate_tries:
        return done
    return _taken_apart(ws, lease, run, owed, failed=done, number=number)


def _one(
    ws: Workspace,
    lease: Lease,
    run: int,
    owed: Sequence[EditRequestRow],
    *,
    number: int,
    approval: bool = False,
    over: Candidate | None = None,
) -> Settled:
    """Edit, measure and decide; one subject tried alone `over` a promoted checkpoint may be at fault."""
    say(f"editing {len(owed)} facts")
    edited = tasks.edit(ws, lease, run, [row.id for row in owed if row.id is not None], report)
    say("asking the edited model what it knows")
    candidate = tasks.check(ws, lease, edited, report)
    blame = over is not None and at_fault(candidate, over)
    return settle(ws, lease, candidate, len(owed), approval=approval, number=number, blame=blame)


def _taken_apart(
    ws: Workspace,
    lease: Lease,
    run: int,
    owed: Sequence[EditRequestRow],
    *,
    failed: Settled,
    number: int,
) -> Settled:
    """Promote what passes without the facts that make a batch fail; those fail, with the gate as reason."""
    say("taking the batch apart to find the facts that fail it")
    last = failed
    checkpoints = 0

    def attempt(part: Sequence[EditRequestRow], blame: bool) -> Verdict:
        nonlocal last, number, checkpoints
        number += PARTS
        done = _one(ws, lease, run, part, number=number, over=last.candidate if blame else None)
        verdict = _verdict(done)
        if done.promoted:
            last = done
            checkpoints += 1
        elif blame and not verdict.blamed:
            say(f"{part[0].subject} comes to a model near its bounds ({verdict.reason}) and stays owed")
        return verdict

    found = isolate(owed, _verdict(failed), attempt, tries=ws.settings.isolate_tries)
    for subject, reason in found.blamed:
        say(f"{subject} fails alone: {reason}; its edits wait until its statements change")
    return Settled(
        last.candidate, last.state, len(owed), found.promoted, checkpoints, tuple(found.blamed), found.left
    )


def _verdict(done: Settled) -> Verdict:
    return Verdict(done.promoted, suspects(done.candidate), done.candidate.failures, done.at_fault)


def at_fault(candidate: Candidate, before: Candidate) -> bool:
    """Whether one subject, tried alone on top of a promoted checkpoint, is why a gate fails.

    It is where its own facts fell short, or where it took more than its share of what a gate of the whole
    model gives away. Else the model was near its bound before, and whoever came would have failed.
    """
    held = {gate.name: gate.value for gate in before.gates}
    for gate in candidate.gates:
        if gate.passed or gate.value is None or gate.name not in _UNEDITED:
            continue
        unedited = _UNEDITED[gate.name]
        was = held.get(gate.name)
        taken = abs(gate.value - (unedited if was is None else was))
        # Written so that a number which is not finite is a fault.
        if not taken <= _ONE_SHARE * abs(gate.threshold - unedited):
            return True
    return bool(suspects(candidate))


def suspects(candidate: Candidate) -> frozenset[str]:
    """Items whose own facts fell short of what a failed gate asks."""
    failed = {gate.name for gate in candidate.gates if not gate.passed}
    return frozenset(
        scope(result.fact_id)[0]
        for result in candidate.marks.tonight
        if ("efficacy" in failed and not all(one.success for one in result.prompts))
        or ("exact" in failed and not result.exact)
        or ("heldback" in failed and not all(one.success for one in result.heldback))
    )


def settle(
    ws: Workspace,
    lease: Lease,
    candidate: Candidate,
    owed: int,
    *,
    approval: bool = False,
    number: int = 1,
    blame: bool = False,
) -> Settled:
    """Show a candidate, and promote or reject it, or leave it for a person; to `blame` fails its requests."""
    artifacts.check(candidate, number=number)
    if approval and candidate.passed:
        state, shown, why = CANDIDATE, "candidate", "Every gate passed; it waits for a person."
    elif blame and not candidate.passed:
        ws.ledger.reject(lease, candidate.id, reason=candidate.failures, requeue=False)
        state, shown, why = REJECTED, "rejected", f"{candidate.failures}; its edits are no longer owed."
    elif tasks.promote(ws, lease, candidate):
        state, shown, why = SUCCEEDED, "promoted", "Every gate passed."
    else:
        state, shown, why = REJECTED, "rejected", f"{candidate.failures}."
    say(f"checkpoint {candidate.digest[:12]}: {shown}. {why}")
    artifacts.checkpoint(ws, lease.model, candidate, shown, why, number=number)
    artifacts.decided(lease.model.name, candidate.digest, shown, why)
    promoted = state == SUCCEEDED
    live = owed if promoted else 0
    return Settled(candidate, state, owed, live, checkpoints=int(promoted), at_fault=blame and not promoted)


def short_of(candidate: Candidate, most: int = 5) -> str:
    """The facts that fell short of a failed gate, in one sentence; empty where no fact of its own did."""
    wrong = suspects(candidate)
    asked = {fact.fact_id: fact for fact in candidate.exam.tonight}
    found = [
        f"{result.prompts[0].prompt!r} should go on with {asked[result.fact_id].target!r}, "
        f"not {result.greedy!r}"
        for result in candidate.marks.tonight
        if scope(result.fact_id)[0] in wrong
    ]
    if not found:
        return ""
    more = f", and {len(found) - most} more" if len(found) > most else ""
    return f"{'; '.join(found[:most])}{more}. "


def batches(owed: Sequence[EditRequestRow], size: int) -> Iterator[list[EditRequestRow]]:
    """Cut a queue into batches of about `size`, in order, never parting the requests of one subject.

    The subject is the editor's unit: parted, it would be solved twice.
    """
    by_subject: dict[str, list[EditRequestRow]] = {}
    for row in owed:
        by_subject.setdefault(row.subject, []).append(row)
    batch: list[EditRequestRow] = []
    for rows in by_subject.values():
        if batch and len(batch) + len(rows) > size:
            yield batch
            batch = []
        batch.extend(rows)
    if batch:
        yield batch
