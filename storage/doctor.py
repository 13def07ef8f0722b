"""Whether the ledger and the files are what they say, and the few repairs that cannot lose anything.

Safe to repair: files no row speaks of, work that a crash left unfinished, a head's count of facts, missing
views. Everything else is reported with a way out and left alone, because only a person can know which side is
right. What is looked at is in `checks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import update

from storage import migrate
from storage.checks import CHECKS, Examination, Finding, live_counts
from storage.database import reading, writing
from storage.schema.checkpoints import Checkpoint

if TYPE_CHECKING:
    from storage.checkpoints import CheckpointFiles
    from storage.ledger import Ledger
    from storage.records.runs import Lease, Model


@dataclass(frozen=True, slots=True)
class Report:
    """What an examination found.

    Attributes:
        checks: Name of each check that ran, with how many things it looked at.
        findings: What is wrong; empty if all is well.
    """

    checks: tuple[tuple[str, int], ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """True if nothing is wrong."""
        return not self.findings


def examine(
    ledger: Ledger, model: Model, files: CheckpointFiles, *, deep: bool = True, now: datetime | None = None
) -> Report:
    """Look for anything that is not as it should be; nothing is changed.

    Args:
        ledger: The ledger.
        model: The model.
        files: Its checkpoints.
        deep: Also read every byte of every checkpoint, and let the database check itself.
        now: The time, for tests.

    Returns:
        What was found.
    """
    checks: list[tuple[str, int]] = []
    findings: list[Finding] = []
    with reading(ledger.engine) as connection:
        at = Examination(connection, model, files, now or datetime.now(UTC), deep)
        for name, check in CHECKS.items():
            at.looked_at = 0
            findings += list(check(at))
            checks.append((name, at.looked_at))
    return Report(tuple(checks), tuple(findings))


def repair(ledger: Ledger, lease: Lease, files: CheckpointFiles) -> list[str]:
    """Put right what is safe to put right.

    Args:
        ledger: The ledger.
        lease: The writer's lease, so that nobody is at work meanwhile.
        files: The checkpoints.

    Returns:
        What was done, one sentence each.

    Raises:
        ForeignCheckpointsError: If the checkpoints are another ledger's.
    """
    done = []
    settled = ledger.recover(lease, files)
    if settled.abandoned or settled.rejected:
        done.append(
            f"Closed {len(settled.abandoned) + len(settled.rejected)} unfinished checkpoints;"
            f" {settled.requeued} requests are pending again."
        )
    if settled.crashed_runs:
        done.append(f"Marked {len(settled.crashed_runs)} runs as crashed.")
    if settled.orphans:
        done.append(f"Removed {len(settled.orphans)} folders that no checkpoint owns.")
    with writing(ledger.engine) as connection:
        if migrate.missing_views(connection):
            migrate.drop_views(connection)
            migrate.create_views(connection)
            done.append("Made the public views again.")
        head = lease.model.head
        said, counted = live_counts(connection, lease.model.id, head)
        if head is not None and said != counted:
            connection.execute(update(Checkpoint).where(Checkpoint.id == head).values(live_facts=counted))
            done.append(f"Set the head's count of live facts from {said} to {counted}.")
    return done
