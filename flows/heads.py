"""Which checkpoint is live, and on what it stands: back to an earlier one, to the bit, or forth again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows import card
from flows.errors import CandidateWaitsError, CheckpointInputError, NothingLiveError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.workspace import Workspace
    from storage.records.checkpoints import CheckpointRow
    from storage.records.runs import Lease, Model

BASE = "base"
"""Names the model without edits."""


@dataclass(frozen=True, slots=True)
class Moved:
    """Where the head is now.

    Attributes:
        digest: of the live checkpoint; None for the base model.
        live_facts: how many facts it holds.
        before: digest that was live; None for the base model.
    """

    digest: str | None
    live_facts: int
    before: str | None

    @property
    def text(self) -> str:
        """What is live now, in a sentence."""
        name = f"checkpoint {self.digest}" if self.digest else "the base model"
        return f"Live is now {name}, with {self.live_facts} facts."


def since_base(lineage: Sequence[CheckpointRow]) -> Sequence[CheckpointRow]:
    """The part of a lineage that makes the model: from the last rebuild on, oldest first."""
    return lineage[max((n for n, row in enumerate(lineage) if row.from_base), default=0) :]


def standing(lineage: Sequence[CheckpointRow]) -> list[str]:
    """The files of the checkpoints whose deltas make the model, oldest first."""
    return [row.digest for row in since_base(lineage) if row.digest is not None]


def verify(ws: Workspace, lease: Lease, row: CheckpointRow) -> None:
    """Verify the files of a checkpoint and of all it stands on, before it is made live.

    Raises:
        CheckpointError: one is missing or damaged; it is named.
    """
    for digest in standing(ws.ledger.lineage(lease.model, row.id)):
        ws.files.open(digest)


def waiting(ws: Workspace, model: Model) -> CheckpointRow | None:
    """The candidate that waits for a person, if there is one."""
    row = ws.ledger.status(model).open_checkpoint
    return row if row is not None and row.state == "candidate" else None


def says_waiting(row: CheckpointRow) -> str:
    """What a run says that found a candidate waiting."""
    return (
        f"Checkpoint {str(row.digest)[:12]} waits for a person since {row.decided_at:%Y-%m-%d %H:%M} UTC: "
        "run `factsync promote` or `factsync reject`, or their deployments."
    )


def go_to(ws: Workspace, lease: Lease, which: str, *, reason: str, again: bool = False) -> Moved:
    """Make a checkpoint that was live before the live one. The files of all it stands on are verified first.

    Args:
        ws: the home.
        lease: the right to write.
        which: a digest or its beginning, `BASE`, or nothing: the one before the live one.
        reason: for the ledger.
        again: let the next sync queue again whatever Wikidata still states.

    Raises:
        CandidateWaitsError: a candidate waits, which was made on what is live now.
        NothingLiveError: nothing is live that one could go back from.
        CheckpointInputError: the checkpoint was never live.
        LedgerError: the checkpoint is not known, or it or what it stands on is damaged.
    """
    ws.ledger.recover(lease, ws.files)
    candidate = waiting(ws, lease.model)
    if candidate is not None:
        raise CandidateWaitsError(says_waiting(candidate))
    lineage = ws.ledger.lineage(lease.model)
    row = _named(ws, lease, which, lineage)
    if row is not None:
        _require_lived(row)  # first: the files of one that was rejected may be gone
        verify(ws, lease, row)
    ws.ledger.rollback(lease, row.id if row else None, reason=reason, review=again)
    status = ws.ledger.status(lease.model)
    before = lineage[-1].digest if lineage else None
    return Moved(row.digest if row else None, status.live_facts, before)


def _named(ws: Workspace, lease: Lease, which: str, lineage: list[CheckpointRow]) -> CheckpointRow | None:
    if which == BASE:
        return None
    if which:
        return ws.ledger.checkpoint(lease.model, which)
    if not lineage:
        raise NothingLiveError(
            "The base model is live, so there is nothing to go back from; `factsync checkpoint list` shows "
            "what was live before: name it."
        )
    return lineage[-2] if len(lineage) > 1 else None


def _require_lived(row: CheckpointRow) -> None:
    if row.state in card.LIVED:
        return
    name = str(row.digest)[:12]
    if row.state == "candidate":
        raise CheckpointInputError(
            f"Checkpoint {name} waits for a decision: `factsync promote` makes it live."
        )
    raise CheckpointInputError(
        f"Checkpoint {name} cannot be live again, it was {row.state} and was never live: name one that was; "
        "`factsync checkpoint list` shows the state of each."
    )


def reason_of(what: str, who: str, note: str) -> str:
    """A decision in the ledger's words: what, by whom, why."""
    by = f" by {who.strip()}" if who.strip() else ""
    return f"{what}{by}{': ' + note.strip() if note.strip() else ''}"
