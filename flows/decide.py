"""A person decides about a candidate: promote, reject, or by silence let it expire.

A run with approval on ends as a candidate and frees its process. The ledger keeps it, and what it carries,
until somebody decides or `approval_hours` are over; then the next run rejects it, and its edits are owed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from prefect import flow

from flows import artifacts, heads, policy
from flows.errors import CandidateWaitsError, NoCandidateError, NotCarriedError
from flows.params import CheckpointKey, RelationList, SubjectList, check_subjects, property_of
from flows.settings import Settings
from flows.states import Ending, named_states
from flows.workspace import opened_model

if TYPE_CHECKING:
    from flows.workspace import Workspace
    from storage.records.checkpoints import CheckpointRow
    from storage.records.runs import Lease, Model

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided.

    Attributes:
        digest: of the checkpoint.
        promoted: whether it is live now.
        requeued: how many of its edits are owed again.
        reason: as the ledger keeps it.
        due: why a rebuild is due now; empty if none is.
    """

    digest: str
    promoted: bool
    requeued: int
    reason: str
    due: str = ""

    @property
    def ending(self) -> Ending:
        """How it ended."""
        if self.promoted:
            then = f" A rebuild is due ({self.due}): run `factsync rebuild --refine`." if self.due else ""
            return Ending("Promoted", f"Checkpoint {self.digest[:12]} is live: {self.reason}.{then}")
        return Ending(
            "Rejected", f"Checkpoint {self.digest[:12]} is turned down; {self.requeued} edits are owed again."
        )


def expire(ws: Workspace, lease: Lease, *, now: datetime | None = None) -> CheckpointRow | None:
    """Reject the waiting candidate if its time is over; what it carried is owed again.

    Returns:
        The candidate that still waits: until it is decided, no other checkpoint can be made.
    """
    row = heads.waiting(ws, lease.model)
    if row is None:
        return None
    made = row.decided_at or row.created_at
    if (now or datetime.now(UTC)) - made < timedelta(hours=ws.settings.approval_hours):
        return row
    why = f"nobody decided within {ws.settings.approval_hours:g} hours"
    ws.ledger.reject(lease, row.id, reason=why)
    log.warning("Checkpoint %s is rejected: %s", str(row.digest)[:12], why)
    artifacts.decided(lease.model.name, str(row.digest), "rejected", why)
    return None


def require_none_waiting(ws: Workspace, lease: Lease) -> None:
    """Let expired candidates expire, and refuse to go on beside one that still waits.

    Raises:
        CandidateWaitsError: names it, and how to decide.
    """
    row = expire(ws, lease)
    if row is not None:
        raise CandidateWaitsError(heads.says_waiting(row))


@flow(name="promote", flow_run_name="promote {checkpoint}")
@named_states
def promote(checkpoint: CheckpointKey = "", decided_by: str = "", note: str = "") -> Decision:
    """Make a waiting candidate the live model.

    Its files and those of what it stands on are verified first. It passed every gate when it was made;
    nobody can promote one that did not.

    Args:
        checkpoint: Digest of the candidate, or its beginning. Empty: the one that waits.
        decided_by: Who decides, for the ledger.
        note: Why, for the ledger.
    """
    with opened_model(Settings.read()) as (ws, _), ws.writer() as lease:
        ws.ledger.recover(lease, ws.files)
        row = _candidate(ws, lease.model, checkpoint)
        heads.verify(ws, lease, row)
        reason = heads.reason_of("approved", decided_by, note)
        ws.ledger.promote(lease, row.id, reason=reason)
        artifacts.decided(lease.model.name, str(row.digest), "promoted", reason)
        due = policy.wanted(ws, lease)
        return Decision(str(row.digest), promoted=True, requeued=0, reason=reason, due=due)


@flow(name="reject", flow_run_name="reject {checkpoint}")
@named_states
def reject(
    checkpoint: CheckpointKey = "",
    drop_relations: RelationList = [],  # noqa: B006 - a form needs a list to begin with; it is never changed
    drop_subjects: SubjectList = [],  # noqa: B006 - likewise
    decided_by: str = "",
    note: str = "",
) -> Decision:
    """Turn a waiting candidate down; its edits are owed again, except those you drop.

    To let a part of a night through, reject it and drop the rest: the next run edits what is left.

    Args:
        checkpoint: Digest of the candidate, or its beginning. Empty: the one that waits.
        drop_relations: Edits of these relations fail for good, until their statements change.
        drop_subjects: Edits of these items likewise, such as Q183.
        decided_by: Who decides, for the ledger.
        note: Why, for the ledger.
    """
    relations = {property_of(one) for one in drop_relations}
    subjects = set(check_subjects(drop_subjects))
    with opened_model(Settings.read()) as (ws, _), ws.writer() as lease:
        ws.ledger.recover(lease, ws.files)
        row = _candidate(ws, lease.model, checkpoint)
        reason = heads.reason_of("turned down", decided_by, note)
        failed = _carried(ws, row, relations, subjects)
        requeued = ws.ledger.reject(lease, row.id, reason=reason, failed=failed)
        artifacts.decided(lease.model.name, str(row.digest), "rejected", reason)
        return Decision(str(row.digest), promoted=False, requeued=requeued, reason=reason)


def _candidate(ws: Workspace, model: Model, key: str) -> CheckpointRow:
    row = heads.waiting(ws, model)
    if row is None:
        raise NoCandidateError(
            "No candidate waits for a decision; `factsync checkpoint list` shows what became of the last one."
        )
    if not str(row.digest).startswith(key):
        raise NoCandidateError(
            f"The candidate that waits is {str(row.digest)[:12]}, not {key}; look at it and name it."
        )
    return row


def _carried(ws: Workspace, row: CheckpointRow, relations: set[str], subjects: set[str]) -> list[int]:
    """The requests of a checkpoint that concern one of the relations or subjects.

    Raises:
        NotCarriedError: it carries none of one of them.
    """
    if not relations and not subjects:
        return []
    carried = ws.ledger.claimed(row.id)
    missing = relations.difference(request.property for request in carried)
    missing |= subjects.difference(request.subject for request in carried)
    if missing:
        raise NotCarriedError(
            f"The candidate {str(row.digest)[:12]} carries no edits of {', '.join(sorted(missing))}, "
            "and nothing is rejected: drop only what it carries."
        )
    return [
        request.id
        for request in carried
        if request.id is not None and (request.property in relations or request.subject in subjects)
    ]
