"""One batch of owed edits, from the queue to a decision: what `sync` and `backfill` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows import artifacts, tasks
from flows.progress import report, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flows.night import Candidate
    from flows.workspace import Workspace
    from storage.records import EditRequestRow, Lease

SUCCEEDED, REJECTED, CANDIDATE = "succeeded", "rejected", "candidate"


@dataclass(frozen=True, slots=True)
class Settled:
    """A batch that was edited and measured.

    Attributes:
        candidate: its checkpoint.
        state: of the run, in the ledger's words: succeeded, rejected, or candidate if a person decides.
        owed: how many requests it carried.
    """

    candidate: Candidate
    state: str
    owed: int

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
    """
    say(f"editing {len(owed)} facts")
    edited = tasks.edit(ws, lease, run, [row.id for row in owed if row.id is not None], report)
    say("asking the edited model what it knows")
    candidate = tasks.check(ws, lease, edited, report)
    return settle(ws, lease, candidate, len(owed), approval=approval, number=number)


def settle(
    ws: Workspace,
    lease: Lease,
    candidate: Candidate,
    owed: int,
    *,
    approval: bool = False,
    number: int = 1,
) -> Settled:
    """Show a candidate, and promote or reject it, or leave it for a person."""
    artifacts.check(candidate, number=number)
    if approval and candidate.passed:
        state, shown, why = CANDIDATE, "candidate", "Every gate passed; it waits for a person."
    elif tasks.promote(ws, lease, candidate):
        state, shown, why = SUCCEEDED, "promoted", "Every gate passed."
    else:
        state, shown, why = REJECTED, "rejected", f"{candidate.failures}."
    say(f"checkpoint {candidate.digest[:12]}: {shown}. {why}")
    artifacts.checkpoint(ws, lease.model, candidate, shown, why, number=number)
    artifacts.decided(lease.model.name, candidate.digest, shown, why)
    return Settled(candidate, state, owed)


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
