"""The ledger's face: one method a step, one short transaction a method.

    with Ledger.open(url) as ledger, ledger.writer("name", holder="sync 12 on host") as lease:
        ledger.recover(lease, files)
        run = ledger.begin_run(lease, "sync", reference_time=at)
        ...

Every writing method takes the lease and checks its epoch in its own transaction, so a writer that was
overtaken while it slept writes nothing.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from storage import head, held_back, ingest, lifecycle, plan, recovery, retention, runs
from storage.database import reading as read_transaction
from storage.database import writing
from storage.errors import LedgerError
from storage.lock import exclusive
from storage.reader import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy.engine import Connection

    from storage.checkpoints import CheckpointFiles
    from storage.records import Json, Pair
    from storage.records.checkpoints import CheckpointIntent, CheckRow, EditRow
    from storage.records.planned import ChangeRow, EditRequestRow, PlanReport
    from storage.records.pulled import EntityRow, IngestReport, StatementRow
    from storage.records.runs import Lease, Model, Recovery

logger = logging.getLogger(__name__)


class Ledger(LedgerReader):
    """The ledger. Open it with `Ledger.open`."""

    @contextmanager
    def _step(self, name: str, lease: Lease | None) -> Iterator[Connection]:
        """One writing transaction: fenced, with a point on each side of its commit."""
        with writing(self.engine) as connection:
            if lease is not None:
                runs.fence(connection, lease)
            yield connection
            self._point(f"{name}.before_commit")
        self._point(f"{name}.after_commit")

    # Models and the writer

    def ensure_model(self, name: str, base_ref: str, base_digest: str) -> Model:
        """Register a model, or find it.

        Args:
            name: Its name.
            base_ref: Where the base comes from.
            base_digest: Digest of the base's weights.

        Returns:
            The model. All groups known so far are marked for its review.

        Raises:
            ModelMismatchError: If the name stands for another base.
        """
        with self._step("ensure_model", None) as connection:
            return runs.ensure_model(connection, name, base_ref, base_digest, self._clock())

    @contextmanager
    def writer(self, model_name: str, holder: str) -> Iterator[Lease]:
        """Be the only writer of a model while the block runs.

        Args:
            model_name: The model.
            holder: Who you are, for the message others get: program, run, host, process id.

        Yields:
            The lease, with a fresh epoch.

        Raises:
            UnknownModelError: If the model is not registered.
            LockHeldError: If another writer is at work.
        """
        model = self.model(model_name)
        with exclusive(self.engine, model.id, model.name) as free:
            if not free:
                with read_transaction(self.engine) as connection:
                    raise runs.lock_held(connection, model)
            with self._step("writer", None) as connection:
                lease = runs.take(connection, model, holder, self._clock())
            try:
                yield lease
            finally:
                # Only a courtesy to readers: the lock itself goes with the block, whatever happens here.
                with suppress(LedgerError), writing(self.engine) as connection:
                    runs.give_back(connection, lease)

    def recover(self, lease: Lease, files: CheckpointFiles) -> Recovery:
        """Settle what a crash left; call it first thing after taking the lease.

        Args:
            lease: The writer's lease.
            files: The checkpoints' folder.

        Returns:
            What was settled; false if there was nothing.

        Raises:
            ForeignCheckpointsError: If the folder belongs to another ledger; nothing is touched.
        """
        with self._step("recover", lease) as connection:
            recovery.own(connection, files)
            settled = recovery.settle(connection, lease, files, now=self._clock(), point=self._point)
        with writing(self.engine) as connection:
            orphans = recovery.removable_orphans(connection, lease, files)
        for name in orphans:
            files.delete(name)
            self._point("recover.orphans")
        found = replace(settled, orphans=tuple(orphans))
        if found:
            level = logging.WARNING if found.crash else logging.INFO
            logger.log(level, "Settled what an earlier run had left: %s.", found)
        return found

    # Runs

    def begin_run(
        self,
        lease: Lease,
        kind: str,
        *,
        reference_time: datetime,
        flow_run_id: str | None = None,
        params: Json | None = None,
    ) -> int:
        """Open a run.

        Args:
            lease: The writer's lease.
            kind: sync, backfill or rebuild.
            reference_time: The moment for which facts are wished.
            flow_run_id: The orchestrator's name for it.
            params: What it was called with.

        Returns:
            The run's key.
        """
        with self._step("begin_run", lease) as connection:
            return runs.begin(
                connection,
                lease,
                kind,
                reference_time=reference_time,
                flow_run_id=flow_run_id,
                params=params,
                now=self._clock(),
            )

    def finish_run(
        self, lease: Lease, run: int, state: str, *, counters: Json | None = None, error: str | None = None
    ) -> None:
        """Close a run.

        Args:
            lease: The writer's lease.
            run: The run.
            state: succeeded, nothing (nothing to do), rejected, held (stopped by a guard), candidate (its
                checkpoint waits for approval), or failed.
            counters: What it counted.
            error: What went wrong.
        """
        with self._step("finish_run", lease) as connection:
            runs.finish(connection, lease, run, state, counters=counters, error=error, now=self._clock())

    # What was read

    def track(self, lease: Lease, subjects: Iterable[str]) -> int:
        """Follow items from now on.

        Returns:
            How many were not followed before.
        """
        wanted = sorted(set(subjects))
        with self._step("track", lease) as connection:
            return ingest.track(connection, wanted)

    def ingest(
        self,
        lease: Lease,
        run: int,
        *,
        source: str,
        cursor_to: datetime | None,
        entities: Iterable[EntityRow],
        statements: Iterable[StatementRow],
        pulled_groups: Iterable[Pair],
        lag_at: datetime | None = None,
    ) -> IngestReport:
        """Store what was pulled and move the cursor, in one transaction; iterables are read once.

        Args:
            lease: The writer's lease.
            run: The run.
            source: Name of the source, for its cursor.
            cursor_to: What was read up to; None leaves the cursor. It never moves back.
            entities: Items as probed or labelled.
            statements: Statements as read.
            pulled_groups: The (subject, property) pairs that were pulled completely: a known statement of
                such a group that is missing was deleted, unless the item's revision is older than the one
                we know.
            lag_at: The source's own time of this answer.

        Returns:
            What changed. Touched groups are marked for review, for every model.

        Raises:
            CursorPastLagError: If `cursor_to` passes `lag_at`.
        """
        with self._step("ingest", lease) as connection:
            return ingest.ingest(
                connection,
                run,
                now=self._clock(),
                source=source,
                cursor_to=cursor_to,
                lag_at=lag_at,
                entities=entities,
                statements=statements,
                pulled_groups=pulled_groups,
                point=self._point,
            )

    # What is owed

    def record_plan(
        self,
        lease: Lease,
        run: int,
        changes: Sequence[ChangeRow],
        requests: Sequence[EditRequestRow],
        *,
        reviewed: Mapping[Pair, int],
        flip_memory: timedelta,
    ) -> PlanReport:
        """Record what was decided about some groups; in one transaction, twice is once.

        Args:
            lease: The writer's lease.
            run: The run.
            changes: Decisions, `unchanged` ones included (they are counted, and settle what waited).
            requests: The edits that are owed.
            reviewed: Groups that were looked at, with their marks (`Group.marks`). These marks are cleared (0
                clears none), except where an open checkpoint carries a request: its decision asks for
                another look.
                Pending requests of these groups, and of those of the changes, are withdrawn unless they are
                among `requests`.
            flip_memory: How long a value that was held back and went is remembered as one that may flip.

        Returns:
            What it did.

        Raises:
            UnknownStatementError: If a request names a statement that was never ingested.
        """
        with self._step("record_plan", lease) as connection:
            return plan.record_plan(
                connection,
                lease.model.id,
                run,
                now=self._clock(),
                changes=changes,
                requests=requests,
                reviewed=reviewed,
                flip_memory=flip_memory,
                point=self._point,
            )

    def decide(self, lease: Lease, pending_id: int, decision: str, *, by: str) -> bool:
        """Approve or block something that is held back; the next plan sees the decision.

        Args:
            lease: The writer's lease.
            pending_id: `PendingRow.id`.
            decision: approved or blocked.
            by: Who decided.

        Returns:
            False if nothing of that id waits.

        Raises:
            ConflictStandsError: If it is a conflict, which only Wikidata ends.
        """
        with self._step("decide", lease) as connection:
            return held_back.decide(connection, lease.model.id, pending_id, decision, by=by)

    def prune(self, lease: Lease, *, before: datetime, dry_run: bool = False) -> retention.Pruned:
        """Delete what is older than a moment and backs nothing, in one transaction; see `storage.retention`.

        Args:
            lease: The writer's lease.
            before: What was measured, closed or decided before it may go. The file shrinks by `VACUUM`.
            dry_run: Only count.

        Returns:
            How many rows went, or would go.
        """
        with self._step("prune", lease) as connection:
            return retention.prune(connection, lease.model.id, before, dry_run=dry_run)

    # Checkpoints

    def begin_checkpoint(
        self,
        lease: Lease,
        run: int,
        request_ids: Collection[int],
        *,
        algorithm: str,
        settings: Json,
        from_base: bool = False,
    ) -> CheckpointIntent:
        """Write down a checkpoint that is about to be made, and claim its requests.

        Args:
            lease: The writer's lease.
            run: The run.
            request_ids: Pending requests; may be empty for a rebuild.
            algorithm: Name of the algorithm.
            settings: Its settings.
            from_base: True if the delta will stand on the base itself (a rebuild).

        Returns:
            The checkpoint's key, its parent, and the claimed requests.

        Raises:
            OpenCheckpointError: If another one is open.
            CheckpointStateError: If a request is not pending.
        """
        with self._step("begin_checkpoint", lease) as connection:
            return lifecycle.begin(
                connection,
                lease,
                run,
                request_ids,
                algorithm=algorithm,
                settings=settings,
                from_base=from_base,
                now=self._clock(),
                point=self._point,
            )

    def record_candidate(
        self,
        lease: Lease,
        checkpoint: int,
        *,
        digest: str,
        path: str,
        size_bytes: int,
        files: Json,
        metrics: Json,
        edits: Sequence[EditRow],
        checks: Sequence[CheckRow] = (),
        subjects: Collection[str] | None = None,
    ) -> None:
        """Write down that a checkpoint's files are in place, and how its edits came out.

        Args:
            lease: The writer's lease.
            checkpoint: Key from `begin_checkpoint`.
            digest: From `CheckpointFiles.put`.
            path: Where the files lie, relative to the checkpoints' root.
            size_bytes: Their size.
            files: Digest and size of each file (the manifest's `files`).
            metrics: What was measured over all.
            edits: How each planned edit came out; planned ones left out stay as planned.
            checks: Measured answers.
            subjects: Subjects whose stored state the files carry; None means those of the planned edits.

        Raises:
            CheckpointStateError: If it is not being built.
        """
        with self._step("record_candidate", lease) as connection:
            lifecycle.record_candidate(
                connection,
                lease.model.id,
                checkpoint,
                digest=digest,
                path=path,
                size_bytes=size_bytes,
                files=files,
                metrics=metrics,
                edits=edits,
                checks=checks,
                subjects=subjects,
                point=self._point,
                now=self._clock(),
            )

    def promote(self, lease: Lease, checkpoint: int, *, reason: str) -> None:
        """Make a candidate the head, and its edits applied.

        Raises:
            CheckpointStateError: If it is no candidate.
            StaleLeaseError: If somebody else moved the head or took the lease.
        """
        with self._step("promote", lease) as connection:
            head.promote(connection, lease, checkpoint, reason=reason, now=self._clock(), point=self._point)

    def reject(
        self,
        lease: Lease,
        checkpoint: int,
        *,
        reason: str,
        requeue: bool = True,
        failed: Collection[int] = (),
    ) -> int:
        """Turn an open checkpoint down. Its files are removed by the next `recover`, or by you.

        Args:
            lease: The writer's lease.
            checkpoint: The checkpoint.
            reason: Why.
            requeue: True gives its requests back, with one more attempt counted; False fails them.
            failed: Requests that fail in any case.

        Returns:
            How many requests are pending again.

        Raises:
            CheckpointStateError: If it is not open.
        """
        with self._step("reject", lease) as connection:
            return lifecycle.reject(
                connection,
                checkpoint,
                reason=reason,
                again=requeue,
                failed=failed,
                attempt=1,
                state="rejected",
                now=self._clock(),
            )

    def rollback(self, lease: Lease, to_checkpoint: int | None, *, reason: str, review: bool = True) -> None:
        """Move the head to a checkpoint that was live before, back or forth; None means the base itself.

        Args:
            lease: The writer's lease.
            to_checkpoint: Where to.
            reason: Why.
            review: True marks the facts concerned for the next plan, which wishes again what still holds;
                False leaves them until their statements change.

        Raises:
            CheckpointStateError: If the target was never promoted.
            OpenCheckpointError: If a candidate waits.
        """
        with self._step("rollback", lease) as connection:
            head.rollback(
                connection,
                lease,
                to_checkpoint,
                reason=reason,
                review=review,
                now=self._clock(),
                point=self._point,
            )
