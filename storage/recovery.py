"""What a crash left, settled at the start of the next writer's work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, update

from storage import lifecycle, runs
from storage.errors import ForeignCheckpointsError
from storage.records.runs import Lease, Recovery
from storage.schema.checkpoints import OPEN_STATES, STORED_STATES, Checkpoint
from storage.schema.runs import LedgerMeta, SyncRun

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from storage.checkpoints import CheckpointFiles
    from storage.crash import OnPoint


def own(connection: Connection, files: CheckpointFiles) -> None:
    """Make sure that a folder of checkpoints is this ledger's; one that belongs to nobody becomes so.

    Raises:
        ForeignCheckpointsError: If it belongs to another ledger.
    """
    refuse_foreign(connection, files)
    if files.owner is None:
        files.give_to(_ledger_id(connection))


def refuse_foreign(connection: Connection, files: CheckpointFiles) -> None:
    """Refuse a folder of checkpoints that belongs to another ledger.

    A folder from before folders carried an id belongs to the ledger that knows one of its checkpoints.

    Raises:
        ForeignCheckpointsError: If it does.
    """
    owner, mine = files.owner, _ledger_id(connection)
    if owner is None:
        found = files.digests()
        foreign = bool(found) and set(connection.scalars(select(Checkpoint.digest))).isdisjoint(found)
    else:
        foreign = owner != mine
    if foreign:
        raise ForeignCheckpointsError(str(files.root), owner, mine)


def _ledger_id(connection: Connection) -> str:
    return connection.scalars(select(LedgerMeta.value).where(LedgerMeta.name == "id")).one()


def settle(
    connection: Connection,
    lease: Lease,
    files: CheckpointFiles,
    *,
    now: datetime,
    point: OnPoint,
) -> Recovery:
    """Settle rows: unfinished checkpoints, claims, runs. Their files come after the commit.

    Args:
        connection: A writing transaction.
        lease: The writer's lease; only its model is touched.
        files: To see whether a candidate that waits for approval is still whole.
        now: The time.
        point: Crash points.

    Returns:
        What was settled.
    """
    abandoned: list[int] = []
    rejected: list[int] = []
    kept: list[int] = []
    requeued = 0
    open_rows = connection.execute(
        select(Checkpoint.id, Checkpoint.state, Checkpoint.digest, SyncRun.state.label("run_state"))
        .join(SyncRun, SyncRun.id == Checkpoint.run_id)
        .where(Checkpoint.model_id == lease.model.id, Checkpoint.state.in_(OPEN_STATES))
    )
    for row in list(open_rows):
        if row.state == "candidate" and row.run_state == "candidate" and files.intact(row.digest):
            kept.append(row.id)
            continue
        state = "abandoned" if row.state == "building" else "rejected"
        (abandoned if state == "abandoned" else rejected).append(row.id)
        requeued += lifecycle.reject(
            connection,
            row.id,
            reason="left unfinished by a run that did not end",
            again=True,
            failed=(),
            attempt=0,
            state=state,
            now=now,
        )
    crashed = connection.scalars(
        update(SyncRun)
        .where(SyncRun.model_id == lease.model.id, SyncRun.state == "running")
        .values(state="crashed", finished_at=now, error="the process ended without a word")
        .returning(SyncRun.id)
    ).all()
    point("recover.settled")
    return Recovery(tuple(abandoned), tuple(rejected), tuple(kept), requeued, tuple(sorted(crashed)))


def known_digests(connection: Connection) -> set[str]:
    """List the checkpoints whose files must be kept, of all models."""
    rows = connection.scalars(select(Checkpoint.digest).where(Checkpoint.state.in_(STORED_STATES)))
    return {digest for digest in rows if digest is not None}


def removable_orphans(connection: Connection, lease: Lease, files: CheckpointFiles) -> list[str]:
    """List the folders no row speaks of, unless another writer may be putting one in place now.

    What this writer's model had left was settled before: what is being built since is another writer's, also
    of this model, where this one was overtaken while it slept.
    """
    runs.fence(connection, lease)
    busy = connection.execute(select(Checkpoint.id).where(Checkpoint.state == "building").limit(1)).first()
    return [] if busy else files.orphans(known_digests(connection))
