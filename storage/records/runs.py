"""Models, who may write them, and their runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from storage.records import Json
    from storage.records.checkpoints import CheckpointRow


@dataclass(frozen=True, slots=True)
class Model:
    """A language model that the ledger speaks about.

    Attributes:
        id: Its key in the ledger.
        name: Its name, unique.
        base_ref: Where the base model came from.
        base_digest: Digest of the base model's weights.
        head: Key of the checkpoint that is live, None while the base itself is.
        head_digest: Digest of that checkpoint.
        epoch: The fencing epoch; each new writer raises it.
    """

    id: int
    name: str
    base_ref: str
    base_digest: str
    head: int | None
    head_digest: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one model, until somebody else takes it.

    Attributes:
        model: The model as it stood when the lease was taken.
        epoch: The epoch that every step is fenced with.
        holder: Who holds it, in its own words.
    """

    model: Model
    epoch: int
    holder: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a crash had left, and is now settled.

    Attributes:
        abandoned: Checkpoints that were being built.
        rejected: Candidates that nobody had decided about.
        kept: A candidate that waits for approval and was left alone.
        requeued: Requests that went back into the queue.
        crashed_runs: Runs that had never ended.
        orphans: Checkpoint folders and temporary folders that were removed.
    """

    abandoned: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    requeued: int = 0
    crashed_runs: tuple[int, ...] = ()
    orphans: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.crash or self.orphans)

    @property
    def crash(self) -> bool:
        """Whether something had ended midway; the files of a rejected night are orphans without that."""
        return bool(self.abandoned or self.rejected or self.requeued or self.crashed_runs)

    def __str__(self) -> str:
        said = (
            (len(self.crashed_runs), "run that had not ended", "runs that had not ended"),
            (len(self.abandoned), "checkpoint half built", "checkpoints half built"),
            (len(self.rejected), "candidate nobody had decided about", "candidates nobody had decided about"),
            (self.requeued, "edit back in the queue", "edits back in the queue"),
            (len(self.kept), "candidate left to wait for approval", "candidates left to wait for approval"),
            (
                len(self.orphans),
                "folder that no checkpoint needs removed",
                "folders that no checkpoint needs removed",
            ),
        )
        return ", ".join(f"{count} {one if count == 1 else many}" for count, one, many in said if count)


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the ledger knows it; see the view `sync_runs`."""

    id: int
    kind: str
    state: str
    flow_run_id: str | None
    reference_time: datetime
    started_at: datetime
    finished_at: datetime | None
    counters: Json
    error: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """Where a model stands.

    Attributes:
        model: The model.
        head: Its live checkpoint.
        live_facts: How many facts are live.
        owed: Pending requests.
        held_back: Open quarantine rows.
        to_review: Groups marked for review.
        last_run: The newest run.
        last_success: The newest run that succeeded.
        cursors: What was read, by source.
        holder: Who holds, or held last, the writer's lock.
        open_checkpoint: A checkpoint that is being built or waits for approval.
    """

    model: Model
    head: CheckpointRow | None
    live_facts: int
    owed: int
    held_back: int
    to_review: int
    last_run: RunRow | None
    last_success: RunRow | None
    cursors: Mapping[str, datetime]
    holder: str | None
    open_checkpoint: CheckpointRow | None
