"""A rollback from the interface: an earlier checkpoint live again, with its reason in the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect import flow

from flows import artifacts, heads
from flows.params import EarlierCheckpoint  # noqa: TC001 - Prefect reads the types of parameters
from flows.settings import Settings
from flows.states import Ending, named_states
from flows.workspace import opened_model

if TYPE_CHECKING:
    from flows.heads import Moved


@dataclass(frozen=True, slots=True)
class Rollback:
    """What a rollback did."""

    moved: Moved

    @property
    def ending(self) -> Ending:
        """How it ended."""
        return Ending("Rolled back", self.moved.text)


@flow(name="rollback", flow_run_name="rollback {checkpoint}")
@named_states
def rollback(
    checkpoint: EarlierCheckpoint = "", again: bool = False, decided_by: str = "", note: str = ""
) -> Rollback:
    """Make an earlier checkpoint the live model, to the bit. Going forward again works the same way.

    Args:
        checkpoint: Digest of one that was live, or its beginning, or base. Empty: the one before.
        again: Let the next sync queue again whatever Wikidata still states. Off: what was undone stays so
            until its statements change.
        decided_by: Who decides, for the ledger.
        note: Why, for the ledger.
    """
    with opened_model(Settings.read()) as (ws, _), ws.writer() as lease:
        reason = heads.reason_of("rolled back", decided_by, note)
        moved = heads.go_to(ws, lease, checkpoint, reason=reason, again=again)
        artifacts.decided(lease.model.name, moved.digest or heads.BASE, "rolled_back", reason)
        return Rollback(moved)
